//! A signed note, as a verifier is handed it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_evidence::note::fuzz_note(bytes));
