//! The limit of the machine for TLS: AES-GCM alone.

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

/// Bytes of a large request.
const REQUEST: usize = 128 << 10;

/// Bytes of the source and of the destination, and of a record: within the processor's cache,
/// beyond it, and in short records.
const CASES: [(usize, usize); 3] = [(REQUEST, 16 << 10), (16 << 20, 16 << 10), (REQUEST, 1 << 10)];

/// Measures and prints the time to encrypt and to decrypt 128 KiB.
pub(crate) fn measure(options: &Options) -> Result<()> {
    processor::pin(options.processor)?;
    let time = Duration::from_secs_f64(options.seconds);
    for (bits, algorithm) in [(128, &AES_128_GCM), (256, &AES_256_GCM)] {
        let secret = vec![7; bits / 8];
        let key = UnboundKey::new(algorithm, &secret).map_err(|_| anyhow!("no such key"))?;
        let key = LessSafeKey::new(key);
        for (size, record) in CASES {
            let (from, mut to) = (vec![1; size], vec![0; size]);
            let mut tags = vec![[0; 16]; size / record];
            let sealed = per_request(time, size, || {
                let mut chunks = from.chunks(record).zip(to.chunks_mut(record)).zip(&mut tags);
                chunks.try_for_each(|((from, to), tag)| seal(&key, from, to, tag))
            })?;
            let mut back = from;
            let opened = per_request(time, size, || {
                let mut chunks = to.chunks(record).zip(back.chunks_mut(record)).zip(&tags);
                chunks.try_for_each(|((from, to), tag)| open(&key, from, tag, to))
            })?;
            println!(
                "AES-{bits}-GCM, {:>5} KiB in records of {:>2} KiB: {sealed:>6.2} us to encrypt \
                 128 KiB, {opened:>6.2} us to decrypt them",
                size >> 10,
                record >> 10
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

fn seal(key: &LessSafeKey, from: &[u8], to: &mut [u8], tag: &mut [u8]) -> Result<()> {
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    key.seal_out_of_place_scatter(nonce, Aad::from([23; 5]), from, to, &[], tag)
        .map_err(|_| anyhow!("a record cannot be encrypted"))
}

fn open(key: &LessSafeKey, from: &[u8], tag: &[u8], to: &mut [u8]) -> Result<()> {
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    key.open_separate_gather(nonce, Aad::from([23; 5]), from, tag, to)
        .map_err(|_| anyhow!("a record cannot be decrypted"))
}
