//! Rules made of bytes: the tables answer as Cedar does, and what is called idle changes no answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sallyport_policy::fuzz_compiler(bytes);
});
