//! Feeds libFuzzer's bytes to `storagetm_fuzz::answers`, where all there is to know is said.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| storagetm_fuzz::answers::run(data));
