//! Configuration of the kernel's NVMe target, as `nvmetcli save` writes it (`--nvmet-config`): its disks are lent under the
//! names that hosts know, at its addresses. What cannot be taken over is named.

mod saved;

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::options::Serve;
use console::escape_unprintable;
use daemon::lend::{LendOptions, LendRequest, Writes, named};
use daemon::listen::{ListenOption, Protocols};
use daemon::reported::KnownAs;
use failure::Failure;
use keys::record::check_id;
use protocol::commands::quoted;
use protocol::{Protocol, joined};
use saved::{Namespace, Port, Saved, Subsystem, is_on, text};

/// The port of NVMe/TCP if none was saved.
const DEFAULT_PORT: &str = "4420";

/// Unknown members of the file that are named.
const MAX_UNKNOWN: usize = 16;

/// Adds the disks in the file of `--nvmet-config`. Returns its addresses, unless others are given, and notes for the user.
///
/// # Errors
/// As [`read`], and if NVMe/TCP is not served, if a disk does not respond, or if there is no address.
pub(super) fn import(
    options: &Serve,
    lend: &LendOptions,
    disks: &mut Vec<LendRequest>,
) -> Result<(Vec<ListenOption>, Vec<String>), Failure> {
    let Some(path) = &options.nvmet_config else { return Ok(Default::default()) };
    Protocols::of(&options.protocol).require(Protocol::Nvme, "--nvmet-config")?;
    let mut imported = read(path)?;
    let paths = disks.iter().map(|disk| &disk.path);
    let paths = paths.chain(imported.disks.iter().map(|disk| &disk.path));
    paths.into_iter().try_for_each(|path| lend.check_reachable(path))?;
    imported.leave_out_repeated();
    imported.apply(lend, disks);
    let listen = std::mem::take(&mut imported.listen);
    if !options.listen.is_empty() {
        return Ok((Vec::new(), imported.notes(options)));
    }
    if listen.is_empty() {
        return Err(Failure::new(format!(
            "{} has no address for NVMe/TCP; name one with --listen{}",
            path.display(),
            imported.notes.iter().map(|note| format!("; {note}")).collect::<String>()
        )));
    }
    let others = options.protocol.iter().filter(|protocol| **protocol != Protocol::Nvme);
    let others: Vec<&str> = others.map(|protocol| protocol.row().option).collect();
    if !others.is_empty() {
        imported.note(format!(
            "the file has addresses for NVMe/TCP only: name those for {} with --listen, beside them",
            joined(others.into_iter(), "and")
        ));
    }
    Ok((listen, imported.notes(options)))
}

/// What is taken over.
#[derive(Debug, Default)]
struct Imported {
    disks: Vec<Disk>,
    listen: Vec<ListenOption>,
    notes: Vec<String>,
    /// Whether a subsystem let every host in.
    allows_any: bool,
    /// Hosts, and the subsystems that each may attach.
    allowed: Vec<(String, Vec<String>)>,
    /// The disks that are lent.
    lent: Vec<Lent>,
}

/// A namespace.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    known: KnownAs,
    /// The subsystem that it was in.
    subsystem: String,
}

/// A namespace that is lent.
#[derive(Debug)]
struct Lent {
    subsystem: String,
    /// What an access rule names.
    name: String,
    is_writable: bool,
}

/// Reads a configuration.
///
/// # Errors
/// Fails if it cannot be read, is none, or has no disk that can be lent.
fn read(path: &Path) -> Result<Imported, Failure> {
    let name = path.display();
    let cannot = |error: std::io::Error| Failure::new(format!("{name} cannot be read: {error}"));
    let saved = saved::read(File::open(path).map_err(cannot)?)
        .map_err(|reason| Failure::new(format!("{name} is not what nvmetcli saves: {reason}")))?;
    let mut imported = Imported::default();
    for (at, subsystem) in saved.subsystems.iter().enumerate() {
        let before = saved.subsystems.get(..at).unwrap_or_default();
        match before.iter().any(|other| other.nqn == subsystem.nqn) {
            true => imported.note(format!(
                "a second subsystem {} in the file is left out: hosts would take both for one",
                subsystem.nqn
            )),
            false => imported.add_subsystem(subsystem, &saved),
        }
    }
    saved.ports.iter().for_each(|port| imported.add_port(port, &saved));
    imported.add_hosts(&saved);
    imported.name_unknown(&saved);
    match imported.disks.is_empty() {
        true => Err(Failure::new(format!(
            "{name} has no disk to lend{}",
            imported.notes.iter().map(|note| format!("; {note}")).collect::<String>()
        ))),
        false => Ok(imported),
    }
}

