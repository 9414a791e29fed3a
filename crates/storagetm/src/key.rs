//! `storagetm key`: generates, imports, exports and lists keys. Secrets are only written to
//! standard output or the named file, and only on request.

pub(crate) mod prompt;

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;

use nvme::auth::Hash;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::confirmation::{self, OverwriteTarget};
use crate::options::key::{self, Export, Generate, Import, Key as Options, Task};
use crate::table::table;
use daemon::event::escaped;
use failure::Failure;
use keys::key::{Key, KeyKind};
use keys::name::Name;
use keys::store::{Store, read_key, write_private};
use keys::{keyring, record};

/// Runs the subcommand.
///
/// # Errors
/// Fails with a sentence.
pub(crate) fn key(options: &Options) -> Result<(), Failure> {
    let store = || Store::open(&Store::locate(options.keys.as_deref())?);
    match &options.task {
        Task::Generate(options) => generate(store, options),
        Task::Import(options) => import(&store()?, options),
        Task::Export(options) => export(&store()?, options),
        Task::List(options) => list(&store()?, options.json),
        Task::Remove(options) => store()?.remove_key(&options.name),
    }
}

/// Writes to standard output. A closed pipe is not an error.
///
/// # Errors
/// Fails on any other write error.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("standard output cannot be written to: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints JSON, with control characters escaped.
///
/// # Errors
/// Fails on a write error.
pub(crate) fn print_json<T: Serialize>(what: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(what)
        .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
    print((escaped(&text) + "\n").as_bytes())
}

fn generate(store: impl Fn() -> Result<Store, Failure>, options: &Generate) -> Result<(), Failure> {
    let key = Key::generate(kind(options.kind), hash(options.hash)).map_err(Failure::usage)?;
    if let Some(name) = &options.name {
        store()?.put_key(name, &key, options.replace)?;
    }
    if options.name.is_none() || options.show { print(&key.line()) } else { Ok(()) }
}

fn kind(kind: key::Kind) -> KeyKind {
    match kind {
        key::Kind::Tls => KeyKind::Tls,
        key::Kind::Chap => KeyKind::Chap,
        key::Kind::Iscsi => KeyKind::Iscsi,
    }
}

fn hash(hash: key::Hash) -> Option<Hash> {
    match hash {
        key::Hash::None => None,
        key::Hash::Sha256 => Some(Hash::Sha256),
        key::Hash::Sha384 => Some(Hash::Sha384),
        key::Hash::Sha512 => Some(Hash::Sha512),
    }
}

fn import(store: &Store, options: &Import) -> Result<(), Failure> {
    let key = match &options.file {
        Some(path) => from_file(path)?,
        None => from_standard_input()?,
    };
    store.put_key(&options.name, &key, options.replace)
}

fn from_file(path: &Path) -> Result<Key, Failure> {
    let what = path.display().to_string();
    let file = File::open(path)
        .map_err(|error| Failure::new(format!("{what} cannot be read: {error}")))?;
    read_key(file, &what)
}

/// At a terminal one line is read, without echo.
fn from_standard_input() -> Result<Key, Failure> {
    let input = io::stdin().lock();
    if !input.is_terminal() {
        return read_key(input, "standard input");
    }
    let _ = write!(io::stderr(), "Paste the key and press Enter (it is not shown): ");
    let line = prompt::hidden_line(input, keys::key::MAX_LEN);
    let _ = writeln!(io::stderr());
    let line =
        line.map_err(|error| Failure::new(format!("the terminal cannot be read: {error}")))?;
    read_key(line.as_slice(), "what was typed")
}

