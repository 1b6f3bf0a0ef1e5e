//! A peer's frames on a resumable channel.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_contract::resume::fuzz_resume(bytes));
