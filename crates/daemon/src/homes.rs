//! Finds the home directories of systemd-homed on this machine that can be lent: files in `/home`, and disks that
//! hold one and nothing else.

use std::path::{Path, PathBuf};

use failure::Failure;
use linux::block::Disk;
use linux::in_use::{Machine, Probe};
use linux::signature::Kind;
use linux::{home, homed};

use crate::examine::{LIMIT, examine};
use crate::lend::{LendOptions, LendRequest, LentDisk, Writes, home_name};

/// The homes that were found.
#[derive(Debug, Default)]
pub struct Found {
    /// Where homes may be, with the user if the name of the file says it.
    places: Vec<(Option<String>, PathBuf)>,
    /// Users whose homes are no disks, and why.
    others: Vec<(String, String)>,
}

/// Opens the homes of `users`, or all homes of this machine if it is empty. `writes` returns where what hosts write to
/// the export of that name goes. Returns the homes, and notes about those that are left out.
///
/// # Errors
/// Fails if one of `users` has no home that can be lent, and if none is found for an empty list.
pub fn open(
    options: &LendOptions,
    users: &[String],
    writes: impl Fn(&str) -> Writes,
) -> Result<(Vec<LentDisk>, Vec<String>), Failure> {
    let found = Found::on(options);
    let (mut lent_disks, mut notes) = (Vec::<LentDisk>::new(), Vec::new());
    let is_wanted = |user: &str| users.is_empty() || users.iter().any(|name| name == user);
    for (user, path) in &found.places {
        if user.as_deref().is_some_and(|user| !is_wanted(user)) {
            continue;
        }
        match lend(options, user.as_deref(), path, &writes) {
            Ok(lent) if is_wanted(user_of(&lent)) => lent_disks.push(lent),
            Ok(_) => {}
            Err(failure) if user.is_some() && !users.is_empty() => return Err(failure),
            Err(failure) => notes.push(failure.to_string()),
        }
    }
    let is_lent = |user: &str| lent_disks.iter().any(|lent| user_of(lent) == user);
    let others = found.others.iter().filter(|(user, _)| is_wanted(user) && !is_lent(user));
    let others = others.map(|(user, why)| format!("the home of {user} is not lent: {why}"));
    notes.extend(others);
    if let Some(missing) = users.iter().find(|user| !is_lent(user)) {
        notes.retain(|note| note.contains(missing.as_str()));
        let reason = notes.pop().unwrap_or_else(|| {
            format!("there is no home of {missing} on this machine: no /home/{missing}.home, and no disk that is one")
        });
        return Err(Failure::new(reason));
    }
    if lent_disks.is_empty() {
        return Err(Failure::new(match notes.is_empty() {
            true => "there is no home of systemd-homed on this machine: no /home/*.home, and no disk that is one".to_owned(),
            false => notes.join("; "),
        }));
    }
    Ok((lent_disks, notes))
}

fn user_of(lent: &LentDisk) -> &str {
    lent.export.home.as_ref().map_or("", |home| &home.user)
}

/// Opens a home. The user of a disk is only known when it is open, and so is whether it gets an overlay.
fn lend(
    options: &LendOptions,
    user: Option<&str>,
    path: &Path,
    writes: impl Fn(&str) -> Writes,
) -> Result<LentDisk, Failure> {
    let wanted = user.map_or(Writes::ToDisk, |user| writes(&home_name(user)));
    let lent = options.lend(&LendRequest::home(path.to_owned(), wanted))?;
    let found = user_of(&lent).to_owned();
    match user {
        Some(user) if user != found => Err(Failure::new(format!(
            "{} is not lent: it is the home of {found}, not of {user}",
            path.display()
        ))),
        Some(_) => Ok(lent),
        None if writes(&home_name(&found)) == wanted => Ok(lent),
        None => {
            drop(lent);
            options.lend(&LendRequest::home(path.to_owned(), writes(&home_name(&found))))
        }
    }
}

impl Found {
    /// Looks for homes on this machine. Disks that cannot be examined are left out.
    fn on(options: &LendOptions) -> Self {
        let listing = homed::list(&options.tree);
        let files = listing.files.into_iter().map(|(user, path)| (Some(user), path));
        let others = listing.others.into_iter().map(|(user, why)| (user, why.to_owned()));
        let mut found = Self { places: files.collect(), others: others.collect() };
        if let Ok(machine) = options.look() {
            found.add_disks(options, &machine);
        }
        found
    }

    fn add_disks(&mut self, options: &LendOptions, machine: &Machine) {
        let devices = machine.disks.iter().filter(|disk| disk.bytes > 0);
        let devices = devices.filter(|disk| !machine.examined_for(disk).is_empty());
        let findings = examine(&options.tree, devices.clone(), |_| LIMIT);
        for disk in devices {
            let Ok(contents) = findings.contents(disk) else { continue };
            let mark = contents.signatures.iter().find(|mark| mark.kind == Kind::Home);
            let holds_one = contents.table.as_ref().is_some_and(home::may_be);
            let path = options.tree.path(&disk.node);
            match (disk.is_partition(), mark) {
                (false, Some(_)) => self.places.push((None, path)),
                (false, None) if holds_one => self.places.push((None, path)),
                (true, Some(mark)) if !is_alone(machine, disk, &findings) => {
                    self.add_partition(mark.label.as_deref().unwrap_or_default(), &path);
                }
                _ => {}
            }
        }
    }

    fn add_partition(&mut self, label: &str, path: &Path) {
        let user = label.split('@').next().filter(|user| home::is_user_name(user));
        self.others.extend(user.map(|user| {
            let why = format!(
                "it is the partition {} beside others, and systemd-homed of another machine finds it only with its partition \
                 table: lend the whole disk by name",
                path.display()
            );
            (user.to_owned(), why)
        }));
    }
}

/// Returns whether a partition is the only one of its disk, which is then lent as a whole.
fn is_alone(machine: &Machine, disk: &Disk, findings: &dyn Probe) -> bool {
    let whole = machine.disk(disk.whole()).and_then(|whole| findings.contents(whole).ok());
    whole.and_then(|contents| contents.table).is_some_and(|table| home::may_be(&table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::overlay::OverlayOptions;
    use crate::reported::ReportedIdentity;
    use linux::identity::MachineId;
    use linux::tree::Tree;
    use testkit::Scratch;

    fn options(folder: &Scratch) -> LendOptions {
        fs::create_dir_all(folder.0.join("home/bob.homedir")).unwrap();
        LendOptions {
            tree: Tree::at(&folder.0),
            base: None,
            allow_in_use: false,
            force: false,
            removable: false,
            overlay: OverlayOptions { limit: 1 << 20, is_shared: false, dir: None },
            machine: MachineId { bytes: [1; 16], stable: true },
            at_rest: false,
            reported: ReportedIdentity::default(),
        }
    }

    fn refused(options: &LendOptions, users: &[&str]) -> String {
        let users: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        open(options, &users, |_| Writes::ToDisk).unwrap_err().to_string()
    }

    #[test]
    fn home_that_cannot_be_lent_is_named_with_the_reason() {
        let folder = Scratch::new();
        let options = options(&folder);
        assert!(refused(&options, &["carol"]).contains("there is no home of carol"));
        assert!(refused(&options, &["bob"]).contains("bob is not lent: it is a directory"));
        assert!(refused(&options, &[]).contains("bob is not lent: it is a directory"));
        fs::remove_dir(folder.0.join("home/bob.homedir")).unwrap();
        assert!(refused(&options, &[]).contains("there is no home of systemd-homed"));
    }
}
