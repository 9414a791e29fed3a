//! A lent disk: how it is attached to this machine, and detached.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use linux::fabrics::{Controller, controllers};
use linux::tree::Tree;
use remote::address::TargetAddr;

use super::prepare::{address_to, interface_to, with_lower};
use super::search::Lender;
use crate::attach::{Attached, LentDisk, attach_disks};
use crate::options::attach::Attach;
use failure::Failure;
use keys::record::Allowed;

/// How long the kernel tries to connect again until the system is started, in seconds: this process reads the disk on the
/// thread that shows the screens.
const PATIENCE: i32 = 20;
/// The directory of keys. The system that is started does not see it.
pub(super) const KEYS: &str = "/var/lib/storagetm";
/// Modules that nothing else loads: the host driver with TLS and its ciphers, file systems, and what systemd wants
/// before the modules of this kernel can be loaded there.
const MODULES: &[&str] = &[
    "aesni_intel",
    "ghash_clmulni_intel",
    "aes_ce_blk",
    "ghash_ce",
    "crc32c_generic",
    "gcm",
    "ctr",
    "ghash_generic",
    "tls",
    "nvme_tcp",
    "ext4",
    "xfs",
    "overlay",
    "autofs4",
];

/// Loads what attaching and mounting take.
pub(super) fn load_modules(tree: &Tree) {
    let uname = rustix::system::uname();
    let folder = Path::new("lib/modules").join(uname.release().to_string_lossy().as_ref());
    let line = tree.text("proc/cmdline").unwrap_or_default();
    // What is missing shows itself where it is needed.
    let _ = linux::module::load(tree, folder, &line, MODULES);
}

/// Returns the machine at an address.
///
/// # Errors
/// Fails if the text has another form, or if no address of this machine leads to it.
pub(super) fn lender_at(machine: &str) -> Result<Lender, Failure> {
    let at = TargetAddr::parse(machine, None).ok().filter(|at| at.ip().is_some());
    // This image has a resolver for the names of the list only.
    let at = at.ok_or_else(|| {
        Failure::usage(format!(
            "{machine} is no address: an address is 192.168.1.5 or fe80::1%eth0, with this machine's interface, and with a port \
             192.168.1.5:4421 or [fe80::1%eth0]:4421"
        ))
    })?;
    if at.ip().is_some_and(|ip| at.interface().is_none() && !has_route(ip)) {
        return Err(Failure::new(format!(
            "{machine} cannot be reached: this machine has no address in a network that leads there; ip=dhcp on the kernel \
             command line asks for one"
        )));
    }
    Ok(Lender { name: at.host(), at, others: Vec::new(), keyed: None })
}

fn has_route(to: IpAddr) -> bool {
    !address_to(to).is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable)
}

/// Returns the disk that `wanted` names: its NQN, or its name on the machine.
///
/// # Errors
/// Fails if none is named so, or more than one.
pub(super) fn choose(
    machine: &str,
    disks: Vec<LentDisk>,
    wanted: &str,
) -> Result<LentDisk, Failure> {
    let nqns = |disks: &[LentDisk]| {
        disks.iter().map(|disk| disk.nqn.as_str()).collect::<Vec<_>>().join(", ")
    };
    let all = nqns(&disks);
    let is_called = |disk: &LentDisk| disk.nqn == wanted || disk.name == wanted;
    let mut found: Vec<LentDisk> = disks.into_iter().filter(is_called).collect();
    match (found.pop(), found.is_empty()) {
        (Some(disk), true) => Ok(disk),
        (None, _) => {
            Err(Failure::refused(format!("{machine} lends no disk {wanted}; it lends {all}")))
        }
        (Some(last), false) => {
            found.push(last);
            Err(Failure::usage(format!(
                "{machine} lends several disks {wanted}: say which by its NQN: {}",
                nqns(&found)
            )))
        }
    }
}

/// The options with which a machine is asked, or one disk of it is attached: for the search the kernel gives it up soon. Where
/// `unencrypted`, a machine that accepts no stored key is asked without one, unless it was paired with.
pub(super) fn options(lender: &Lender, disk: Option<&LentDisk>, unencrypted: bool) -> Attach {
    let disk = disk.map(|disk| format!("/{}", disk.nqn)).unwrap_or_default();
    let mut options = Attach::of(format!("nvme://{}{disk}", lender.at), Some(KEYS.into()), None);
    options.patience = PATIENCE;
    options.insecure = unencrypted;
    options
}

/// Attaches a disk. Returns its device, and whether it is writable.
///
/// # Errors
/// Fails with a sentence.
pub(super) fn attach(lender: &Lender, disk: &LentDisk) -> Result<(String, bool), Failure> {
    let (attached, failed) = attach_disks(&options(lender, Some(disk), !disk.encrypted))
        .map_err(|error| error.failure)?;
    let device = attached.iter().flat_map(|it: &Attached| &it.devices).next();
    match (device, failed) {
        (Some(device), _) => Ok((device.path.clone(), device.access == Allowed::Writable)),
        (None, Some(failure)) => Err(failure),
        (None, None) => {
            Err(Failure::new(format!("{} is connected, but its disk does not appear", disk.nqn)))
        }
    }
}

