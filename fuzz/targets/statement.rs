//! A signed statement on a policy version, as a push brings it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_evidence::statement::fuzz_statement(bytes));
