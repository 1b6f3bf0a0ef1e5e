//! A whole bundle, as an archive and as files: loads or says why, at places that exist.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_policy::fuzz_bundle(bytes));