fn export(store: &Store, options: &Export) -> Result<(), Failure> {
    let key = store.key(&options.name)?;
    let text = match &options.for_host {
        _ if options.nbd => for_nbd(store, &key, options)?,
        None => key.line(),
        Some(host) if key.kind() == KeyKind::Tls => {
            let disks: Vec<&str> = options.disk.iter().map(String::as_str).collect();
            let psks = keyring::psks(key.text(), &nqn_of(store, host)?, &disks)?;
            keyring::import_lines(&psks)?
        }
        Some(_) => {
            return Err(Failure::new(format!(
                "{} is no TLS key: --for-host is for those",
                options.name
            )));
        }
    };
    match &options.to {
        Some(path) => {
            if let Some(overwrite) = OverwriteTarget::file(path, "--force").map_err(Failure::new)? {
                confirmation::confirm(&overwrite, "the key", options.force)
                    .map_err(Failure::new)?;
            }
            write_private(path, &text)
        }
        None => print(&text),
    }
}

/// Returns a line `NAME:HEX` for each host that uses the key, or for the named one.
fn for_nbd(store: &Store, key: &Key, options: &Export) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let name = &options.name;
    let psk = key
        .nbd_psk()
        .ok_or_else(|| Failure::new(format!("{name} is no TLS key: --nbd is for those")))?;
    let hosts = match &options.for_host {
        Some(host) => vec![name_of(store, host)?],
        None => store.hosts_using(name),
    };
    if hosts.is_empty() {
        return Err(Failure::new(format!(
            "no host uses the key {name} here: say --for-host NAME, the name by which the other \
             machine knows the host"
        )));
    }
    let mut lines = Zeroizing::new(Vec::with_capacity(hosts.len().saturating_mul(LONGEST_LINE)));
    for host in hosts {
        lines.extend_from_slice(host.as_str().as_bytes());
        lines.push(b':');
        lines.extend(psk.bytes().iter().flat_map(|byte| hex(*byte)));
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Maximum length of a line of a PSK file: a name, a colon, 32 bytes in hexadecimal, and a newline.
const LONGEST_LINE: usize = 64 + 1 + 64 + 1;

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [byte >> 4, byte & 15].map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or(b'0'))
}

/// Returns the host's name, also for an NQN: NBD PSK files cannot contain an NQN, which has colons.
fn name_of(store: &Store, host: &str) -> Result<Name, Failure> {
    let known = store.find_host(host);
    known.map_or_else(
        || host.parse().map_err(|reason| Failure::new(format!("{host}: {reason}"))),
        Ok,
    )
}

/// Returns the NQN of a host that was named, or the argument if it is an NQN.
fn nqn_of(store: &Store, host: &str) -> Result<String, Failure> {
    if let Some(name) = store.find_host(host) {
        return store.host(&name).map(|record| record.id);
    }
    record::check_nqn(host)
        .map_err(|reason| Failure::new(format!("no host is called {host} here, and {reason}")))?;
    Ok(host.to_owned())
}

/// A key in the list; contains no secret.
#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    kind: Option<KeyKind>,
    hash: Option<&'static str>,
    used_by: Vec<Name>,
    problem: Option<String>,
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let rows: Vec<Row> = store.key_names().into_iter().map(|name| row(store, name)).collect();
    if json {
        return print_json(&rows);
    }
    let cells: Vec<_> = rows.iter().map(columns).collect();
    print(table(["NAME", "KIND", "HASH", "USED BY"], &cells).as_bytes())
}

fn row(store: &Store, name: Name) -> Row {
    let used_by = store.hosts_using(&name);
    match store.key(&name) {
        Ok(key) => {
            Row { name, kind: Some(key.kind()), hash: Some(key.hash()), used_by, problem: None }
        }
        Err(failure) => {
            Row { name, kind: None, hash: None, used_by, problem: Some(failure.to_string()) }
        }
    }
}

fn columns(row: &Row) -> [String; 4] {
    let kind = row.kind.map_or_else(|| "-".to_owned(), |kind| kind.to_string());
    let hash = row.hash.unwrap_or("-").to_owned();
    let users: Vec<&str> = row.used_by.iter().map(Name::as_str).collect();
    let users = if users.is_empty() { "-".to_owned() } else { users.join(", ") };
    let last = match &row.problem {
        Some(problem) => format!("{users}; {problem}"),
        None => users,
    };
    [row.name.to_string(), kind, hash, last]
}
