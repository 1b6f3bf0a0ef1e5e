//! A peer's certificate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sallyport_gateway::authority::x509::fuzz_peer(bytes));
