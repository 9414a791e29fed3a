//! `storagetm attach` and `storagetm detach`: attaches disks of another machine with the kernel's
//! NVMe/TCP host driver, and detaches them.

mod detach;
mod home;
mod kernel;
mod target;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use console::{decimal, escape_unprintable};
use linux::fabrics::{Connection, FabricsError, load};
use linux::tree::Tree;
use nvme::auth::{Credentials, chap};

use crate::key::{print, print_json};
use crate::options::attach::{Attach, Detach};
use crate::{pair, tls_agent};
use detach::Detached;
use failure::Failure;
use home::ForeignHome;
pub(crate) use kernel::Attached;
use keys::key::{Key, KeyKind};
use keys::keyring;
use keys::record::Allowed;
use keys::store::read_key;
use keys::target::Target;
use remote::machine;
use remote::query::Disk;
use target::{FoundTarget, Resolver, TargetSpec, interface};

/// Attaches disks of another machine with the kernel's NVMe/TCP host driver.
///
/// # Errors
/// Fails if a disk cannot be attached; the disks before it stay attached. Exit status 3 if the
/// other machine refused.
pub(crate) fn attach(options: &Attach) -> Result<(), Failure> {
    let Outcome { attached, failed, home } =
        attach_chosen(options).map_err(|error| error.failure)?;
    print_attached(&attached, options.json)?;
    if let (Some(home), [attached]) = (home, attached.as_slice()) {
        let lines = home.prepare(&Tree::machine(), attached, options.yes)?;
        let text: String = lines.iter().map(|line| escape_unprintable(line, true) + "\n").collect();
        let _ = io::stderr().write_all(text.as_bytes());
    }
    failed.map_or(Ok(()), Err)
}

/// What could not be found, or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The options, the keys or the driver of this machine.
    Setup,
    /// The other machine does not answer, or refused this host.
    Machine,
    /// It lends no such disk.
    Disk,
}

/// Why no disk was attached.
#[derive(Debug)]
pub(crate) struct AttachError {
    pub(crate) stage: Stage,
    pub(crate) failure: Failure,
}

impl Stage {
    fn failed(self, failure: Failure) -> AttachError {
        AttachError { stage: self, failure }
    }
}

/// What was attached.
struct Outcome {
    attached: Vec<Attached>,
    /// The failure of the last disk that could not be attached.
    failed: Option<Failure>,
    /// The home directory that was asked for.
    home: Option<ForeignHome>,
}

/// Attaches disks. Also returns the failure of the last disk that could not be attached.
///
/// # Errors
/// Fails if the other machine, the disk, or what attaching takes on this machine is not there.
pub(crate) fn attach_disks(
    options: &Attach,
) -> Result<(Vec<Attached>, Option<Failure>), AttachError> {
    attach_chosen(options).map(|Outcome { attached, failed, .. }| (attached, failed))
}

fn attach_chosen(options: &Attach) -> Result<Outcome, AttachError> {
    let setup = |failure| Stage::Setup.failed(failure);
    let target = TargetSpec::parse(&options.target).map_err(setup)?;
    if options.all && target.disk.is_some() {
        return Err(setup(Failure::usage("say either which disk, or --all")));
    }
    let tree = Tree::machine();
    let own = read_chap_key(options.chap_key.as_deref()).map_err(setup)?;
    let other = read_chap_key(options.chap_controller_key.as_deref()).map_err(setup)?;
    let known = machine::targets(options.keys.as_deref()).map_err(setup)?;
    load(&tree).map_err(|error| setup(Failure::new(error)))?;
    let search = Resolver {
        tree: &tree,
        options,
        known: &known,
        chap: credentials(own.as_ref(), other.as_ref()).map_err(setup)?,
        identify: options.home.is_some(),
    };
    let there = search.reach(&target).map_err(|failure| Stage::Machine.failed(failure))?;
    let chosen = match &options.home {
        Some(user) => home::choose(&target, &there, user).map(|home| vec![home]),
        None => target.choose(&there, options.all),
    };
    let chosen = chosen.map_err(|failure| Stage::Disk.failed(failure))?;
    insert_keys(&tree, &there, &chosen).map_err(setup)?;
    let request = AttachRequest {
        tree: &tree,
        options,
        there: &there,
        own: own.as_ref(),
        other: other.as_ref(),
    };
    let (attached, failed) = try_each(&chosen, |disk| request.attach(disk));
    let home = options.home.as_ref().and_then(|_| ForeignHome::of(&there, chosen.first()?));
    Ok(Outcome { attached, failed, home })
}

