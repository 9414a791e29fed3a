//! The ring's own table of files. An entry names a file by its place there and can name no other: what is not in the table
//! the ring does not touch. It knows places, and no descriptor but while one is put in.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// A place in the table, for as long as anybody has a share of it. It stays free of other files until the ring has swept.
pub(crate) struct File {
    place: u32,
    places: Rc<RefCell<Places>>,
}

/// The places.
#[derive(Debug)]
struct Places {
    free: Vec<u32>,
    /// Those that nobody has any more, but whose file is still there.
    left: Vec<u32>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Files(Rc<RefCell<Places>>);

impl Files {
    /// One with so many places, all free.
    pub(super) fn new(places: u32) -> Self {
        let free = (0..places).rev().collect();
        Self(Rc::new(RefCell::new(Places { free, left: Vec::new() })))
    }

    /// A free place, to put a file in.
    pub(super) fn claim(&self) -> Option<Rc<File>> {
        let place = self.0.borrow_mut().free.pop()?;
        Some(Rc::new(File { place, places: self.0.clone() }))
    }

    /// Has each place cleared that was let go of. One that cannot be is not used again.
    pub(super) fn sweep(&self, clear: impl Fn(u32) -> bool) {
        if self.0.borrow().left.is_empty() {
            return;
        }
        let left = std::mem::take(&mut self.0.borrow_mut().left);
        let cleared = left.into_iter().filter(|&place| clear(place));
        self.0.borrow_mut().free.extend(cleared);
    }
}

impl File {
    /// Its place.
    pub(super) fn place(&self) -> u32 {
        self.place
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.places.borrow_mut().left.push(self.place);
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.place)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_place_is_given_again_only_after_it_was_cleared() {
        let files = Files::new(2);
        let (a, b) = (files.claim().unwrap(), files.claim().unwrap());
        assert_eq!((a.place(), b.place()), (0, 1));
        assert!(files.claim().is_none());
        let share = a.clone();
        drop(a);
        files.sweep(|_| true);
        assert!(files.claim().is_none());
        drop(share);
        assert!(files.claim().is_none());
        files.sweep(|place| place == 0);
        assert_eq!(files.claim().unwrap().place(), 0);
        drop(b);
        files.sweep(|place| place == 0);
        let again = files.claim().unwrap();
        assert_eq!(again.place(), 0);
        assert!(files.claim().is_none());
    }
}