impl Imported {
    fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    fn add_subsystem(&mut self, subsystem: &Subsystem, saved: &Saved) {
        let nqn = &subsystem.nqn;
        if KnownAs::new(nqn).is_none() {
            return self.note(format!("subsystem \"{nqn}\" is left out: that is no name of one"));
        }
        if is_on(&subsystem.passthru.enable) {
            return self.note(format!("{nqn} is left out: it passes commands through to an NVMe drive; lend that by its name"));
        }
        if !saved.ports.is_empty() && !saved.ports.iter().any(|port| port.subsystems.contains(nqn))
        {
            return self.note(format!("{nqn} is left out: it was at no port"));
        }
        if subsystem.attribute("pi_enable").as_deref() == Some("1") {
            self.note(format!("{nqn} is lent without protection information"));
        }
        let mut namespaces: Vec<(u32, &Namespace)> = Vec::new();
        for namespace in &subsystem.namespaces {
            let number = text(&namespace.nsid).unwrap_or_default();
            match number.parse() {
                Ok(0) | Err(_) => {
                    self.note(format!("{nqn}: \"{number}\" is no number of a namespace"))
                }
                Ok(_) if !is_on(&namespace.enable) => {
                    self.note(format!(
                        "namespace {number} of {nqn} is left out: it was not enabled"
                    ));
                }
                Ok(nsid) => namespaces.push((nsid, namespace)),
            }
        }
        namespaces.sort_by_key(|(nsid, _)| *nsid);
        for (at, (nsid, namespace)) in namespaces.into_iter().enumerate() {
            self.add_namespace(subsystem, (at, nsid), namespace, saved);
        }
        self.allows_any |= subsystem.attribute("allow_any_host").as_deref() == Some("1");
    }

    /// Adds a namespace. A subsystem has one here: the first keeps the name, the others get one each.
    fn add_namespace(
        &mut self,
        subsystem: &Subsystem,
        (at, nsid): (usize, u32),
        namespace: &Namespace,
        saved: &Saved,
    ) {
        let nqn = &subsystem.nqn;
        let device = |name| namespace.device.get(name).and_then(text);
        let Some(path) = device("path") else {
            return self
                .note(format!("namespace {nsid} of {nqn} is left out: it has no device path"));
        };
        let own = if at == 0 { nqn.clone() } else { format!("{nqn}-ns{nsid}") };
        let Some(known) = KnownAs::new(&own) else {
            return self.note(format!("{path} is left out: {own} is too long for a name"));
        };
        if at > 0 && saved.subsystems.iter().any(|other| other.nqn == own) {
            return self.note(format!(
                "{path}, namespace {nsid} of {nqn}, is left out: a subsystem has one namespace here, and {own} is the name of \
                 another one; give it a subsystem of its own in the file"
            ));
        }
        // Two subsystems do not have one serial number.
        let serial = subsystem.attribute("serial").filter(|_| at == 0);
        let model = subsystem.attribute("model");
        let known = known
            .with_controller(serial.as_deref(), model.as_deref())
            .with_namespace(device("uuid").as_deref(), device("nguid").as_deref());
        match (at, nsid) {
            (0, 1) => {}
            (0, _) => self.note(format!("{path} is namespace 1 of {nqn}, and was namespace {nsid}")),
            _ => self.note(format!(
                "{path} was namespace {nsid} of {nqn}: a subsystem has one namespace here, so hosts connect to {own}, too"
            )),
        }
        self.disks.push(Disk { path: PathBuf::from(path), known, subsystem: nqn.clone() });
    }