/// A disk that another machine lends to this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LentDisk {
    /// Its name there; if it has none, the last part of its NQN.
    pub(crate) name: String,
    pub(crate) nqn: String,
    /// Size in bytes and access, if the machine said them.
    pub(crate) size: Option<(u64, Allowed)>,
    /// Whether there is a key for its machine, and so TLS.
    pub(crate) encrypted: bool,
}

/// Returns the disks that a machine lends to this one. Attaches none.
///
/// # Errors
/// Fails if the machine does not answer, or refuses this host.
pub(crate) fn lent_disks(options: &Attach) -> Result<Vec<LentDisk>, Failure> {
    let target = TargetSpec::parse(&options.target)?;
    let (tree, known) = (Tree::machine(), machine::targets(options.keys.as_deref())?);
    let search = Resolver { tree: &tree, options, known: &known, chap: None, identify: true };
    let there = search.reach(&target)?;
    Ok(there.disks.iter().map(|disk| lent_disk(disk, there.target)).collect())
}

fn lent_disk(disk: &Disk, target: Option<&Target>) -> LentDisk {
    let last = || disk.nqn.rsplit(':').next().unwrap_or(&disk.nqn);
    let name = machine::disk_name(disk, target).map_or_else(last, |name| {
        // A path, as machines said it when they were paired.
        name.rsplit('/').next().unwrap_or(name)
    });
    LentDisk {
        name: name.to_owned(),
        nqn: disk.nqn.clone(),
        size: disk.size,
        encrypted: target.is_some(),
    }
}

/// The parameters that all disks of one target share.
struct AttachRequest<'a> {
    tree: &'a Tree,
    options: &'a Attach,
    there: &'a FoundTarget<'a>,
    own: Option<&'a Key>,
    other: Option<&'a Key>,
}

impl AttachRequest<'_> {
    fn attach(&self, disk: &Disk) -> Result<Attached, Failure> {
        let interface = interface(&self.there.place, disk.at);
        let connection = Connection {
            address: disk.at.ip(),
            port: disk.at.port(),
            interface: interface.as_deref(),
            subsystem: &disk.nqn,
            host: &self.there.identity.nqn,
            host_id: &self.there.identity.id_text(),
            tls: self.there.target.is_some(),
            chap: self.own.map(|key| key.text().bytes()),
            chap_controller: self.other.map(|key| key.text().bytes()),
            digests: self.options.digests,
            loss_timeout: self.options.patience,
        };
        let mut attached = kernel::attach(self.tree, &connection);
        if matches!(attached, Err(FabricsError::Handshake)) {
            tls_agent::start(self.tree, self.options.keys.as_deref()).map_err(|failure| {
                Failure::new(format!("{} is not attached: {failure}", disk.nqn))
            })?;
            attached = kernel::attach(self.tree, &connection);
        }
        attached.map_err(|error| {
            let sentence = format!("{} is not attached: {error}", disk.nqn);
            match error {
                FabricsError::AccessDenied | FabricsError::Key => Failure::refused(sentence),
                _ => Failure::new(sentence),
            }
        })
    }
}

/// Puts the PSKs into the kernel's keyring, if the target has a key.
fn insert_keys(tree: &Tree, there: &FoundTarget<'_>, disks: &[Disk]) -> Result<(), Failure> {
    let Some(target) = there.target else { return Ok(()) };
    let names: Vec<&str> = disks.iter().map(|disk| disk.nqn.as_str()).collect();
    let psks = keyring::psks(target.tls.text(), &there.identity.nqn, &names)?;
    pair::insert(tree, &psks).map_err(Failure::new)
}

