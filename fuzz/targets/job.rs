//! A CI job's token before it is verified, and claims as they are read once it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_gateway::ci::fuzz_job(bytes));
