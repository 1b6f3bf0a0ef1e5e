//! `sallyport-bench`.
fn main() {}
