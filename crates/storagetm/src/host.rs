//! `storagetm host`: access rules of hosts. Prints no secrets.

use std::path::Path;
use std::time::SystemTime;

use console::escape_unprintable;
use protocol::commands::quoted;
use serde::Serialize;

use crate::key::{print, print_json};
use crate::options::host::{Add, Host as Options, Remove, Task};
use crate::table::table;
use failure::Failure;
use keys::date::Timestamp;
use keys::key::{Key, KeyKind};
use keys::name::Name;
use keys::record::{Allowed, HostRecord, Rule, check_id};
use keys::store::Store;

/// Runs the subcommand.
///
/// # Errors
/// Fails with a sentence.
pub(crate) fn host(options: &Options) -> Result<(), Failure> {
    let store = Store::open(&Store::locate(options.keys.as_deref())?)?;
    match &options.task {
        Task::Add(add) => self::add(&store, add, options.keys.as_deref(), SystemTime::now()),
        Task::Remove(options) => remove(&store, options),
        Task::List(options) => list(&store, options.json, SystemTime::now()),
    }
}

fn add(store: &Store, options: &Add, keys: Option<&Path>, now: SystemTime) -> Result<(), Failure> {
    check_id(&options.id).map_err(Failure::usage)?;
    let known = store.host_by_id(&options.id);
    let name = name(store, options, known.as_ref())?;
    let before = known.as_ref().map(|known| store.host(known)).transpose()?;
    check_key_options(options)?;
    let rules = match &before {
        Some(before) => changed_rules(options, before, now)?,
        None => rules(options, now)?,
    };
    let mut record = HostRecord { rules, ..record_without_rules(options, before, now) };
    assign_keys(store, &mut record, options)?;
    if !record.has_key() {
        make_key(store, &mut record, &name)?;
    }
    store.put_host(&name, &record, known.as_ref())?;
    print(report(&name, &record, keys).as_bytes())
}

/// Checks that the options of keys are for hosts of this kind.
fn check_key_options(options: &Add) -> Result<(), Failure> {
    let is_iscsi = HostRecord::new(options.id.clone()).is_iscsi();
    if is_iscsi && (options.tls_key.is_some() || options.tls_compat) {
        return Err(Failure::usage(
            "an iSCSI initiator authenticates by CHAP: --tls-key and --tls-compat are not for it",
        ));
    }
    if options.chap_md5 && !is_iscsi {
        return Err(Failure::usage("--chap-md5 is for iSCSI initiators (iqn.…, eui.…, naa.…)"));
    }
    Ok(())
}

/// Chooses the name of the host. A known host, or a name in use, requires `--replace`.
fn name(store: &Store, options: &Add, known: Option<&Name>) -> Result<Name, Failure> {
    if let Some(known) = known.filter(|_| !options.replace) {
        return Err(Failure::new(format!(
            "{} is authorized already, as {known}: add --replace to change its access",
            options.id
        )));
    }
    let made = || {
        known
            .cloned()
            .unwrap_or_else(|| Name::from_id(&options.id).make_unique(|n| store.has_host(n)))
    };
    let name = options.name.clone().unwrap_or_else(made);
    if store.has_host(&name) && known != Some(&name) {
        return Err(Failure::new(format!(
            "another host is called {name} already: choose another --name"
        )));
    }
    Ok(name)
}

/// Returns a record with the host's keys and without rules.
fn record_without_rules(options: &Add, before: Option<HostRecord>, now: SystemTime) -> HostRecord {
    let new = HostRecord::new(options.id.clone());
    let keeps_compat = before.as_ref().is_some_and(|before| before.tls_compat);
    let tls_compat = options.tls_compat || (keeps_compat && options.tls_key.is_none());
    let keeps_md5 = before.as_ref().is_some_and(|before| before.chap_md5);
    let chap_md5 = options.chap_md5 || (keeps_md5 && options.chap_key.is_none());
    HostRecord { tls_compat, chap_md5, added: Some(Timestamp::new(now)), ..before.unwrap_or(new) }
}

