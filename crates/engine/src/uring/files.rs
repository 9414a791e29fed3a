//! The ring's own table of files. An entry names a file by its index there and can name no other: what is not in the table
//! the ring does not touch. It knows indices, and no descriptor but while one is put in.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// A index in the table, for as long as anybody has a share of it. It stays free of other files until the ring has swept.
pub(crate) struct FixedFile {
    index: u32,
    indices: Rc<RefCell<Indices>>,
}

/// The indices.
#[derive(Debug)]
struct Indices {
    free: Vec<u32>,
    /// Those that nobody has any more, but whose file is still there.
    released: Vec<u32>,
}

/// The table.
#[derive(Debug)]
pub(super) struct FileTable(Rc<RefCell<Indices>>);

impl FileTable {
    /// One with so many indices, all free.
    pub(super) fn new(indices: u32) -> Self {
        let free = (0..indices).rev().collect();
        Self(Rc::new(RefCell::new(Indices { free, released: Vec::new() })))
    }

    /// A free index, to put a file in.
    pub(super) fn allocate(&self) -> Option<Rc<FixedFile>> {
        let index = self.0.borrow_mut().free.pop()?;
        Some(Rc::new(FixedFile { index, indices: self.0.clone() }))
    }

    /// Has each index cleared that was let go of. One that cannot be is not used again.
    pub(super) fn sweep(&self, clear: impl Fn(u32) -> bool) {
        if self.0.borrow().released.is_empty() {
            return;
        }
        let released = std::mem::take(&mut self.0.borrow_mut().released);
        let cleared = released.into_iter().filter(|&index| clear(index));
        self.0.borrow_mut().free.extend(cleared);
    }
}

impl FixedFile {
    /// Its index.
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
    fn a_place_is_given_again_only_after_it_was_cleared() {
        let files = FileTable::new(2);
        let (a, b) = (files.allocate().unwrap(), files.allocate().unwrap());
        assert_eq!((a.index(), b.index()), (0, 1));
        assert!(files.allocate().is_none());
        let share = a.clone();
        drop(a);
        files.sweep(|_| true);
        assert!(files.allocate().is_none());
        drop(share);
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
