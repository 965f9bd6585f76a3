//! vireo
fn main() {}
