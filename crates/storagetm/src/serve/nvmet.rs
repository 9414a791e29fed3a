//! Configuration of the kernel's NVMe target, as `nvmetcli save` writes it (`--nvmet-config`): its disks are lent under the
//! names that hosts know, at its addresses. What cannot be taken over is named.

mod saved;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::options::Serve;
use daemon::lend::{LendRequest, Writes};
use daemon::listen::ListenOption;
use daemon::reported::KnownAs;
use failure::Failure;
use protocol::Protocol;
use saved::{Namespace, Port, Saved, Subsystem, is_on, text};

/// The port of NVMe/TCP if none was saved.
const DEFAULT_PORT: &str = "4420";

/// Adds the disks in the file of `--nvmet-config`. Returns its addresses, unless others are given, and notes for the user.
///
/// # Errors
/// As [`read`].
pub(super) fn import(
    options: &Serve,
    disks: &mut Vec<LendRequest>,
) -> Result<(Vec<ListenOption>, Vec<String>), Failure> {
    let Some(path) = &options.nvmet_config else { return Ok(Default::default()) };
    let mut imported = read(path)?;
    imported.apply(disks);
    let listen = std::mem::take(&mut imported.listen);
    if listen.is_empty() && options.listen.is_empty() {
        return Err(Failure::new(format!(
            "{} has no address for NVMe/TCP; name one with --listen{}",
            path.display(),
            imported.notes.iter().map(|note| format!("; {note}")).collect::<String>()
        )));
    }
    let listen = if options.listen.is_empty() { listen } else { Vec::new() };
    Ok((listen, imported.notes(options.open)))
}

/// What is taken over.
#[derive(Debug, Default)]
struct Imported {
    disks: Vec<Disk>,
    listen: Vec<ListenOption>,
    notes: Vec<String>,
    /// Whether a subsystem let every host in.
    allows_any: bool,
    /// Subsystems by the hosts that may attach them.
    allowed: Vec<(String, Vec<String>)>,
}

/// A namespace.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    known: KnownAs,
    /// The subsystem that it was in.
    subsystem: String,
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
    saved.subsystems.iter().for_each(|subsystem| imported.add_subsystem(subsystem, &saved));
    saved.ports.iter().for_each(|port| imported.add_port(port, &saved));
    imported.add_hosts(&saved);
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
            self.add_namespace(subsystem, (at, nsid), namespace);
        }
        self.allows_any |= subsystem.attribute("allow_any_host").as_deref() == Some("1");
    }

    /// Adds a namespace. A subsystem has one here: the first keeps the name, the others get one each.
    fn add_namespace(
        &mut self,
        subsystem: &Subsystem,
        (at, nsid): (usize, u32),
        saved: &Namespace,
    ) {
        let nqn = &subsystem.nqn;
        let device = |name| saved.device.get(name).and_then(text);
        let Some(path) = device("path") else {
            return self
                .note(format!("namespace {nsid} of {nqn} is left out: it has no device path"));
        };
        let own = if at == 0 { nqn.clone() } else { format!("{nqn}-ns{nsid}") };
        let Some(known) = KnownAs::new(&own) else {
            return self.note(format!("{path} is left out: {own} is too long for a name"));
        };
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
            let disks = self.disks.iter().filter(|disk| disk.subsystem == subsystem.nqn);
            let names: Vec<String> = disks.map(|disk| disk.known.nqn().to_owned()).collect();
            for host in &subsystem.allowed_hosts {
                match self.allowed.iter_mut().find(|(known, _)| known == host) {
                    Some((_, disks)) => disks.extend(names.iter().cloned()),
                    None => self.allowed.push((host.clone(), names.clone())),
                }
            }
        }
        if saved.hosts.iter().any(|host| host.has_key) {
            self.note("keys of hosts for DH-HMAC-CHAP are not taken from the file: storagetm key import takes them".to_owned());
        }
    }

    /// Gives the disks to those of `requests` that name them, and adds the others, read-only.
    fn apply(&mut self, requests: &mut Vec<LendRequest>) {
        let mut read_only = Vec::new();
        for Disk { path, known, .. } in self.disks.drain(..) {
            let known = Some(known);
            match requests.iter_mut().find(|it| it.path == path && it.known_as.is_none()) {
                Some(request) => request.known_as = known,
                None => {
                    read_only.push(path.display().to_string());
                    let request = LendRequest::new(path, Writes::Refused);
                    requests.push(LendRequest { known_as: known, ..request });
                }
            }
        }
        if !read_only.is_empty() {
            self.note(format!(
                "hosts could write to {}: here they can with --writable DISK",
                read_only.join(", ")
            ));
        }
    }

    /// Returns what the user has to know. `open`: hosts need no key.
    fn notes(self, open: bool) -> Vec<String> {
        let Self { mut notes, allows_any, allowed, .. } = self;
        if open && !allowed.is_empty() {
            notes.push("with --open every host may attach the disks, also those that were for some hosts only".to_owned());
        }
        if !open && allows_any {
            notes.push(
                "hosts needed no key: here they need one, from storagetm pair or storagetm host add; --open lets every host in"
                    .to_owned(),
            );
        }
        for (host, disks) in allowed.into_iter().filter(|_| !open) {
            let disks: String = disks.iter().map(|disk| format!(" --disk {disk}")).collect();
            notes.push(format!(
                "{host} was let in by its name alone, or with a key that is not in the file; here: storagetm host add \
                 {host}{disks} --writable"
            ));
        }
        notes
    }
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
    use super::*;
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
        let mut imported =
            import(&config(&[port(1, &tcp("127.0.0.1")), port(2, &tcp("::1"))])).unwrap();
        let listen: Vec<ListenOption> =
            ["nvme:127.0.0.1:4420", "nvme:[::1]:4420"].map(|text| text.parse().unwrap()).into();
        assert_eq!(imported.listen, listen);
        let mut requests = vec![LendRequest::new(PathBuf::from("/dev/a"), Writes::ToDisk)];
        imported.apply(&mut requests);
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
        let notes = imported.notes(false);
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
        let notes = imported.notes(false);
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
