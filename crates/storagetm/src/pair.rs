//! `storagetm pair`: pairs this host with a target by the code on its screen, and stores the key
//! for the kernel and nvme-cli.

mod report;

use std::fs::File;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::{Deadline, Driver};
use console::escape_unprintable;
use engine::tls::{Hash, Psk};
use export::{Access, Secret};
use linux::keyring::{Keyring, KeyringError};
use linux::tree::Tree;
use nvme::auth::psk::Identity;
use pair::client::{ClientInfo, Failure as Refusal, Paired, Step};
use pair::{Client, Code, Invite};
use zeroize::Zeroizing;

use crate::key::{print, print_json};
use crate::options::pair::Pair;
use failure::Failure;
use keys::key::Key;
use keys::keyring;
use keys::record::check_nqn;
use keys::store::Store;
use keys::target::{Disk, Target};
use protocol::endpoint::NetAddr;
use remote::address::TargetAddr;
use remote::dial::{TlsAuth, TlsTransport, start_tls};
use remote::host_nqn::HostNqn;
use report::{Report, advice};

/// Timeout of the handshake, and of each message.
const PEER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the user at the target may take to confirm; the target gives up earlier.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(150);
/// Maximum length of a code, as text of a QR code.
const MAX_CODE_LEN: usize = 2048;

/// Pairs with a target.
///
/// # Errors
/// Fails with a sentence; exit status 3 if the target refused.
pub(crate) fn pair(options: &Pair) -> Result<(), Failure> {
    let tree = Tree::machine();
    let own = HostNqn::find(&tree, options.hostnqn.as_deref());
    check_nqn(&own.nqn).map_err(Failure::usage)?;
    let named = options.host.as_deref().map(|host| target_addr(host, options)).transpose()?;
    let store = Store::open(&Store::locate(options.keys.as_deref())?)?;
    if let Some(target_addr) = named.as_ref().filter(|_| is_typed(options)) {
        // Reports an unreachable address before asking for the code.
        open_channel(target_addr, target_addr.connect()?)?;
    }
    let (code, addresses) = code(options)?;
    let targets = match named {
        Some(target_addr) => vec![target_addr],
        None => addresses
            .iter()
            .filter_map(|at| TargetAddr::parse(at, options.interface.as_deref()).ok())
            .collect(),
    };
    let (target_addr, socket) = connect_first(&targets)?;
    let reached =
        socket.peer_addr().map_err(|error| Failure::new(format!("{target_addr}: {error}")))?;
    let channel = open_channel(target_addr, socket)?;
    let name = options.name.clone().unwrap_or_else(linux::net::hostname);
    let client_info = ClientInfo { host: &own.nqn, name: &name, writable: options.writable };
    let paired = run_pairing(channel, &code, &client_info, &confirm_authenticated)?;
    let there = target_addr.endpoint(reached);
    let target = target(&paired, &own, &there);
    keep(&store, &tree, &target, |file, note| Report::new(&target, &own, &there, file, note))
        .and_then(|report| print_report(&report, &own, options.json))
}

fn target_addr(host: &str, options: &Pair) -> Result<TargetAddr, Failure> {
    TargetAddr::parse(host, options.interface.as_deref())
        .map_err(|reason| Failure::usage(format!("{host}: {reason}")))
}

/// Returns whether the code is typed at a terminal.
fn is_typed(options: &Pair) -> bool {
    options.code_file.is_none() && io::stdin().is_terminal()
}

/// Returns the code, and the addresses in it.
fn code(options: &Pair) -> Result<(Code, Vec<String>), Failure> {
    let text = match options.code_file.as_deref() {
        Some(path) if path != Path::new("-") => line(io::BufReader::new(open_file(path)?)),
        _ => {
            let input = io::stdin().lock();
            if is_typed(options) {
                let _ = write!(io::stderr(), "The code on the other machine's screen: ");
            }
            line(input)
        }
    };
    let text = text.map_err(|error| Failure::new(format!("the code cannot be read: {error}")))?;
    parse_code(&text).ok_or_else(no_code)
}

fn no_code() -> Failure {
    Failure::usage(
        "this is not a code: a code has eight digits, or is the text of the QR code (STORAGETM:PAIR/…)",
    )
}

fn open_file(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure::new(format!("{} cannot be read: {error}", path.display())))
}

