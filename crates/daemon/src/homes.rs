//! Finds the home directories of systemd-homed on this machine that can be lent: files in `/home`, and disks that
//! hold one and nothing else.

mod space;

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

/// Why a home is left out.
#[derive(Debug)]
struct Note {
    /// `None` if it is not known whose home it is.
    user: Option<String>,
    text: String,
}

/// Opens the homes of `users`, or all homes of this machine if it is empty. `writes` returns where what hosts write to
/// the export of that name goes. Returns the homes, and notes about them and about those that are left out.
///
/// # Errors
/// Fails if one of `users` has no home that can be lent, if none is found for an empty list, and if a user has several.
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
            Ok(lent) if is_wanted(user_of(&lent)) => match second(&lent_disks, &lent)? {
                None => lent_disks.push(lent),
                Some(text) => notes.push(Note { user: None, text }),
            },
            Ok(_) => {}
            Err(failure) if user.is_some() && !users.is_empty() => return Err(failure),
            Err(failure) => notes.push(Note { user: user.clone(), text: failure.to_string() }),
        }
    }
    let is_lent = |user: &str| lent_disks.iter().any(|lent| user_of(lent) == user);
    let others = found.others.iter().filter(|(user, _)| is_wanted(user) && !is_lent(user));
    notes.extend(others.map(|(user, why)| Note {
        user: Some(user.clone()),
        text: format!("the home of {user} is not lent: {why}"),
    }));
    if let Some(missing) = users.iter().find(|user| !is_lent(user)) {
        return Err(Failure::new(missing_text(missing, &notes)));
    }
    let mut notes: Vec<String> = notes.into_iter().map(|note| note.text).collect();
    if lent_disks.is_empty() {
        return Err(Failure::new(match notes.is_empty() {
            true => "there is no home of systemd-homed on this machine: no /home/*.home, and no disk that is one".to_owned(),
            false => notes.join("; "),
        }));
    }
    notes.extend(space::notes(&lent_disks));
    Ok((lent_disks, notes))
}

/// Returns why the home of a user is not lent.
fn missing_text(user: &str, notes: &[Note]) -> String {
    let about = |whose: Option<&str>| {
        let notes = notes.iter().filter(move |note| note.user.as_deref() == whose);
        notes.map(|note| note.text.as_str()).collect::<Vec<&str>>()
    };
    let known = about(Some(user));
    if !known.is_empty() {
        return known.join("; ");
    }
    let none = format!(
        "there is no home of {user} on this machine: no /home/{user}.home, and no disk that is one"
    );
    // One of the disks that could not be opened may be it.
    [&[none.as_str()][..], &about(None)].concat().join("; ")
}

/// Checks that a user has no home yet. Returns a note if it is a copy of that one, which is left out.
///
/// # Errors
/// Fails if it is another home of the user: names of exports and access rules say no more than the user.
fn second(lent_disks: &[LentDisk], lent: &LentDisk) -> Result<Option<String>, Failure> {
    let user = user_of(lent);
    let Some(first) = lent_disks.iter().find(|other| user_of(other) == user) else {
        return Ok(None);
    };
    let (first, second, is_copy) = (
        &first.export.name,
        &lent.export.name,
        first.export.identity.uuid == lent.export.identity.uuid,
    );
    match is_copy {
        true => {
            Ok(Some(format!("{second} is not lent: it is a copy of {first}, the home of {user}")))
        }
        false => Err(Failure::new(format!(
            "{user} has two homes, {first} and {second}, and only one can be lent: move the file out of /home, or unplug the disk"
        ))),
    }
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

    use crate::lend::Opener;
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
            opener: Opener::default(),
        }
    }

    fn refused(options: &LendOptions, users: &[&str]) -> String {
        let users: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        open(options, &users, |_| Writes::ToDisk).unwrap_err().to_string()
    }

    fn lent(path: &str, user: &str, uuid: u8) -> LentDisk {
        let identity = export::Identity { uuid: [uuid; 16], ..export::Identity::default() };
        let mut export = testkit::export(path, path, identity, (512, 512), 512);
        export.home = Some(export::Home { user: user.to_owned(), signing_key: None });
        LentDisk::new(std::sync::Arc::new(export), None)
    }

    #[test]
    fn second_home_of_a_user_is_refused_and_a_copy_left_out() {
        let lent_disks = [lent("/home/alice.home", "alice", 1)];
        let second = |path: &str, user: &str, uuid| second(&lent_disks, &lent(path, user, uuid));
        assert_eq!(second("/home/bob.home", "bob", 2).unwrap(), None);
        let note = second("/dev/sdb", "alice", 1).unwrap().unwrap();
        assert!(note.contains("/dev/sdb is not lent: it is a copy of /home/alice.home"), "{note}");
        let refusal = second("/dev/sdb", "alice", 2).unwrap_err().to_string();
        assert!(refusal.contains("/home/alice.home and /dev/sdb"), "{refusal}");
    }

    #[test]
    fn missing_home_is_explained_by_its_own_notes() {
        let note = |user: Option<&str>, text: &str| Note {
            user: user.map(str::to_owned),
            text: text.to_owned(),
        };
        let notes = [
            note(Some("alice"), "it is alicent's"),
            note(None, "/dev/sdb is in use"),
            note(Some("al"), "no disk"),
        ];
        assert_eq!(missing_text("al", &notes), "no disk");
        let text = missing_text("lice", &notes);
        assert!(text.starts_with("there is no home of lice"), "{text}");
        assert!(text.ends_with("; /dev/sdb is in use"), "{text}");
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
