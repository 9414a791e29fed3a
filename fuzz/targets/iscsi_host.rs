//! Feeds libFuzzer's bytes to `storagetm_fuzz::iscsi_host`, which describes what is checked.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| storagetm_fuzz::iscsi_host::run(data));