/// Reads the first line, at most [`MAX_CODE_LEN`] bytes.
fn line(from: impl BufRead) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_CODE_LEN));
    let limit = u64::try_from(MAX_CODE_LEN).unwrap_or(u64::MAX);
    from.take(limit).read_line(&mut text)?;
    Ok(text)
}

fn parse_code(text: &str) -> Option<(Code, Vec<String>)> {
    if let Ok(invite) = Invite::parse(text) {
        return Some((invite.code, invite.at));
    }
    Code::parse(text).ok().map(|code| (code, Vec::new()))
}

/// Connects to the first address that answers.
fn connect_first(targets: &[TargetAddr]) -> Result<(&TargetAddr, std::net::TcpStream), Failure> {
    let mut last =
        Failure::usage("name the machine: the code has no address in it that can be used");
    for target_addr in targets {
        match target_addr.connect() {
            Ok(socket) => return Ok((target_addr, socket)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Opens an encrypted channel with the public PSK. It authenticates nobody: the code does.
fn open_channel(
    target_addr: &TargetAddr,
    socket: std::net::TcpStream,
) -> Result<TlsTransport, Failure> {
    let public_psk = Psk {
        identity: pair::IDENTITY.to_owned(),
        secret: Secret::new(pair::PSK.to_vec()),
        hash: Hash::Sha256,
        key: None,
    };
    let deadline = Instant::now() + PEER_TIMEOUT;
    start_tls(socket, &TlsAuth::Psk(public_psk), deadline).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ConnectionAborted => Failure::refused(format!(
            "{target_addr} lets no machine pair with it just now: does its screen show a code? ({error})"
        )),
        _ => Failure::new(format!("{target_addr}: {error}")),
    })
}

/// A machine to pair with, without a person at a terminal.
pub(crate) struct PairRequest<'a> {
    pub(crate) at: &'a TargetAddr,
    /// The code on its screen, as typed.
    pub(crate) code: &'a str,
    /// The name of this machine, as the other one shows it.
    pub(crate) name: &'a str,
    pub(crate) writable: bool,
    /// The directory of the store.
    pub(crate) keys: &'a Path,
    /// Called with the name of the other machine when the code was right, before that machine has decided.
    pub(crate) confirmed: &'a dyn Fn(&str),
}

impl PairRequest<'_> {
    /// Opens the channel for the pairing. The target has not seen the code yet, and it is not used up if this fails.
    ///
    /// # Errors
    /// Fails with a sentence; exit status 3 if the target pairs with no machine just now.
    pub(crate) fn open(&self) -> Result<OpenedPairing<'_>, Failure> {
        let (code, _) = parse_code(self.code).ok_or_else(no_code)?;
        let own = HostNqn::find(&Tree::machine(), None);
        check_nqn(&own.nqn).map_err(Failure::usage)?;
        let store = Store::open(self.keys)?;
        let socket = self.at.connect()?;
        let reached = socket.peer_addr();
        let reached = reached.map_err(|error| Failure::new(format!("{}: {error}", self.at)))?;
        let channel = open_channel(self.at, socket)?;
        Ok(OpenedPairing { request: self, code, own, store, reached, channel })
    }
}

/// A channel to a target that takes codes.
pub(crate) struct OpenedPairing<'a> {
    request: &'a PairRequest<'a>,
    code: Code,
    own: HostNqn,
    store: Store,
    reached: std::net::SocketAddr,
    channel: TlsTransport,
}

impl OpenedPairing<'_> {
    /// Pairs, and stores the key as [`pair`] does.
    ///
    /// # Errors
    /// Fails with a sentence; exit status 3 if the target refused.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let Self { request, code, own, store, reached, channel } = self;
        let info = ClientInfo { host: &own.nqn, name: request.name, writable: request.writable };
        let paired = run_pairing(channel, &code, &info, request.confirmed)?;
        let there = request.at.endpoint(reached);
        let target = target(&paired, &own, &there);
        keep(&store, &Tree::machine(), &target, |file, note| {
            Report::new(&target, &own, &there, file, note)
        })
        .map(drop)
    }
}

