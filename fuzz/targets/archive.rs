//! A policy bundle's archive, as it is pushed.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_policy::fuzz_archive(bytes));