    fn add_port(&mut self, port: &Port, saved: &Saved) {
        let number = text(&port.portid).unwrap_or_default();
        let addr = |name: &str| port.addr.get(name).and_then(text);
        if port.subsystems.is_empty() {
            return;
        }
        let transport = addr("trtype").unwrap_or_default();
        if transport != "tcp" {
            return self.note(format!(
                "port {number} is left out: it is for {transport}, and NVMe is lent over TCP only"
            ));
        }
        let address = addr("traddr").unwrap_or_default();
        match listen_option(&address, addr("trsvcid").as_deref()) {
            Ok(listen) => {
                if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
                    self.note(format!("at {address} (port {number}) every program of this machine can attach the disks, without a key"));
                }
                self.listen.push(listen);
            }
            Err(reason) => return self.note(format!("port {number} is left out: {reason}")),
        }
        let missing = saved.subsystems.iter().filter(|it| !port.subsystems.contains(&it.nqn));
        let missing: Vec<&str> = missing.map(|it| it.nqn.as_str()).collect();
        if missing.iter().any(|nqn| self.has(nqn)) {
            self.note(format!(
                "every disk is lent at every address: {address} (port {number}) did not have {}",
                missing.join(", ")
            ));
        }
        if port.ana_groups.iter().any(|group| !group.is_optimized()) {
            self.note(format!("every disk is optimized (ANA) at port {number}: not all were"));
        }
        if !port.referrals.is_empty() {
            self.note(format!(
                "the referrals of port {number} to other targets are not taken over"
            ));
        }
        if addr("tsas").is_some_and(|tsas| tsas == "tls1.3") {
            self.note(format!(
                "the TLS keys of port {number} were in a keyring of the kernel: give hosts keys with storagetm host add"
            ));
        }
    }

    /// Returns whether a subsystem of this name is lent.
    fn has(&self, nqn: &str) -> bool {
        self.disks.iter().any(|disk| disk.subsystem == nqn)
    }

    fn add_hosts(&mut self, saved: &Saved) {
        for subsystem in &saved.subsystems {
            if !self.has(&subsystem.nqn) {
                continue;
            }
            if subsystem.attribute("allow_any_host").as_deref() == Some("1") {
                continue;
            }
            if subsystem.allowed_hosts.is_empty() {
                self.notes.push(format!("{} let no host in", subsystem.nqn));
            }
            for host in &subsystem.allowed_hosts {
                let name = subsystem.nqn.clone();
                match self.allowed.iter_mut().find(|(known, _)| known == host) {
                    Some((_, names)) => names.push(name),
                    None => self.allowed.push((host.clone(), vec![name])),
                }
            }
        }
        if saved.hosts.iter().any(|host| host.has_key) {
            self.note("keys of hosts for DH-HMAC-CHAP are not taken from the file: storagetm key import takes them".to_owned());
        }
    }

    /// Names the members of the file that are not known.
    fn name_unknown(&mut self, saved: &Saved) {
        let unknown = saved.unknown();
        if unknown.is_empty() {
            return;
        }
        let names: Vec<&str> = unknown.iter().take(MAX_UNKNOWN).map(String::as_str).collect();
        let more = unknown.len().saturating_sub(MAX_UNKNOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let names = escape_unprintable(&names.join(", "), true);
        self.note(format!("not understood in the file, and ignored: {names}{more}"));
    }

    /// Leaves out a namespace whose disk is one of another namespace. A disk is opened once, for one subsystem.
    fn leave_out_repeated(&mut self) {
        let mut once: Vec<Disk> = Vec::new();
        for disk in std::mem::take(&mut self.disks) {
            match once.iter().find(|known| is_same(&known.path, &disk.path)) {
                Some(known) => self.notes.push(format!(
                    "{} is not lent as {}: it is the disk that is lent as {}, and a disk has one name here",
                    disk.path.display(),
                    disk.known.nqn(),
                    known.known.nqn()
                )),
                None => once.push(disk),
            }
        }
        self.disks = once;
    }

    /// Gives the disks to those of `requests` that name them, and adds the others, read-only.
    fn apply(&mut self, lend: &LendOptions, requests: &mut Vec<LendRequest>) {
        let mut read_only = Vec::new();
        for Disk { path, known, subsystem } in std::mem::take(&mut self.disks) {
            let is_it = |it: &&mut LendRequest| {
                it.known_as.is_none() && is_same(&named(&lend.tree, &it.path), &path)
            };
            let nqn = known.nqn().to_owned();
            let (path, writes) = match requests.iter_mut().find(is_it) {
                Some(request) => {
                    request.known_as = Some(known);
                    (named(&lend.tree, &request.path), request.writes)
                }
                None => {
                    read_only.push(path.display().to_string());
                    let request = LendRequest::new(path.clone(), Writes::Refused);
                    requests.push(LendRequest { known_as: Some(known), ..request });
                    (path, Writes::Refused)
                }
            };
            let path = path.display().to_string();
            if writes == Writes::ToOverlay {
                self.note(format!(
                    "{path} is not called {nqn}: with an overlay it is another disk to hosts, under a name of its own"
                ));
            }
            let name = if writes == Writes::ToOverlay { path } else { nqn };
            self.lent.push(Lent { subsystem, name, is_writable: writes != Writes::Refused });
        }
        if !read_only.is_empty() {
            self.note(format!(
                "hosts could write to {}: here they can with --writable DISK",
                read_only.join(", ")
            ));
        }
    }

    /// Returns what the user has to know.
    fn notes(mut self, options: &Serve) -> Vec<String> {
        let allowed = std::mem::take(&mut self.allowed);
        if options.open {
            if !allowed.is_empty() {
                self.note("with --open every host may attach the disks, also those that were for some hosts only".to_owned());
            }
            return self.notes;
        }
        if self.allows_any {
            self.note(
                "hosts needed no key: here they need one, from storagetm pair or storagetm host add; --open lets every host in"
                    .to_owned(),
            );
        }
        for (host, subsystems) in allowed {
            self.authorize(&host, &subsystems, options.keys.as_deref());
        }
        self.notes
    }

    /// Notes how a host is authorized for the disks of these subsystems, as far as they are lent.
    fn authorize(&mut self, host: &str, subsystems: &[String], keys: Option<&Path>) {
        let lent = self.lent.iter().filter(|lent| subsystems.contains(&lent.subsystem));
        let lent: Vec<&Lent> = lent.collect();
        if lent.is_empty() {
            return;
        }
        if let Err(reason) = check_id(host) {
            let host = escape_unprintable(host, true);
            return self.note(format!("the host {host} cannot be authorized: {reason}"));
        }
        let option = |name: &str, value: &str| format!(" {name} {}", quoted(value));
        let disks: String = lent.iter().map(|lent| option("--disk", &lent.name)).collect();
        let writable = lent.iter().any(|lent| lent.is_writable);
        let writable = if writable { " --writable" } else { "" };
        let keys = keys.map(|keys| option("--keys", &keys.to_string_lossy())).unwrap_or_default();
        let host = quoted(host);
        self.note(format!(
            "{host} was let in by its name alone, or with a key that is not in the file; here: storagetm host add {host}{disks}\
             {writable}{keys}"
        ));
    }
}

