//! Samples of a disk: a few blocks with their hashes, to recognize the disk after a reconnect.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hash_tree::is_zero;

/// Length of a sample in bytes, unless the block size of the disk is larger.
const MIN_LEN: u32 = 4096;

/// The hash of one sampled block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    /// The sampled bytes: whole blocks of the disk.
    pub(crate) range: Range<u64>,
    hash: blake3::Hash,
    zero: bool,
    /// Whether the bytes were written by this copy; otherwise they were read.
    written: bool,
}

impl Sample {
    /// Samples the first block of `bytes` that is not all zeros, or the first block if all are.
    /// `offset` is the position of `bytes` on the disk, `block` the block size of the disk in
    /// bytes. Returns `None` if `bytes` is empty.
    pub(crate) fn of(offset: u64, bytes: &[u8], block: u32) -> Option<Self> {
        let len = usize::try_from(sample_len(block)).unwrap_or(usize::MAX);
        let nonzero = bytes.chunks(len).enumerate().find(|(_, chunk)| !is_zero(chunk));
        let (index, chunk) = nonzero.or_else(|| bytes.chunks(len).enumerate().next())?;
        let start = offset.saturating_add(index as u64 * len as u64);
        let range = start..start.saturating_add(chunk.len() as u64);
        Some(Self { range, hash: blake3::hash(chunk), zero: nonzero.is_none(), written: false })
    }

    /// The same sample, of bytes that were written by this copy.
    pub(crate) fn written(self) -> Self {
        Self { written: true, ..self }
    }

    /// Returns whether `bytes` are those that were sampled.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        blake3::hash(bytes) == self.hash
    }
}

/// Returns the length in bytes of a sample of a disk with this block size.
pub(crate) fn sample_len(block: u32) -> u64 {
    u64::from(block.max(1)).max(u64::from(MIN_LEN)).next_multiple_of(block.max(1).into())
}

/// The first, the last and one random sample of a disk.
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<Reservoir>);

#[derive(Debug, Default)]
struct Reservoir {
    first: Option<Sample>,
    random: Option<Sample>,
    last: Option<Sample>,
    /// Number of samples added, without those of zeros.
    count: u64,
}

impl Samples {
    /// Adds a sample. A sample of zeros is kept only until one with data is added: most disks have zeros.
    pub(crate) fn add(&self, sample: Sample) {
        let mut reservoir = self.lock();
        if sample.zero {
            if reservoir.count == 0 {
                reservoir.last = Some(sample);
            }
            return;
        }
        reservoir.count += 1;
        if reservoir.count == 1 {
            reservoir.first = Some(sample.clone());
        } else if splitmix64(reservoir.count).is_multiple_of(reservoir.count) {
            // Reservoir sampling: each sample so far is kept with the same probability.
            reservoir.random = Some(sample.clone());
        }
        reservoir.last = Some(sample);
    }

    /// Returns the samples that are kept, without duplicates. Written ones are left out unless
    /// `written` is true.
    pub(crate) fn all(&self, written: bool) -> Vec<Sample> {
        let reservoir = self.lock();
        let mut all: Vec<Sample> = Vec::new();
        for sample in [&reservoir.last, &reservoir.first, &reservoir.random].into_iter().flatten() {
            if (written || !sample.written) && !all.contains(sample) {
                all.push(sample.clone());
            }
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, Reservoir> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SplitMix64: returns a pseudorandom number for a counter.
fn splitmix64(count: u64) -> u64 {
    let mut bits = count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sample_prefers_a_block_with_data() {
        let mut bytes = vec![0; 20000];
        let sample = Sample::of(1 << 20, &bytes, 512).unwrap();
        assert!(sample.zero && sample.range == (1 << 20..(1 << 20) + 4096));
        bytes[9000] = 1;
        let sample = Sample::of(1 << 20, &bytes, 512).unwrap();
        assert_eq!(sample.range, (1 << 20) + 8192..(1 << 20) + 12288);
        assert!(sample.matches(&bytes[8192..12288]) && !sample.matches(&bytes[4096..8192]));
        assert_eq!(Sample::of(0, &bytes, 65536).unwrap().range, 0..20000);
        assert_eq!(Sample::of(0, &[1; 512], 512).unwrap().range, 0..512);
        assert_eq!(Sample::of(0, &[], 512), None);
    }

    #[test]
    fn first_last_and_random_sample_are_kept() {
        let samples = Samples::default();
        let add = |at: u64, fill: u8| samples.add(Sample::of(at, &[fill; 4096], 512).unwrap());
        let starts =
            || samples.all(true).iter().map(|sample| sample.range.start).collect::<Vec<_>>();
        add(0, 0);
        assert_eq!(starts(), [0]);
        (1..100).for_each(|at| add(at << 20, 1));
        add(200 << 20, 0);
        let reservoir = starts();
        assert_eq!((reservoir.len(), reservoir[0], reservoir[1]), (3, 99 << 20, 1 << 20));
    }

    #[test]
    fn written_samples_are_returned_on_request_only() {
        let samples = Samples::default();
        samples.add(Sample::of(0, &[1; 4096], 512).unwrap());
        let written = Sample::of(8192, &[2; 4096], 512).unwrap().written();
        samples.add(written.clone());
        assert_eq!(samples.all(true).len(), 2);
        assert!(!samples.all(false).contains(&written) && samples.all(false).len() == 1);
    }
}
