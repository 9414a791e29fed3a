//! What was found of the layout of disks, for later requests: partitions, and the file systems in them. To find it
//! takes most of a mebibyte.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use filesystem::PartKind;

/// The most disks whose layout is kept, and the most partitions of one.
const MAX_DISKS: usize = 64;
const MAX_PARTITIONS: usize = 256;

/// What is known of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Numbers and places.
    pub(crate) partitions: Option<Vec<(u32, Range<u64>)>>,
    /// The file systems of partitions by number.
    pub(crate) kinds: Vec<(u32, PartKind)>,
}

/// Layouts by the entity tags of the disks, which differ whenever the bytes may. A disk that hosts may change has no tag,
/// and its layout is not kept.
#[derive(Debug, Default)]
pub(crate) struct Layouts(Mutex<Vec<(String, Layout)>>);

impl Layouts {
    /// Returns what is known of a disk.
    pub(crate) fn get(&self, tag: Option<&str>) -> Layout {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|(other, _)| Some(&**other) == tag);
        known.map(|(_, layout)| layout.clone()).unwrap_or_default()
    }

    /// Keeps what is known of a disk, in place of what was known longest.
    pub(crate) fn keep(&self, tag: Option<&str>, layout: Layout) {
        let is_small = |parts: &Vec<_>| parts.len() <= MAX_PARTITIONS;
        let (Some(tag), true) = (tag, layout.partitions.as_ref().is_some_and(is_small)) else {
            return;
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(other, _)| other != tag);
        if all.len() >= MAX_DISKS {
            all.remove(0);
        }
        all.push((tag.to_owned(), layout));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn layouts_are_kept_of_disks_that_do_not_change() {
        let layouts = Layouts::default();
        let layout = |count: u32| Layout {
            partitions: Some((0..count).map(|number| (number, 0..1)).collect()),
            kinds: vec![(0, PartKind::Ext)],
        };
        layouts.keep(Some("a"), layout(1));
        assert_eq!(layouts.get(Some("a")), layout(1));
        layouts.keep(None, layout(1));
        assert_eq!(layouts.get(None), Layout::default());
        layouts.keep(Some("many"), layout(257));
        assert_eq!(layouts.get(Some("many")), Layout::default());
        for number in 0..64 {
            layouts.keep(Some(&number.to_string()), layout(2));
        }
        assert_eq!(layouts.get(Some("a")), Layout::default());
        assert_eq!(layouts.0.lock().unwrap().len(), MAX_DISKS);
    }
}
