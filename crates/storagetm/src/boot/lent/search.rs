//! Machines nearby that lend disks by NVMe/TCP, looked for again and again on a thread; whether one may do so without a key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use remote::address::TargetAddr;
use remote::machine::{Machine, machines};

/// How long one look takes.
const LOOK: Duration = Duration::from_secs(3);

/// A machine that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lender {
    pub(super) name: String,
    pub(super) at: TargetAddr,
    /// Its other addresses: not each of its networks may be one of this machine.
    pub(super) others: Vec<TargetAddr>,
    /// Whether it wants a key, if it announced that.
    pub(super) keyed: Option<bool>,
}

/// Whether a machine may be booted from without encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unencrypted {
    /// It wants a key, or its code is known.
    Never,
    /// It is asked, and refused if it lends without a key.
    Refused,
    /// If a person agrees.
    Asked,
    Allowed,
}

impl Unencrypted {
    /// `wants_key`: whether the machine wants a key, or its code is known. `allowed`: what the kernel parameters say; `None`
    /// if a person has chosen the machine.
    pub(super) fn of(wants_key: bool, allowed: Option<bool>) -> Self {
        match (wants_key, allowed) {
            (true, _) => Self::Never,
            (false, None) => Self::Asked,
            (false, Some(true)) => Self::Allowed,
            (false, Some(false)) => Self::Refused,
        }
    }

    /// Whether it is asked without a key though keys of other machines are stored.
    pub(super) fn may_be_asked(self) -> bool {
        matches!(self, Self::Asked | Self::Allowed)
    }
}

impl Lender {
    fn of(machine: &Machine) -> Option<Self> {
        let mut all = machine.disks().into_iter();
        let at = all.next()?;
        let others = all.collect();
        Some(Self { name: machine.name.clone(), at, others, keyed: machine.keyed })
    }

    /// Takes the first of its addresses that accepts a connection; if none does, the first one.
    pub(super) fn reached(mut self) -> Self {
        if !self.others.is_empty() && self.at.connect().is_err() {
            let found = self.others.iter().find(|at| at.connect().is_ok());
            self.at = found.unwrap_or(&self.at).clone();
        }
        self
    }

    /// Whether Enter alone may choose it: it wants a key, so that another in its place is noticed.
    pub(super) fn may_be_default(&self) -> bool {
        self.keyed == Some(true)
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

/// Returns the only machine of that name.
pub(super) fn named<'a>(found: &'a [Lender], name: &str) -> Option<&'a Lender> {
    let mut all = found.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
    let one = all.next()?;
    all.next().is_none().then_some(one)
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

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_key_takes_a_person_or_a_parameter() {
        use Unencrypted::{Allowed, Asked, Never, Refused};
        for (wants_key, allowed, wanted) in [
            (true, None, Never),
            (true, Some(true), Never),
            (false, None, Asked),
            (false, Some(false), Refused),
            (false, Some(true), Allowed),
        ] {
            let found = Unencrypted::of(wants_key, allowed);
            assert_eq!(found, wanted, "{wants_key}, {allowed:?}");
            // Keys of others are stored after a pairing: a machine without one is asked all the same.
            assert_eq!(found.may_be_asked(), matches!(wanted, Asked | Allowed));
        }
    }

    #[test]
    fn enter_alone_chooses_no_machine_without_a_key() {
        let at = TargetAddr::parse("10.0.0.1", None).unwrap();
        for (keyed, wanted) in [(Some(true), true), (Some(false), false), (None, false)] {
            let lender = Lender { name: String::new(), at: at.clone(), others: Vec::new(), keyed };
            assert_eq!(lender.may_be_default(), wanted, "{keyed:?}");
        }
    }

    fn lender(name: &str, addresses: &[String]) -> Lender {
        let mut all = addresses.iter().map(|at| TargetAddr::parse(at, None).unwrap());
        let at = all.next().unwrap();
        Lender { name: name.to_owned(), at, others: all.collect(), keyed: None }
    }

    #[test]
    fn machine_is_reached_by_any_of_its_addresses() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = closed.local_addr().unwrap().to_string();
        drop(closed);
        for (addresses, wanted) in [
            (vec![refused.clone(), open.clone()], &open),
            (vec![open.clone(), refused.clone()], &open),
            (vec![refused.clone(), refused.clone()], &refused),
        ] {
            let reached = lender("desk", &addresses).reached();
            assert_eq!(reached.at.to_string(), *wanted, "{addresses:?}");
        }
    }

    #[test]
    fn name_of_the_list_is_taken_if_it_is_of_one_machine() {
        let at = ["10.0.0.1".to_owned()];
        let found = [lender("desk", &at), lender("lab", &at), lender("lab", &at)];
        assert_eq!(named(&found, "Desk"), Some(&found[0]));
        assert_eq!(named(&found, "lab"), None);
        assert_eq!(named(&found, "other"), None);
    }
}
