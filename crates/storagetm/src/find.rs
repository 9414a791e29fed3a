//! `storagetm find`: lists targets on the local network and their disks.

mod report;

use std::time::Duration;

use linux::tree::Tree;

use crate::key::{print, print_json};
use crate::options::find::Find;
use failure::Failure;
use keys::target::Target;
use protocol::Protocol;
use remote::address::TargetAddr;
use remote::host_identity::HostIdentity;
use remote::key_selection::candidates;
use remote::machine::{self, Machine, machines};
use remote::query::{self, Disk, Initiator, QueryError};
use report::Row;

/// Maximum number of machines that are queried, and of parallel queries.
const MAX_MACHINES: usize = 64;
const MAX_PARALLEL: usize = 16;

/// Browses for machines, queries each, and prints the result.
///
/// # Errors
/// Fails if multicast DNS is not available.
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

/// Queries the machines in parallel, so that a slow one does not delay the others.
fn query_all(tree: &Tree, machines: &[Machine], known: &[Target], insecure: bool) -> Vec<Row> {
    std::thread::scope(|scope| {
        let query_machine = move |machine| query_machine(tree, machine, known, insecure);
        let ask = |machine| scope.spawn(move || Row::new(machine, &query_machine(machine)));
        let asked: Vec<_> = machines.iter().map(ask).collect();
        // A thread that panicked must not lose the results of the others.
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}

/// The answer of a machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineDisks<'a> {
    /// The stored target, if this machine was paired with it.
    target: Option<&'a Target>,
    disks: Result<Vec<Disk>, QueryError>,
}

/// Queries a machine with the keys that may be for it. In the clear only if this machine has no
/// keys, or with `--insecure`.
fn query_machine<'a>(
    tree: &Tree,
    machine: &Machine,
    known: &'a [Target],
    insecure: bool,
) -> MachineDisks<'a> {
    let nvme = machine.services(Protocol::Nvme);
    if nvme.is_empty() {
        return MachineDisks { target: None, disks: Ok(Vec::new()) };
    }
    let (targets, paired_here) = candidates(known, nvme);
    for target in targets {
        let identity = HostIdentity::find(tree, Some(&target.host));
        match query_addresses(
            nvme,
            &Initiator { host: &identity, key: Some(&target.tls), chap: None },
        ) {
            Err(QueryError::KeyRequired) => {}
            // A server without TLS closes the connection.
            Err(QueryError::Protocol(_)) if machine.keyed != Some(true) => {}
            disks => return MachineDisks { target: Some(target), disks },
        }
    }
    let here = nvme.iter().all(TargetAddr::is_loopback);
    let refusal = match machine.keyed {
        Some(true) => Some(QueryError::KeyRequired),
        _ if known.is_empty() || here || (insecure && paired_here == 0) => None,
        _ => Some(QueryError::NoKeyAccepted),
    };
    let identity = HostIdentity::find(tree, None);
    let clear = || query_addresses(nvme, &Initiator { host: &identity, key: None, chap: None });
    MachineDisks { target: None, disks: refusal.map_or_else(clear, Err) }
}

/// Queries the first reachable address.
fn query_addresses(
    nvme: &[TargetAddr],
    initiator: &Initiator<'_>,
) -> Result<Vec<Disk>, QueryError> {
    let mut last = QueryError::Unreachable("it has no address".to_owned());
    for place in nvme {
        match query::list_disks(place, initiator, true) {
            Err(refusal @ QueryError::Unreachable(_)) => last = refusal,
            query_machine => return query_machine,
        }
    }
    Err(last)
}
