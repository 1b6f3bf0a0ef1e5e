//! Events out of the kernel's ring buffer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_sensor::kernel::fuzz_event(bytes));