/// Runs the pairing protocol, and waits for the target's verdict. `confirmed` is called when the code was right.
fn run_pairing(
    channel: TlsTransport,
    code: &Code,
    client_info: &ClientInfo<'_>,
    confirmed: &dyn Fn(&str),
) -> Result<Paired, Failure> {
    let mut random = Zeroizing::new([0; 32]);
    if !nvme::auth::chap::system_random(&mut *random) {
        return Err(Failure::new("this machine gives no random bytes"));
    }
    let client = Client::new(code, client_info, channel.channel().binding, random);
    let broken = |error: io::Error| Failure::new(format!("the connection broke: {error}"));
    let mut driver = Driver::new(Box::new(channel), client).map_err(broken)?;
    let mut timeout = PEER_TIMEOUT;
    loop {
        let step = match driver.wait_for_step(Deadline::after(timeout)) {
            Err(error) if is_disconnect(&error) => {
                driver.session_mut().disconnected();
                driver.wait_for_step(Deadline::after(timeout))
            }
            step => step,
        };
        match step.map_err(broken)? {
            Step::Authenticated { target } => {
                confirmed(&target);
                timeout = CONFIRMATION_TIMEOUT;
            }
            Step::Paired(paired) => return Ok(*paired),
            Step::Failed(refusal) => return Err(failed(refusal)),
            Step::Send(_) => {}
        }
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}

fn confirm_authenticated(target: &str) {
    let sentence = format!(
        "The code is right. If {target} shows a question about this machine, it has to be answered there."
    );
    let _ = writeln!(io::stderr(), "{}", escape_unprintable(&sentence, true));
}

fn failed(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Refused(..) | Refusal::WrongPeer => Failure::refused(refusal),
        Refusal::BadHost => Failure::usage(refusal),
        Refusal::Violation(_) | Refusal::Version | Refusal::Disconnected => Failure::new(refusal),
    }
}

/// Returns the record of the target. Disks with invalid NQNs are left out.
fn target(paired: &Paired, own: &HostNqn, there: &NetAddr) -> Target {
    let usable = paired.disks.iter().filter(|disk| check_nqn(&disk.nqn).is_ok());
    let disk = |disk: &pair::Disk| Disk {
        nqn: disk.nqn.clone(),
        name: disk.name.clone(),
        bytes: disk.bytes,
        access: min(disk.access, paired.access).into(),
    };
    Target {
        name: paired.target.clone(),
        address: there.host(),
        port: there.port,
        host: own.nqn.clone(),
        access: paired.access.into(),
        tls: Key::from_pairing(&paired.secret),
        disks: usable.map(disk).collect(),
    }
}

fn min(one: Access, other: Access) -> Access {
    if one == Access::Writable { other } else { one }
}

/// Stores the target, writes the keys for nvme-cli, and inserts them into the kernel's keyring if
/// possible.
fn keep(
    store: &Store,
    tree: &Tree,
    target: &Target,
    report: impl FnOnce(PathBuf, Option<String>) -> Report,
) -> Result<Report, Failure> {
    let disks: Vec<&str> = target.disks.iter().map(|disk| disk.nqn.as_str()).collect();
    let psks = keyring::psks(target.tls.text(), &target.host, &disks)?;
    let name = store.put_target(target)?;
    let file = store.put_import_keys(&name, &keyring::import_lines(&psks)?)?;
    let note = insert(tree, &psks).err().map(|error| error.to_string());
    Ok(report(file, note))
}

/// Inserts PSKs into the kernel's keyring, replacing those for the same host and subsystem.
///
/// # Errors
/// Fails if the keyring is not available.
pub(crate) fn insert(tree: &Tree, psks: &[nvme::auth::psk::Psk]) -> Result<(), KeyringError> {
    let keyring = Keyring::find(tree)?;
    for psk in psks {
        let Some(new) = Identity::parse(&psk.identity) else { continue };
        keyring.remove(tree, |old| {
            let parsed = Identity::parse(old).filter(|old| !old.generated);
            old != psk.identity && parsed.is_some_and(|old| old.is_for(new.host, new.subsystem))
        })?;
        keyring.insert(&psk.identity, psk.secret.bytes())?;
    }
    Ok(())
}

fn print_report(report: &Report, own: &HostNqn, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(report);
    }
    print(report.text().as_bytes())?;
    if let Some(advice) = advice(own) {
        let _ = writeln!(io::stderr(), "{advice}");
    }
    Ok(())
}

#[cfg(test)]
mod test;
