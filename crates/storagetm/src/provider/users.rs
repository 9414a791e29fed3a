//! The number of connections of each user: one that opens many does not keep others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Uid;

/// The most connections of a user. The socket unit of systemd has the same number.
const MAX_OF_USER: usize = 16;

/// The connections of users.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<HashMap<Uid, usize>>);

/// A connection of a user, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    users: Arc<Users>,
    user: Uid,
}

impl Users {
    fn counts(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.counts().values().sum()
    }

    /// Counts a connection. Returns `None` if the user has too many.
    pub(super) fn admit(self: &Arc<Self>, user: Uid) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(user).or_default();
        if *count >= MAX_OF_USER {
            return None;
        }
        *count += 1;
        Some(Place { users: self.clone(), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.users.counts();
        let left = counts.get(&self.user).map_or(0, |count| count.saturating_sub(1));
        match left {
            0 => counts.remove(&self.user),
            left => counts.insert(self.user, left),
        };
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn user_with_many_connections_keeps_nobody_out() {
        let users = Arc::new(Users::default());
        let (one, root) = (Uid::from_raw(1000), Uid::ROOT);
        let mut places: Vec<Place> = (0..MAX_OF_USER).map(|_| users.admit(one).unwrap()).collect();
        assert!(users.admit(one).is_none());
        let _of_root = users.admit(root).unwrap();
        places.pop();
        assert_eq!(users.connections(), MAX_OF_USER);
        places.push(users.admit(one).unwrap());
        places.clear();
        assert_eq!((users.connections(), users.counts().len()), (1, 1));
    }
}
