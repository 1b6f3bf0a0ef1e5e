//! A signed order, as a verifier is handed it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_evidence::order::fuzz_order(bytes));