/// Reads a DH-HMAC-CHAP secret from a file.
fn read_chap_key(path: Option<&Path>) -> Result<Option<Key>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let what = path.display().to_string();
    let file = File::open(path)
        .map_err(|error| Failure::new(format!("{what} cannot be read: {error}")))?;
    let key = read_key(file, &what)?;
    if key.kind() != KeyKind::Chap {
        return Err(Failure::usage(format!("{what} holds no secret for DH-HMAC-CHAP (DHHC-1:…)")));
    }
    Ok(Some(key))
}

/// Returns the DH-HMAC-CHAP credentials for the discovery connection.
fn credentials(
    own: Option<&Key>,
    other: Option<&Key>,
) -> Result<Option<Arc<Credentials>>, Failure> {
    let parse = |key: &Key| chap::Key::parse(key.text().bytes()).map_err(Failure::new);
    let Some(own) = own else { return Ok(None) };
    let controller = other.map(parse).transpose()?;
    Ok(Some(Arc::new(Credentials { controller, ..Credentials::new(parse(own)?) })))
}

/// Applies `done` to each element. Prints all failures but the last, which is returned: a failure
/// does not stop the rest.
fn try_each<T, R>(all: &[T], done: impl Fn(&T) -> Result<R, Failure>) -> (Vec<R>, Option<Failure>) {
    let (mut well, mut failed) = (Vec::new(), None::<Failure>);
    for one in all {
        match done(one) {
            Ok(result) => well.push(result),
            Err(failure) => {
                if let Some(before) = failed.replace(failure) {
                    let _ = writeln!(io::stderr(), "storagetm: {before}");
                }
            }
        }
    }
    (well, failed)
}

fn print_attached(attached: &[Attached], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&attached);
    }
    let text: String = attached
        .iter()
        .flat_map(lines)
        .map(|line| escape_unprintable(&line, true) + "\n")
        .collect();
    print(text.as_bytes())
}

fn lines(attached: &Attached) -> Vec<String> {
    let was = if attached.already { ", attached already" } else { "" };
    if attached.devices.is_empty() {
        return vec![format!(
            "{} is connected as {}{was}, but its disk has not come yet: `dmesg` says what the kernel waits for",
            attached.nqn, attached.controller
        )];
    }
    let line = |device: &kernel::Device| {
        let access = match device.access {
            Allowed::ReadOnly => "read-only",
            Allowed::Writable => "writable",
        };
        format!("{}: {}, {access}{was} ({})", device.path, decimal(device.bytes), attached.nqn)
    };
    attached.devices.iter().map(line).collect()
}

/// Detaches disks.
///
/// # Errors
/// Fails if one is in use (then nothing is detached), or if the kernel keeps one.
pub(crate) fn detach(options: &Detach) -> Result<(), Failure> {
    let tree = Tree::machine();
    let known = machine::readable_targets(options.keys.as_deref())?;
    let detached = detach_matching(&tree, options.what.as_deref(), options.force, &known)?;
    if options.json {
        return print_json(&detached);
    }
    print(summary(&detached).as_bytes())
}

/// Returns a line for each connection that has ended.
fn summary(detached: &[Detached]) -> String {
    if detached.is_empty() {
        return "nothing was attached by NVMe/TCP\n".to_owned();
    }
    detached.iter().map(|it| escape_unprintable(&detached_line(it), true) + "\n").collect()
}

fn detach_matching(
    tree: &Tree,
    what: Option<&str>,
    force: bool,
    known: &[Target],
) -> Result<Vec<Detached>, Failure> {
    let leaving = detach::matching(tree, what, known)?;
    if !force {
        let disks = detach::disks_that_go(tree, &leaving);
        let homes = home::active(tree, &disks);
        // Homes are deactivated only if nothing else prevents that all of it is detached.
        let (of_homes, others): (Vec<String>, Vec<String>) =
            disks.into_iter().partition(|disk| homes.iter().any(|home| home.disk == *disk));
        detach::check_unused(tree, &others)?;
        home::deactivate(&homes)?;
        detach::check_unused(tree, &of_homes)?;
    }
    detach::release(tree, leaving)
}

fn detached_line(detached: &Detached) -> String {
    match detached.devices.is_empty() {
        true => format!("{} is detached ({})", detached.controller, detached.nqn),
        false => format!("{} is detached ({})", detached.devices.join(", "), detached.nqn),
    }
}

#[cfg(test)]
mod test;