/// Returns the rules of a known host: those that the options name; those that it had, if they name only
/// its name or its keys.
///
/// # Errors
/// Fails if the options name nothing to change, or rules without disks for a host that may not have all.
fn changed_rules(
    options: &Add,
    before: &HostRecord,
    now: SystemTime,
) -> Result<Vec<Rule>, Failure> {
    let names_disks = options.all_disks || !options.disk.is_empty();
    let names_rules = names_disks || options.writable || options.expires.is_some();
    let names_keys = options.tls_key.is_some() || options.chap_key.is_some();
    let names_modes = options.tls_compat || options.chap_md5;
    if !names_rules && (names_keys || names_modes || options.name.is_some()) {
        return Ok(before.rules.clone());
    }
    if !names_rules {
        return Err(Failure::usage(
            "--replace names nothing to change: name the disks that the host may have from now on (--disk, or \
             --all-disks), a key, or another --name",
        ));
    }
    let has_all = !before.rules.is_empty() && before.rules.iter().all(|rule| rule.disk.is_none());
    if !names_disks && !has_all {
        return Err(Failure::usage(
            "the rules of this host are for some disks only, and --replace makes new ones: name those disks again by \
             --disk, or all by --all-disks",
        ));
    }
    rules(options, now)
}

/// Returns the rules that the options name; without disks, one for all of them.
fn rules(options: &Add, now: SystemTime) -> Result<Vec<Rule>, Failure> {
    let access = if options.writable { Allowed::Writable } else { Allowed::ReadOnly };
    let late = || Failure::usage("--expires is over already: name a time to come");
    let expires = options.expires.map(|when| when.from(now).ok_or_else(late)).transpose()?;
    if options.disk.iter().any(String::is_empty) {
        return Err(Failure::usage("--disk needs a disk's name, NQN or serial number"));
    }
    let rule = |disk| Rule { disk, access, expires };
    if options.disk.is_empty() {
        return Ok(vec![rule(None)]);
    }
    Ok(options.disk.iter().map(|disk| rule(Some(disk.clone()))).collect())
}

/// Replaces the host's keys by the named ones.
fn assign_keys(store: &Store, record: &mut HostRecord, options: &Add) -> Result<(), Failure> {
    let chap = if record.is_iscsi() { KeyKind::Iscsi } else { KeyKind::Chap };
    let named = [
        (&options.tls_key, &mut record.tls_key, &mut record.tls, KeyKind::Tls),
        (&options.chap_key, &mut record.chap_key, &mut record.chap, chap),
        (
            &options.chap_controller_key,
            &mut record.chap_controller_key,
            &mut record.chap_controller,
            chap,
        ),
    ];
    for (asked, name, inline, kind) in named {
        let Some(asked) = asked else { continue };
        check_kind(store, asked, kind)?;
        *name = Some(asked.clone());
        *inline = None;
    }
    Ok(())
}

fn check_kind(store: &Store, name: &Name, kind: KeyKind) -> Result<(), Failure> {
    let found = store.key(name)?.kind();
    if found == kind {
        return Ok(());
    }
    Err(Failure::new(format!("the key {name} is for {found}, and one for {kind} is needed")))
}

/// Generates a key named after the host: for TLS, or for CHAP of iSCSI.
fn make_key(store: &Store, record: &mut HostRecord, host: &Name) -> Result<(), Failure> {
    let (kind, hash) = match record.is_iscsi() {
        true => (KeyKind::Iscsi, None),
        false => (KeyKind::Tls, Some(nvme::auth::Hash::Sha256)),
    };
    let key = Key::generate(kind, hash).map_err(Failure::new)?;
    let name = host.clone().make_unique(|name| store.has_key(name));
    store.put_key(&name, &key, false)?;
    let field = if record.is_iscsi() { &mut record.chap_key } else { &mut record.tls_key };
    *field = Some(name);
    Ok(())
}

/// Returns what was done and the next steps; `keys` is the state directory if one was named.
fn report(name: &Name, record: &HostRecord, keys: Option<&Path>) -> String {
    let keys = keys
        .map(|keys| escape_unprintable(&quoted(&keys.to_string_lossy()), true))
        .unwrap_or_default();
    let keys = if keys.is_empty() { keys } else { format!(" --keys {keys}") };
    let mut lines = vec![format!("{name} may {}.", access_text(record)), String::new()];
    if let Some(key) = &record.tls_key {
        lines.extend(tls_steps(name, key, record, &keys));
    }
    if let Some(key) = &record.chap_key {
        lines.extend(match record.is_iscsi() {
            true => iscsi_steps(key, record, &keys),
            false => chap_steps(key, &keys),
        });
    }
    lines.join("\n") + "\n"
}

