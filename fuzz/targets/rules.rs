//! Rules: whatever loads compiles, and its tables answer as Cedar does.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_policy::fuzz_rules(bytes));
