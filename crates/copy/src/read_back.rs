//! Result of reading pieces back from the destination right after they were written.

use std::ops::Range;

use crate::hash_tree::{HashTree, RangeHash};
use crate::map::{Map, State};

/// What was read back. Everything else is still to be verified.
#[derive(Debug, Clone)]
pub(crate) struct ReadBack {
    /// Hashes of pieces, if the data is hashed.
    hashes: HashTree,
    /// Finished where data that is not hashed is the same at both ends.
    same: Map,
}

impl ReadBack {
    /// Nothing of a disk of this length.
    pub(crate) fn new(bytes: u64) -> Self {
        Self { hashes: HashTree::new(bytes), same: Map::new(bytes) }
    }

    /// Records the hashes of what was read back.
    pub(crate) fn record_hashes(&mut self, hashes: impl IntoIterator<Item = RangeHash>) {
        hashes.into_iter().for_each(|hash| self.hashes.insert(hash));
    }

    /// Records whether a range that is not hashed is the same at both ends, as far as is known.
    pub(crate) fn record_same(&mut self, range: Range<u64>, same: bool) {
        self.same.set(range, if same { State::Finished } else { State::Untried });
    }

    /// The ranges with hashes, in ascending order.
    pub(crate) fn leaves(&self) -> Vec<Range<u64>> {
        self.hashes.nodes().map(|hash| hash.range()).collect()
    }

    /// Forgets the hash of a leaf, which is verified again.
    pub(crate) fn forget(&mut self, leaf: &Range<u64>) {
        self.hashes.remove(leaf.start);
    }

    /// The ranges that are the same at both ends and have no hash.
    pub(crate) fn same(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.same.all(State::Finished)
    }

    /// The hashes.
    pub(crate) fn into_hashes(self) -> HashTree {
        self.hashes
    }
}
