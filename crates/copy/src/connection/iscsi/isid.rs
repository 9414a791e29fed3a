//! Identifiers of sessions. A session whose connection is lost lives on at the target, with its
//! resources and perhaps with writes, until it notices. A login with the same ISID replaces it at
//! once (RFC 7143 §6.3.5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::iscsi::chap::system_random;

/// The ISIDs of an endpoint. Each is that of one connection at a time: a login with one in use would
/// end that session.
#[derive(Debug, Clone, Default)]
pub(super) struct Isids(Arc<Mutex<Vec<[u8; 6]>>>);

impl Isids {
    /// Returns that of a connection that was closed, the last one first, or else a new one. Returns
    /// `None` if the system has no random bytes.
    pub(super) fn take(&self) -> Option<Isid> {
        let free = self.lock().pop();
        let isid = match free {
            Some(isid) => isid,
            None => {
                // Random (RFC 7143 §11.12.5): no other program has it.
                let mut isid = [0x80, 0, 0, 0, 0, 0];
                system_random(&mut isid[1..]).then_some(isid)?
            }
        };
        Some(Isid { isid, free: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<[u8; 6]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ISID of a connection; free for another one when it is dropped.
#[derive(Debug)]
pub(super) struct Isid {
    isid: [u8; 6],
    free: Isids,
}

impl Isid {
    pub(super) fn bytes(&self) -> [u8; 6] {
        self.isid
    }
}

impl Drop for Isid {
    fn drop(&mut self) {
        self.free.lock().push(self.isid);
    }
}
