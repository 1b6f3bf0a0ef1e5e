//! Encoded terminal modes of a client (RFC 4254, section 8).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_sensor::shepherd::terminal::fuzz_modes(bytes));
