//! `storagetm find`: which machines nearby lend disks, and which disks. It knows no disk of this machine.

pub(crate) mod ask;
mod line;
pub(crate) mod machine;
mod outcome;
pub(crate) mod who;

use std::time::Duration;

use linux::tree::Tree;

use crate::announce;
use crate::failure::Failure;
use crate::key::{say, say_json};
use crate::options::find::Find;
use crate::store::target::Target;
use ask::{Asking, Disk, Refusal};
use machine::{Machine, likely, machines};
use outcome::Row;
use who::Who;

/// Machines that are asked at most, and at once.
const MOST: usize = 64;
const AT_ONCE: usize = 16;

/// Looks for machines, asks each, and says what came of it.
///
/// # Errors
/// The network cannot be asked.
pub(crate) fn find(options: &Find) -> Result<(), Failure> {
    let known = machine::known(options.keys.as_deref())?;
    let found = announce::browse(options.mdns_port, Duration::from_secs(options.timeout))?;
    let mut machines = machines(found);
    machines.truncate(MOST);
    let tree = Tree::machine();
    let rows: Vec<Row> =
        machines.chunks(AT_ONCE).flat_map(|some| ask_all(&tree, some, &known)).collect();
    if options.json { say_json(&rows) } else { say(outcome::text(&rows).as_bytes()) }
}

/// Asks them at the same time; one that is slow holds up nobody for long.
fn ask_all(tree: &Tree, machines: &[Machine], known: &[Target]) -> Vec<Row> {
    std::thread::scope(|scope| {
        let ask = |machine| scope.spawn(move || Row::new(machine, &answer(tree, machine, known)));
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
    disks: Result<Vec<Disk>, Refusal>,
}

fn answer<'a>(tree: &Tree, machine: &Machine, known: &'a [Target]) -> Answer<'a> {
    if machine.nvme.is_empty() {
        return Answer { of: None, disks: Ok(Vec::new()) };
    }
    if machine.keyed != Some(true) {
        let who = Who::find(tree, None);
        return Answer {
            of: None,
            disks: at_each(machine, &Asking { who: &who, key: None, proof: None }),
        };
    }
    for target in likely(known, &machine.nvme) {
        let who = Who::find(tree, Some(&target.host));
        match at_each(machine, &Asking { who: &who, key: Some(&target.tls), proof: None }) {
            Err(Refusal::Key) => {}
            disks => return Answer { of: Some(target), disks },
        }
    }
    Answer { of: None, disks: Err(Refusal::Key) }
}

/// Asks at the first of its addresses that can be reached.
fn at_each(machine: &Machine, asking: &Asking<'_>) -> Result<Vec<Disk>, Refusal> {
    let mut last = Refusal::Unreachable("it has no address".to_owned());
    for place in &machine.nvme {
        match ask::disks(place, asking, true) {
            Err(refusal @ Refusal::Unreachable(_)) => last = refusal,
            answer => return answer,
        }
    }
    Err(last)
}
