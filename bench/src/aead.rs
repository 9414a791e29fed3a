//! The limit of the machine for TLS: AES-GCM alone, in records of 16 KiB.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::processor;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds for each figure.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Processor to measure.
    #[arg(long, default_value_t = 0)]
    processor: usize,
}

/// Bytes of a record, and of a large request.
const RECORD: usize = 16 << 10;
const REQUEST: usize = 128 << 10;

/// Bytes of the source, and of the destination: within the processor's cache, and beyond.
const SIZES: [usize; 2] = [REQUEST, 16 << 20];

/// Measures and prints the time to encrypt and to decrypt 128 KiB.
pub(crate) fn measure(options: &Options) -> Result<()> {
    processor::pin(options.processor)?;
    let time = Duration::from_secs_f64(options.seconds);
    for (bits, algorithm) in [(128, &AES_128_GCM), (256, &AES_256_GCM)] {
        let secret = vec![7; bits / 8];
        let key = UnboundKey::new(algorithm, &secret).map_err(|_| anyhow!("no such key"))?;
        let key = LessSafeKey::new(key);
        for size in SIZES {
            let (from, mut to) = (vec![1; size], vec![0; size]);
            let mut tags = vec![[0; 16]; size / RECORD];
            let sealed = per_request(time, size, || seal(&key, &from, &mut to, &mut tags))?;
            let mut back = from;
            let opened = per_request(time, size, || open(&key, &to, &tags, &mut back))?;
            let size = format!("{} KiB", size >> 10);
            println!(
                "AES-{bits}-GCM, {size:>9} to as many: {sealed:>6.2} us to encrypt 128 KiB, {opened:>6.2} us to \
                 decrypt them"
            );
        }
    }
    Ok(())
}

/// Returns the microseconds for [`REQUEST`] bytes of a pass over `size` bytes.
fn per_request(time: Duration, size: usize, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    pass()?;
    let (start, mut requests) = (Instant::now(), 0);
    while start.elapsed() < time {
        pass()?;
        requests += size / REQUEST;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / requests as f64)
}

fn seal(key: &LessSafeKey, from: &[u8], to: &mut [u8], tags: &mut [[u8; 16]]) -> Result<()> {
    for ((from, to), tag) in from.chunks(RECORD).zip(to.chunks_mut(RECORD)).zip(tags) {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_out_of_place_scatter(nonce, Aad::from([23; 5]), from, to, &[], tag)
            .map_err(|_| anyhow!("a record cannot be encrypted"))?;
    }
    Ok(())
}

fn open(key: &LessSafeKey, from: &[u8], tags: &[[u8; 16]], to: &mut [u8]) -> Result<()> {
    for ((from, to), tag) in from.chunks(RECORD).zip(to.chunks_mut(RECORD)).zip(tags) {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.open_separate_gather(nonce, Aad::from([23; 5]), from, tag, to)
            .map_err(|_| anyhow!("a record cannot be decrypted"))?;
    }
    Ok(())
}