fn access_text(record: &HostRecord) -> String {
    let Some(first) = record.rules.first() else { return "have nothing".to_owned() };
    let disks: Vec<&str> = record.rules.iter().filter_map(|rule| rule.disk.as_deref()).collect();
    let disks =
        if disks.is_empty() { "each disk that is lent".to_owned() } else { disks.join(", ") };
    let verb = match first.access {
        Allowed::ReadOnly => "read",
        Allowed::Writable => "read, and change where it is lent writable,",
    };
    let until = first.expires.map(|expires| format!(" until {}", String::from(expires)));
    escape_unprintable(&format!("{verb} {disks}{}", until.unwrap_or_default()), true)
}

fn tls_steps(name: &Name, key: &Name, record: &HostRecord, keys: &str) -> Vec<String> {
    let is_nqn = |disk: &&str| disk.starts_with("nqn.");
    let disks = record.rules.iter().filter_map(|rule| rule.disk.as_deref()).filter(is_nqn);
    let disks: Vec<String> =
        disks.map(|disk| format!(" --disk {}", escape_unprintable(&quoted(disk), true))).collect();
    let (disks, which) = if disks.is_empty() {
        (
            " --disk NQN".to_owned(),
            "  (NQN is a disk's, as storagetm serve shows it; a --disk for each)",
        )
    } else {
        (disks.concat(), "")
    };
    vec![
        format!("Its key is {key}. Copy what this writes to the host once, over a trusted channel:"),
        format!("  storagetm key export {key} --for-host {name}{disks} --to {name}.keys{keys}"),
        which.to_owned(),
        "At the host, as root, with that file (Linux 6.7 or newer, tlshd running, nvme-cli 2.9 or newer):"
            .to_owned(),
        "  modprobe nvme-tcp".to_owned(),
        format!("  nvme tls-key --import --keyfile {name}.keys"),
        format!("  (nvme-cli 3: nvme keys import --keyfile {name}.keys)"),
        "  then the lines that storagetm serve shows, with --tls".to_owned(),
    ]
    .into_iter()
    .filter(|line| !line.is_empty())
    .collect()
}

fn chap_steps(key: &Name, keys: &str) -> Vec<String> {
    vec![
        format!(
            "For DH-HMAC-CHAP the host needs the text that `storagetm key export {key}{keys}` prints, as"
        ),
        "  \"dhchap_key\" in its /etc/nvme/config.json (nvme-cli 3: \"kxchap-secret\" in its \
         nvme-fabrics.conf)"
            .to_owned(),
    ]
}

/// What Windows, Linux and iPXE need for CHAP. The secret itself is not printed.
fn iscsi_steps(key: &Name, record: &HostRecord, keys: &str) -> Vec<String> {
    let mut lines = vec![
        format!("Its CHAP name is {}, its CHAP secret what this prints:", record.id),
        format!("  storagetm key export {key}{keys}"),
    ];
    if let Some(key) = &record.chap_controller_key {
        lines.push(
            "This machine authenticates to it by the name of the disk's target (in discovery: storagetm), and the secret \
             that this prints:"
                .to_owned(),
        );
        lines.push(format!("  storagetm key export {key}{keys}"));
    }
    if !record.chap_md5 {
        lines.push(format!(
            "Windows and iPXE can authenticate with MD5 only, which is not allowed for this host. To allow it: storagetm \
             host add {} --chap-md5 --replace{keys}",
            record.id
        ));
    }
    lines.extend(
        [
            "At the host, add the name and the secret to the lines that storagetm serve shows. On Windows, to both commands:",
            "  -AuthenticationType ONEWAYCHAP -ChapUsername NAME -ChapSecret SECRET",
            "On Linux (open-iscsi), in /etc/iscsi/iscsid.conf before the discovery, and the same with discovery.sendtargets.auth",
            "in place of node.session.auth:",
            "  node.session.auth.authmethod = CHAP",
            "  node.session.auth.chap_algs = SHA3-256,SHA256,SHA1",
            "  node.session.auth.username = NAME",
            "  node.session.auth.password = SECRET",
        ]
        .map(str::to_owned),
    );
    lines
}

