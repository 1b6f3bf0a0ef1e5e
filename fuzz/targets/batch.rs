//! A batch of records from a sensor.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_gateway::recorder::fuzz_batch(bytes));
