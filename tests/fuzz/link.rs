#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shoal::fuzzing::run("link", bytes));