fn remove(store: &Store, options: &Remove) -> Result<(), Failure> {
    let Some(name) = store.find_host(&options.host) else {
        return Err(Failure::new(format!(
            "no host is called {} here, or has that NQN or initiator name",
            options.host
        )));
    };
    let keys = store.remove_host(&name)?;
    let keys: Vec<String> =
        keys.iter().map(|key| format!(" Its key {key} is removed, too.")).collect();
    print(format!("{name} is not authorized any more.{}\n", keys.concat()).as_bytes())
}

/// A host in the list; contains no secrets.
#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    id: Option<String>,
    keys: Vec<Name>,
    proves_by: Vec<KeyKind>,
    tls_compat: bool,
    rules: Vec<AccessRow>,
    added: Option<Timestamp>,
    problem: Option<String>,
}

/// An access rule.
#[derive(Debug, Serialize)]
struct AccessRow {
    disk: Option<String>,
    access: Allowed,
    expires: Option<Timestamp>,
    expired: bool,
}

fn list(store: &Store, json: bool, now: SystemTime) -> Result<(), Failure> {
    let hosts = store.hosts().into_iter();
    let rows: Vec<Row> = hosts.map(|(name, found)| row(store, name, found, now)).collect();
    if json {
        return print_json(&rows);
    }
    let cells: Vec<_> = rows.iter().map(columns).collect();
    print(table(["NAME", "HOST", "KEYS", "MAY HAVE"], &cells).as_bytes())
}

fn row(store: &Store, name: Name, found: Result<HostRecord, Failure>, now: SystemTime) -> Row {
    match found {
        Ok(record) => host_row(store, name, record, now),
        Err(failure) => Row {
            name,
            id: None,
            keys: Vec::new(),
            proves_by: Vec::new(),
            tls_compat: false,
            rules: Vec::new(),
            added: None,
            problem: Some(failure.to_string()),
        },
    }
}

fn host_row(store: &Store, name: Name, record: HostRecord, now: SystemTime) -> Row {
    let problem = record.key_names().find_map(|key| store.key(key).err());
    let tls = record.tls_key.is_some() || record.tls.is_some();
    let chap = record.chap_key.is_some() || record.chap.is_some();
    let chap_kind = if record.is_iscsi() { KeyKind::Iscsi } else { KeyKind::Chap };
    let proves = [(tls, KeyKind::Tls), (chap, chap_kind)];
    let access_row = |rule: &Rule| AccessRow {
        disk: rule.disk.clone(),
        access: rule.access,
        expires: rule.expires,
        expired: !rule.is_in_force(now),
    };
    Row {
        name,
        keys: record.key_names().cloned().collect(),
        proves_by: proves.into_iter().filter_map(|(has, kind)| has.then_some(kind)).collect(),
        tls_compat: record.tls_compat,
        rules: record.rules.iter().map(access_row).collect(),
        added: record.added,
        problem: problem.map(|failure| failure.to_string()),
        id: Some(record.id),
    }
}

fn columns(row: &Row) -> [String; 4] {
    let keys: Vec<&str> = row.keys.iter().map(Name::as_str).collect();
    let keys = if keys.is_empty() { "-".to_owned() } else { keys.join(", ") };
    let access: Vec<String> = row.rules.iter().map(rule_text).collect();
    let access = if access.is_empty() { "nothing".to_owned() } else { access.join("; ") };
    let access = match &row.problem {
        Some(problem) => format!("nothing: {problem}"),
        None => access,
    };
    [row.name.to_string(), row.id.clone().unwrap_or_else(|| "-".to_owned()), keys, access]
}

fn rule_text(rule: &AccessRow) -> String {
    let disk = rule.disk.as_deref().unwrap_or("each disk");
    let access = match rule.access {
        Allowed::ReadOnly => "read-only",
        Allowed::Writable => "writable",
    };
    match rule.expires {
        Some(expires) if rule.expired => {
            format!("nothing of {disk}: over since {}", String::from(expires))
        }
        Some(expires) => format!("{disk}, {access}, until {}", String::from(expires)),
        None => format!("{disk}, {access}"),
    }
}
