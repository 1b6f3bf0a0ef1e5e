//! Length-delimited frames between sensor and shepherd.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_sensor::frames::fuzz_frames(bytes));
