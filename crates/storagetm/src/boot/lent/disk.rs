//! A lent disk: how it is attached to this machine, and detached.

use std::path::Path;

use linux::fabrics::{Controller, controllers};
use linux::tree::Tree;
use remote::address::TargetAddr;

use super::prepare::{interface_to, with_lower};
use super::search::Lender;
use crate::attach::{Attached, LentDisk, attach_disks};
use crate::options::attach::Attach;
use failure::Failure;
use keys::record::Allowed;

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
/// Fails with a sentence if it is none.
pub(super) fn lender_at(machine: &str) -> Result<Lender, Failure> {
    let at = TargetAddr::parse(machine, None)
        .map_err(|reason| Failure::usage(format!("{machine}: {reason}")))?;
    Ok(Lender { name: at.host(), at, keyed: None })
}

/// The options with which a machine is asked, or one disk of it is attached: the kernel never gives it up. Where
/// `unencrypted`, a machine that accepts no stored key is asked without one, unless it was paired with.
pub(super) fn options(lender: &Lender, disk: Option<&LentDisk>, unencrypted: bool) -> Attach {
    let disk = disk.map(|disk| format!("/{}", disk.nqn)).unwrap_or_default();
    let mut options = Attach::of(format!("nvme://{}{disk}", lender.at), Some(KEYS.into()), None);
    options.patience = -1;
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

/// Detaches a disk.
pub(super) fn detach(tree: &Tree, nqn: &str) {
    for controller in controllers(tree).into_iter().filter(|it| it.subsystem == nqn) {
        // If it fails, the next attempt uses the connection that exists.
        let _ = controller.delete(tree);
    }
}
