//! `storagetm find`: which machines nearby lend disks, and which disks. It knows no disk of this machine.

mod outcome;

use std::time::Duration;

use linux::tree::Tree;

use crate::key::{say, say_json};
use crate::options::find::Find;
use failure::Failure;
use keys::target::Target;
use outcome::Row;
use remote::address::TargetAddr;
use remote::host_identity::HostIdentity;
use remote::key_selection::candidates;
use remote::machine::{self, Machine, machines};
use remote::query::{self, Disk, Initiator, QueryError};

/// Machines that are asked at most, and at once.
const MOST: usize = 64;
const AT_ONCE: usize = 16;

/// Looks for machines, asks each, and says what came of it.
///
/// # Errors
/// The network cannot be asked.
pub(crate) fn find(options: &Find) -> Result<(), Failure> {
    let known = machine::targets(options.keys.as_deref())?;
    let found = dnssd::browse(options.mdns_port, Duration::from_secs(options.timeout))?;
    let mut machines = machines(found);
    machines.truncate(MOST);
    let tree = Tree::machine();
    let ask = |some| ask_all(&tree, some, &known, options.insecure);
    let rows: Vec<Row> = machines.chunks(AT_ONCE).flat_map(ask).collect();
    if options.json { say_json(&rows) } else { say(outcome::text(&rows).as_bytes()) }
}

/// Asks them at the same time; one that is slow holds up nobody for long.
fn ask_all(tree: &Tree, machines: &[Machine], known: &[Target], insecure: bool) -> Vec<Row> {
    std::thread::scope(|scope| {
        let answer = move |machine| answer(tree, machine, known, insecure);
        let ask = |machine| scope.spawn(move || Row::new(machine, &answer(machine)));
        let asked: Vec<_> = machines.iter().map(ask).collect();
        // One that panicked would say nothing of its machine, and all of the others.
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

/// What a machine has answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer<'a> {
    /// Which machine it is, if it has let this one in.
    of: Option<&'a Target>,
    disks: Result<Vec<Disk>, QueryError>,
}

/// Asks a machine by the keys of those that it may be. In the clear only if this machine has no key, or that was asked for.
fn answer<'a>(tree: &Tree, machine: &Machine, known: &'a [Target], insecure: bool) -> Answer<'a> {
    if machine.nvme.is_empty() {
        return Answer { of: None, disks: Ok(Vec::new()) };
    }
    for target in candidates(known, &machine.nvme).0 {
        let who = HostIdentity::find(tree, Some(&target.host));
        match at_each(machine, &Initiator { host: &who, key: Some(&target.tls), chap: None }) {
            Err(QueryError::KeyRequired) => {}
            // A server without TLS ends the connection.
            Err(QueryError::Protocol(_)) if machine.keyed != Some(true) => {}
            disks => return Answer { of: Some(target), disks },
        }
    }
    let here = machine.nvme.iter().all(TargetAddr::is_loopback);
    let refusal = match machine.keyed {
        Some(true) => Some(QueryError::KeyRequired),
        _ if known.is_empty() || here || insecure => None,
        _ => Some(QueryError::NoKeyAccepted),
    };
    let who = HostIdentity::find(tree, None);
    let clear = || at_each(machine, &Initiator { host: &who, key: None, chap: None });
    Answer { of: None, disks: refusal.map_or_else(clear, Err) }
}

/// Asks at the first of its addresses that can be reached.
fn at_each(machine: &Machine, asking: &Initiator<'_>) -> Result<Vec<Disk>, QueryError> {
    let mut last = QueryError::Unreachable("it has no address".to_owned());
    for place in &machine.nvme {
        match query::list_disks(place, asking, true) {
            Err(refusal @ QueryError::Unreachable(_)) => last = refusal,
            answer => return answer,
        }
    }
    Err(last)
}
