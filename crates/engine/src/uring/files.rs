//! Indices of the ring's fixed files (registered file table). Ring entries refer to files by index,
//! so that the ring cannot reach a descriptor that is not in the table. The table of registered
//! buffers has the same kind of indices.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// An index in the table. Once it is dropped, it is reused only after [`FileTable::sweep`] has
/// removed the file.
pub(crate) struct FixedFile {
    index: u32,
    indices: Rc<RefCell<Indices>>,
}

#[derive(Debug)]
struct Indices {
    free: Vec<u32>,
    /// Dropped indices whose file is still in the table.
    released: Vec<u32>,
}

/// The allocator of indices.
#[derive(Debug)]
pub(super) struct FileTable(Rc<RefCell<Indices>>);

impl FileTable {
    /// Returns a table of free indices `0..indices`.
    pub(super) fn new(indices: u32) -> Self {
        let free = (0..indices).rev().collect();
        Self(Rc::new(RefCell::new(Indices { free, released: Vec::new() })))
    }

    /// Allocates an index.
    pub(super) fn allocate(&self) -> Option<FixedFile> {
        let index = self.0.borrow_mut().free.pop()?;
        Some(FixedFile { index, indices: self.0.clone() })
    }

    /// Calls `clear` for each dropped index, to remove its file from the table. An index
    /// for which this fails is not reused. Returns whether any was removed.
    pub(super) fn sweep(&self, clear: impl Fn(u32) -> bool) -> bool {
        if self.0.borrow().released.is_empty() {
            return false;
        }
        let released = std::mem::take(&mut self.0.borrow_mut().released);
        let cleared = released.into_iter().filter(|&index| clear(index));
        let cleared: Vec<_> = cleared.collect();
        let any = !cleared.is_empty();
        self.0.borrow_mut().free.extend(cleared);
        any
    }
}

impl FixedFile {
    /// Returns the index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for FixedFile {
    fn drop(&mut self) {
        self.indices.borrow_mut().released.push(self.index);
    }
}

impl fmt::Debug for FixedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FixedFile({})", self.index)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn index_is_reused_only_after_it_was_cleared() {
        let files = FileTable::new(2);
        let (a, b) = (files.allocate().unwrap(), files.allocate().unwrap());
        assert_eq!((a.index(), b.index()), (0, 1));
        files.sweep(|_| true);
        assert!(files.allocate().is_none());
        drop(a);
        assert!(files.allocate().is_none());
        files.sweep(|index| index == 0);
        assert_eq!(files.allocate().unwrap().index(), 0);
        drop(b);
        files.sweep(|index| index == 0);
        let again = files.allocate().unwrap();
        assert_eq!(again.index(), 0);
        assert!(files.allocate().is_none());
    }
}
