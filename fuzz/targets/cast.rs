//! A recording, as the player is handed it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_cli::cast::fuzz_cast(bytes));
