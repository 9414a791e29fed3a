//! Feeds libFuzzer's bytes to `storagetm_fuzz::scsi`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| storagetm_fuzz::scsi::run(data));
