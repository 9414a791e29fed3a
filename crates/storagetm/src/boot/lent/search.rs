//! Machines nearby that lend disks by NVMe/TCP, looked for again and again on a thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use protocol::Protocol;
use remote::address::TargetAddr;
use remote::machine::{Machine, machines};

/// How long one look takes.
const LOOK: Duration = Duration::from_secs(3);

/// A machine that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lender {
    pub(super) name: String,
    pub(super) at: TargetAddr,
    /// Whether it wants a key, if it announced that.
    pub(super) keyed: Option<bool>,
}

impl Lender {
    fn of(machine: &Machine) -> Option<Self> {
        machine.services(Protocol::Nvme).first()?;
        Some(Self { name: machine.name.clone(), at: machine.disks()?, keyed: machine.keyed })
    }

    /// A line about it.
    pub(super) fn shown(&self) -> String {
        let key = match self.keyed {
            Some(true) => "code on its screen",
            Some(false) => "NOT ENCRYPTED",
            None => "",
        };
        format!("{:<24} {:<28} {key}", self.name, self.at.to_string())
    }
}

/// A search that goes on until it is dropped.
#[derive(Debug)]
pub(super) struct Search {
    found: Arc<Mutex<Result<Vec<Lender>, String>>>,
    over: Arc<AtomicBool>,
}

impl Search {
    pub(super) fn start() -> Self {
        let search = Self { found: Arc::new(Mutex::new(Ok(Vec::new()))), over: Arc::default() };
        let (found, over) = (Arc::clone(&search.found), Arc::clone(&search.over));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let look = dnssd::browse(None, LOOK);
                let is_failed = look.is_err();
                let look =
                    look.map(|found| machines(found).iter().filter_map(Lender::of).collect());
                *found.lock().unwrap_or_else(PoisonError::into_inner) =
                    look.map_err(|failure| failure.to_string());
                if is_failed {
                    thread::sleep(LOOK);
                }
            }
        });
        search
    }

    /// Returns what the last look has found, or why there was none.
    pub(super) fn found(&self) -> Result<Vec<Lender>, String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