/// Returns the interface by which a disk is attached, and those below it; none if that is not known.
pub(super) fn interfaces(tree: &Tree, nqn: &str) -> Vec<String> {
    let controller = controllers(tree).into_iter().find(|it| it.subsystem == nqn);
    let own = |it: Controller| it.interface.or_else(|| interface_to(it.address?));
    controller.and_then(own).map(|own| with_lower(tree, own)).unwrap_or_default()
}

/// Has the kernel wait for the machine of a disk for ever from now on: the disk is the root of a system.
///
/// # Errors
/// Fails if the disk has gone.
pub(super) fn keep_connection(tree: &Tree, nqn: &str) -> Result<(), Failure> {
    let all = || controllers(tree).into_iter().filter(|it| it.subsystem == nqn);
    for controller in all() {
        controller.never_give_up(tree).map_err(|error| {
            Failure::new(format!("the kernel does not keep the connection to {nqn}: {error}"))
        })?;
    }
    // It may have been given up just before.
    if all().any(|it| !it.state.starts_with("deleting")) {
        return Ok(());
    }
    Err(Failure::new(format!("{nqn} has gone: its machine did not answer any more")))
}

/// Detaches a disk.
pub(super) fn detach(tree: &Tree, nqn: &str) {
    for controller in controllers(tree).into_iter().filter(|it| it.subsystem == nqn) {
        // If it fails, the next attempt uses the connection that exists.
        let _ = controller.delete(tree);
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn disk(name: &str, nqn: &str) -> LentDisk {
        LentDisk { name: name.to_owned(), nqn: nqn.to_owned(), size: None, encrypted: true }
    }

    #[test]
    fn name_of_several_disks_chooses_none() {
        let all = [disk("sda", "nqn.a:1"), disk("nvme0n1", "nqn.a:2"), disk("sda", "nqn.a:uuid:3")];
        let chosen = |wanted: &str| choose("desk", all.to_vec(), wanted);
        for (wanted, nqn) in
            [("nvme0n1", "nqn.a:2"), ("nqn.a:1", "nqn.a:1"), ("nqn.a:uuid:3", "nqn.a:uuid:3")]
        {
            assert_eq!(chosen(wanted).unwrap().nqn, nqn, "{wanted}");
        }
        let several = chosen("sda").unwrap_err();
        assert_eq!(several.status(), 2);
        let text = several.to_string();
        assert!(text.contains("nqn.a:1, nqn.a:uuid:3") && !text.contains("nqn.a:2"), "{text}");
        let none = chosen("sdb").unwrap_err();
        assert_eq!(none.status(), 3);
        assert!(none.to_string().contains("nqn.a:1, nqn.a:2, nqn.a:uuid:3"), "{none}");
    }

    #[test]
    fn only_addresses_are_taken() {
        for address in ["127.0.0.1", "127.0.0.1:4421", "[::1]:1", "fe80::1%eth0"] {
            assert!(lender_at(address).is_ok(), "{address}");
        }
        for wrong in ["desk", "desk.local:4420", "fe80::1", "", "10.0.0.1:0"] {
            let text = lender_at(wrong).unwrap_err().to_string();
            assert!(text.contains("is no address") && !text.contains("name.local"), "{text}");
        }
    }

    /// Class E (RFC 1112) is never routed.
    #[test]
    fn address_without_a_route_names_the_parameter() {
        if has_route("240.0.0.1".parse().unwrap()) {
            // A default route takes every address.
            assert!(lender_at("240.0.0.1").is_ok());
        } else {
            let text = lender_at("240.0.0.1").unwrap_err().to_string();
            assert!(text.contains("ip=dhcp"), "{text}");
        }
    }

    #[test]
    fn machine_that_has_gone_is_not_waited_for_in_the_dialogue() {
        let lender = lender_at("127.0.0.1").unwrap();
        assert!((1..60).contains(&options(&lender, None, false).patience));
    }

    #[test]
    fn connection_is_kept_for_ever_once_the_system_starts() {
        let folder = testkit::Scratch::new();
        let tree = Tree::at(&folder.0);
        let place = folder.0.join("sys/class/nvme/nvme1");
        std::fs::create_dir_all(&place).unwrap();
        assert!(keep_connection(&tree, "nqn.a:1").is_err(), "it is not attached");
        for (name, text) in [
            ("transport", "tcp"),
            ("subsysnqn", "nqn.a:1"),
            ("state", "live"),
            ("ctrl_loss_tmo", "20"),
        ] {
            std::fs::write(place.join(name), text).unwrap();
        }
        keep_connection(&tree, "nqn.a:1").unwrap();
        assert_eq!(std::fs::read_to_string(place.join("ctrl_loss_tmo")).unwrap(), "-1");
        std::fs::write(place.join("state"), "deleting").unwrap();
        assert!(keep_connection(&tree, "nqn.a:1").is_err());
    }
}