/// Returns whether two paths are those of one block device or one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let found = path.metadata().ok()?;
        let is_block = found.file_type().is_block_device();
        Some(if is_block { (true, found.rdev(), 0) } else { (false, found.dev(), found.ino()) })
    };
    let one_is = identity(one);
    one == other || (one_is.is_some() && one_is == identity(other))
}

impl Subsystem {
    fn attribute(&self, name: &str) -> Option<String> {
        self.attr.get(name).and_then(text)
    }
}

/// Returns the option for an address and a port.
///
/// # Errors
/// Fails with the reason if they are malformed.
fn listen_option(address: &str, port: Option<&str>) -> Result<ListenOption, String> {
    let protocol = Protocol::Nvme.row().option;
    let port = port.unwrap_or(DEFAULT_PORT);
    match address.contains(':') {
        true => format!("{protocol}:[{address}]:{port}").parse(),
        false => format!("{protocol}:{address}:{port}").parse(),
    }
}

#[cfg(test)]
mod test {
    use super::super::config::ServeConfig;
    use super::*;
    use crate::options::{Task, parse};
    use daemon::settings::Settings;
    use testkit::Scratch;

    const SUBSYSTEM: &str = r#"{
      "allowed_hosts": ["nqn.2026-12.com.example:host"],
      "attr": {"allow_any_host": "0", "model": "Linux", "serial": "0f1e2d3c4b5a", "version": "1.3"},
      "namespaces": [
        {"ana_grpid": 1, "device": {"nguid": "00000000-0000-0000-0000-000000000000", "path": "/dev/b",
          "uuid": "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b02"}, "enable": 1, "nsid": 2},
        {"ana_grpid": 1, "device": {"nguid": "11223344-5566-7788-99aa-bbccddeeff00", "path": "/dev/a",
          "uuid": "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b01"}, "enable": 1, "nsid": 1},
        {"device": {"path": "/dev/c"}, "enable": 0, "nsid": 3}
      ],
      "nqn": "nqn.2026-12.com.example:one"
    }"#;

    fn port(number: u32, addr: &str) -> String {
        format!(
            r#"{{"addr": {addr}, "ana_groups": [{{"ana": {{"state": "optimized"}}, "grpid": 1}}],
              "param": {{"inline_data_size": "16384"}}, "portid": {number}, "referrals": [],
              "subsystems": ["nqn.2026-12.com.example:one"]}}"#
        )
    }

    fn serve(options: &[&str]) -> Serve {
        let line = ["storagetm", "serve", "--nvmet-config", "x"];
        match parse(line.iter().chain(options)).unwrap().task {
            Task::Serve(serve) => *serve,
            _ => unreachable!("another subcommand"),
        }
    }

    /// Applies it to the disks that the options name. Returns these and the notes.
    fn applied(mut imported: Imported, options: &Serve) -> (Vec<LendRequest>, Vec<String>) {
        let mut requests = options.lend_requests();
        let lend = ServeConfig::of_settings(Settings::default(), false).lend;
        imported.leave_out_repeated();
        imported.apply(&lend, &mut requests);
        (requests, imported.notes(options))
    }

    fn import(text: &str) -> Result<Imported, String> {
        let folder = Scratch::new();
        let path = folder.0.join("config.json");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|failure| failure.to_string())
    }

    fn config(ports: &[String]) -> String {
        let hosts = r#"[{"nqn": "nqn.2026-12.com.example:host"}]"#;
        let ports = ports.join(",");
        format!(r#"{{"hosts": {hosts}, "ports": [{ports}], "subsystems": [{SUBSYSTEM}]}}"#)
    }

    fn tcp(address: &str) -> String {
        format!(
            r#"{{"adrfam": "ipv4", "traddr": "{address}", "trsvcid": "4420", "trtype": "tcp"}}"#
        )
    }

    #[test]
    fn disks_keep_the_names_that_hosts_know() {
        let imported =
            import(&config(&[port(1, &tcp("127.0.0.1")), port(2, &tcp("::1"))])).unwrap();
        let listen: Vec<ListenOption> =
            ["nvme:127.0.0.1:4420", "nvme:[::1]:4420"].map(|text| text.parse().unwrap()).into();
        assert_eq!(imported.listen, listen);
        let (requests, notes) = applied(imported, &serve(&["--writable", "/dev/a"]));
        let named = |it: &LendRequest| (it.path.clone(), it.writes, it.known_as.clone().unwrap());
        let known = |nqn: &str, serial, uuid, nguid| {
            let known = KnownAs::new(nqn).unwrap().with_controller(serial, Some("Linux"));
            known.with_namespace(Some(uuid), nguid)
        };
        let (one, two) = (
            known(
                "nqn.2026-12.com.example:one",
                Some("0f1e2d3c4b5a"),
                "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b01",
                Some("11223344-5566-7788-99aa-bbccddeeff00"),
            ),
            known(
                "nqn.2026-12.com.example:one-ns2",
                None,
                "6f2c0e5e-0f4c-4f3a-9a8e-7d1a5a8e2b02",
                None,
            ),
        );
        let wanted = [
            (PathBuf::from("/dev/a"), Writes::ToDisk, one),
            (PathBuf::from("/dev/b"), Writes::Refused, two),
        ];
        assert_eq!(requests.iter().map(named).collect::<Vec<_>>(), wanted);
        for said in [
            "namespace 3 of nqn.2026-12.com.example:one is left out: it was not enabled",
            "so hosts connect to nqn.2026-12.com.example:one-ns2, too",
            "hosts could write to /dev/b: here they can with --writable DISK",
            "storagetm host add nqn.2026-12.com.example:host --disk nqn.2026-12.com.example:one --disk \
             nqn.2026-12.com.example:one-ns2 --writable",
            "at 127.0.0.1 (port 1) every program of this machine can attach the disks, without a key",
            "at ::1 (port 2) every program of this machine can attach the disks, without a key",
        ] {
            assert!(notes.iter().any(|note| note.contains(said)), "{said}: {notes:?}");
        }
        assert_eq!(notes.len(), 6, "{notes:?}");
    }

    #[test]
    fn line_for_a_host_grants_no_more_than_the_file() {
        let line = |options: &[&str]| {
            let text =
                config(&[port(1, &tcp("127.0.0.1"))]).replace("example:host", "example:$host");
            let (_, notes) = applied(import(&text).unwrap(), &serve(options));
            let line = notes.iter().find_map(|note| note.split_once("here: storagetm host add "));
            line.unwrap().1.to_owned()
        };
        let (host, one) = ("'nqn.2026-12.com.example:$host'", "nqn.2026-12.com.example:one");
        assert_eq!(line(&[]), format!("{host} --disk {one} --disk {one}-ns2"));
        assert_eq!(
            line(&["--keys", "/my keys", "--writable", "/dev/b"]),
            format!("{host} --disk {one} --disk {one}-ns2 --writable --keys '/my keys'")
        );
        // With an overlay it has another name at each start.
        let overlaid = line(&["--overlay", "/dev/a"]);
        assert_eq!(overlaid, format!("{host} --disk /dev/a --disk {one}-ns2 --writable"));
    }

    #[test]
    fn device_in_two_subsystems_is_lent_as_the_first() {
        let folder = Scratch::new();
        let (disk, link) = (folder.0.join("disk"), folder.0.join("link"));
        std::fs::write(&disk, "a disk").unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let second = SUBSYSTEM.replace("example:one", "example:two").replace("/dev/b", "/dev/d");
        let both = format!("{SUBSYSTEM}, {second}").replace("/dev/a", link.to_str().unwrap());
        let both = both.replace("\"nqn.2026-12.com.example:one\"", "\"nqn.2026-12.com.example:1\"");
        let text = format!(r#"{{"subsystems": [{both}]}}"#);
        let (requests, notes) =
            applied(import(&text).unwrap(), &serve(&["--writable", disk.to_str().unwrap()]));
        let names: Vec<(&Path, &str, Writes)> = requests
            .iter()
            .map(|it| (it.path.as_path(), it.known_as.as_ref().unwrap().nqn(), it.writes))
            .collect();
        let nqn = |name: &str| format!("nqn.2026-12.com.example:{name}");
        let wanted = [
            (disk.as_path(), &*nqn("1"), Writes::ToDisk),
            (Path::new("/dev/b"), &nqn("1-ns2"), Writes::Refused),
            (Path::new("/dev/d"), &nqn("two-ns2"), Writes::Refused),
        ];
        assert_eq!(names, wanted);
        let said = "is not lent as nqn.2026-12.com.example:two: it is the disk that is lent as";
        assert!(notes.iter().any(|note| note.contains(said)), "{notes:?}");
    }

    #[test]
    fn name_that_is_there_twice_is_explained() {
        let taken = SUBSYSTEM.replace("example:one", "example:one-ns2").replace("/dev/", "/dev/x");
        let text = format!(r#"{{"subsystems": [{SUBSYSTEM}, {taken}, {SUBSYSTEM}], "new": 1}}"#);
        let (requests, notes) = applied(import(&text).unwrap(), &serve(&[]));
        let names = requests.iter().map(|it| it.known_as.as_ref().unwrap().nqn());
        let nqn = |name: &str| format!("nqn.2026-12.com.example:{name}");
        assert_eq!(names.collect::<Vec<_>>(), ["one", "one-ns2", "one-ns2-ns2"].map(nqn));
        for said in [
            "/dev/b, namespace 2 of nqn.2026-12.com.example:one, is left out",
            "a second subsystem nqn.2026-12.com.example:one in the file is left out",
            "not understood in the file, and ignored: new",
        ] {
            assert!(notes.iter().any(|note| note.contains(said)), "{said}: {notes:?}");
        }
    }

    #[test]
    fn what_cannot_be_taken_over_is_named() {
        let rdma = r#"{"traddr": "192.0.2.1", "trsvcid": "4420", "trtype": "rdma"}"#;
        let tls = r#"{"traddr": "192.0.2.1", "trsvcid": "x", "trtype": "tcp"}"#;
        let ports = [port(1, rdma), port(2, tls), port(3, &tcp("127.0.0.1"))];
        let text = config(&ports)
            .replace(r#""referrals": []"#, r#""referrals": [{"name": "other"}]"#)
            .replace(r#""state": "optimized""#, r#""state": "inaccessible""#)
            .replace(r#""allow_any_host": "0""#, r#""allow_any_host": "1", "pi_enable": "1""#);
        let imported = import(&text).unwrap();
        assert_eq!(imported.listen.len(), 1);
        let notes = applied(imported, &serve(&[])).1;
        for said in [
            "port 1 is left out: it is for rdma",
            "port 2 is left out: a port is a number",
            "every disk is optimized (ANA) at port 3",
            "the referrals of port 3",
            "without protection information",
            "--open lets every host in",
        ] {
            assert!(notes.iter().any(|note| note.contains(said)), "{said}: {notes:?}");
        }
        let elsewhere = config(&[port(1, &tcp("::1")).replace("com.example:one", "com.example:x")]);
        let error = import(&elsewhere).unwrap_err();
        assert!(
            error.contains("has no disk to lend") && error.contains("was at no port"),
            "{error}"
        );
    }
}
