//! The check that a destination has the expected hash, after a copy whose source was not read from its start to its end.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::copy::{Check, CopyError, Endpoint, Unchecked};
use linux::medium::ReadAt as _;

use super::hash_list::Expected;
use super::sync_disk::SyncDisk;
use super::web_disk::WebDisk;

/// Bytes that are read at a time to compute a hash.
const PIECE: usize = 256 << 10;

/// The hash that the destination must have after a copy.
pub(super) struct ExpectedContents {
    source: WebDisk,
    name: String,
    bytes: u64,
    expected: Expected,
}

impl ExpectedContents {
    /// What the destination must hold after a copy of all `bytes` bytes of `source`, which is called `name`.
    pub(super) fn new(source: WebDisk, name: String, bytes: u64, expected: Expected) -> Self {
        Self { source, name, bytes, expected }
    }

    /// Returns the check of a destination. What is not copied yet is read from the source.
    pub(super) fn check(self, destination: Arc<dyn Endpoint>) -> Check {
        Check(Box::new(move |unchecked| {
            let hash = self.hash(&*destination, unchecked).map_err(|reason| {
                let what = "the hash of what was copied cannot be computed";
                CopyError::Incomplete(format!("{}: {what}: {reason}", self.name))
            })?;
            if hash == self.expected {
                return Ok(());
            }
            Err(CopyError::Unexpected(format!(
                "what was copied from {} has the {} {hash}, and {} was expected: the destination is not to be used",
                self.name,
                hash.kind(),
                self.expected
            )))
        }))
    }

    fn hash(&self, destination: &dyn Endpoint, unchecked: &Unchecked) -> Result<Expected, String> {
        let (source, there) = (SyncDisk::open(&self.source)?, SyncDisk::open(destination)?);
        there.drop_caches();
        let (mut hasher, mut piece, mut at) = (self.expected.hasher(), vec![0; PIECE], 0);
        while at < self.bytes {
            if unchecked.stop.load(Ordering::Acquire) {
                return Err("interrupted".to_owned());
            }
            let (end, is_held) = run(&unchecked.held, at, self.bytes);
            let disk = if is_held { &source } else { &there };
            let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let part = piece.get_mut(..len).unwrap_or_default();
            let count = disk.read_at(part, at).map_err(|error| error.to_string())?;
            if count == 0 {
                return Err(format!("it ends at byte {at}"));
            }
            let part = part.get(..count).unwrap_or_default();
            if is_held {
                self.source.keep_checked(at, part);
            }
            hasher.update(part);
            at += count as u64;
            unchecked.done.store(at, Ordering::Relaxed);
        }
        Ok(hasher.finish())
    }
}

/// Returns where the range ends that has the byte `at`, and whether it is one of those that are `held`.
fn run(held: &[Range<u64>], at: u64, bytes: u64) -> (u64, bool) {
    match held.iter().find(|range| range.end > at) {
        Some(range) if range.start <= at => (range.end.min(bytes), true),
        Some(range) => (range.start.min(bytes), false),
        None => (bytes, false),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn held_ranges_are_read_from_the_source() {
        // The destination is padded to whole blocks.
        let held = [0..10, 90..100];
        assert_eq!(run(&held, 0, 95), (10, true));
        assert_eq!(run(&held, 10, 95), (90, false));
        assert_eq!(run(&held, 89, 95), (90, false));
        assert_eq!(run(&held, 90, 95), (95, true));
        assert_eq!(run(&held, 95, 120), (100, true));
        assert_eq!(run(&held, 100, 120), (120, false));
    }
}
