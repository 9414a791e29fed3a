//! `storagetm find`: which machines nearby lend disks, and which disks. It knows no disk of this machine.

mod report;

use std::time::Duration;

use linux::tree::Tree;

use crate::key::{print, print_json};
use crate::options::find::Find;
use failure::Failure;
use keys::target::Target;
use remote::address::TargetAddr;
use remote::host_identity::HostIdentity;
use remote::key_selection::candidates;
use remote::machine::{self, Machine, machines};
use remote::query::{self, Disk, Initiator, QueryError};
use report::Row;

/// Machines that are asked at most, and at once.
const MAX_MACHINES: usize = 64;
const MAX_PARALLEL: usize = 16;

/// Looks for machines, asks each, and says what came of it.
///
/// # Errors
/// The network cannot be asked.
pub(crate) fn find(options: &Find) -> Result<(), Failure> {
    let known = machine::targets(options.keys.as_deref())?;
    let found = dnssd::browse(options.mdns_port, Duration::from_secs(options.timeout))?;
    let mut machines = machines(found);
    machines.truncate(MAX_MACHINES);
    let tree = Tree::machine();
    let ask = |some| query_all(&tree, some, &known, options.insecure);
    let rows: Vec<Row> = machines.chunks(MAX_PARALLEL).flat_map(ask).collect();
    if options.json { print_json(&rows) } else { print(report::text(&rows).as_bytes()) }
}

/// Asks them at the same time; one that is slow holds up nobody for long.
fn query_all(tree: &Tree, machines: &[Machine], known: &[Target], insecure: bool) -> Vec<Row> {
    std::thread::scope(|scope| {
        let query_machine = move |machine| query_machine(tree, machine, known, insecure);
        let ask = |machine| scope.spawn(move || Row::new(machine, &query_machine(machine)));
        let asked: Vec<_> = machines.iter().map(ask).collect();
        // One that panicked would say nothing of its machine, and all of the others.
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

/// What a machine has answered.
#[derive(Debug, Clone)]
pub(crate) struct MachineDisks<'a> {
    /// Which machine it is, if it has let this one in.
    of: Option<&'a Target>,
    disks: Result<Vec<Disk>, QueryError>,
}

/// Asks a machine by the keys of those that it may be. In the clear only if this machine has no key, or that was asked for.
fn query_machine<'a>(
    tree: &Tree,
    machine: &Machine,
    known: &'a [Target],
    insecure: bool,
) -> MachineDisks<'a> {
    if machine.nvme.is_empty() {
        return MachineDisks { of: None, disks: Ok(Vec::new()) };
    }
    for target in candidates(known, &machine.nvme).0 {
        let identity = HostIdentity::find(tree, Some(&target.host));
        match query_addresses(
            machine,
            &Initiator { host: &identity, key: Some(&target.tls), chap: None },
        ) {
            Err(QueryError::KeyRequired) => {}
            // A server without TLS ends the connection.
            Err(QueryError::Protocol(_)) if machine.keyed != Some(true) => {}
            disks => return MachineDisks { of: Some(target), disks },
        }
    }
    let here = machine.nvme.iter().all(TargetAddr::is_loopback);
    let refusal = match machine.keyed {
        Some(true) => Some(QueryError::KeyRequired),
        _ if known.is_empty() || here || insecure => None,
        _ => Some(QueryError::NoKeyAccepted),
    };
    let identity = HostIdentity::find(tree, None);
    let clear = || query_addresses(machine, &Initiator { host: &identity, key: None, chap: None });
    MachineDisks { of: None, disks: refusal.map_or_else(clear, Err) }
}

/// Asks at the first of its addresses that can be reached.
fn query_addresses(machine: &Machine, initiator: &Initiator<'_>) -> Result<Vec<Disk>, QueryError> {
    let mut last = QueryError::Unreachable("it has no address".to_owned());
    for place in &machine.nvme {
        match query::list_disks(place, initiator, true) {
            Err(refusal @ QueryError::Unreachable(_)) => last = refusal,
            query_machine => return query_machine,
        }
    }
    Err(last)
}
