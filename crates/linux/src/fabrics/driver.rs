//! Has the driver of the NVMe/TCP host loaded, if it is not there.
//!
//! Does not know what is connected by it.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{DEVICE, FabricsError};
use crate::module;
use crate::tree::Tree;

const NAME: &str = "nvme_tcp";
/// Where the kernel says which program loads modules for it.
const HELPER: &str = "proc/sys/kernel/modprobe";

/// Loads the driver: by the program that the kernel itself uses for it, which knows this machine's rules, else without.
///
/// # Errors
/// It is not there afterwards.
pub fn load(tree: &Tree) -> Result<(), FabricsError> {
    if is_there(tree) {
        return Ok(());
    }
    match tree.attribute(HELPER).map(|helper| tree.path(helper)).filter(|helper| helper.exists()) {
        Some(helper) => by_helper(&helper),
        None => by_itself(tree),
    }
    // Built into the kernel it may have no folder of its own.
    if tree.path(DEVICE).exists() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    Err(if root { FabricsError::Absent } else { FabricsError::Denied })
}

fn is_there(tree: &Tree) -> bool {
    let module = tree.path("sys/module").join(NAME);
    module.exists() && tree.path(DEVICE).exists()
}

/// What it says, if it fails, is no more than that the driver is not there.
fn by_helper(helper: &Path) {
    let mut command = Command::new(helper);
    command.args(["-q", "--", NAME]).env_clear();
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn by_itself(tree: &Tree) {
    let uname = rustix::system::uname();
    let folder = Path::new("lib/modules").join(uname.release().to_string_lossy().as_ref());
    let line = tree.text("proc/cmdline").unwrap_or_default();
    let _ = module::load(tree, folder, &line, NAME);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn a_driver_that_is_there_is_not_loaded_and_one_that_is_nowhere_is_said() {
        let fake = Fake::new();
        let error = load(&fake.tree()).unwrap_err();
        assert!(matches!(error, FabricsError::Absent | FabricsError::Denied));
        fake.file("sys/module/nvme_tcp/initstate", "live\n").file(DEVICE, "");
        load(&fake.tree()).unwrap();
    }

    #[test]
    fn the_kernels_own_helper_is_asked() {
        use std::os::unix::fs::PermissionsExt;
        let fake = Fake::new();
        let (said, driver) = (fake.root.join("said"), fake.root.join("sys/module/nvme_tcp"));
        let script = format!(
            "#!/bin/sh\necho \"$@\" >{}\n/bin/mkdir -p {} {}\n: >{}\n",
            said.display(),
            driver.display(),
            fake.root.join("dev").display(),
            fake.root.join(DEVICE).display()
        );
        fake.file("sbin/helper", script).file(HELPER, "/sbin/helper\n");
        let helper = fake.root.join("sbin/helper");
        std::fs::set_permissions(helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        load(&fake.tree()).unwrap();
        assert_eq!(std::fs::read_to_string(said).unwrap(), "-q -- nvme_tcp\n");
    }
}
