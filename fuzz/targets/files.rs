//! Feeds libFuzzer's bytes to `storagetm_fuzz::files`, where all there is to know is said.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    storagetm_fuzz::files::run(data);
});
