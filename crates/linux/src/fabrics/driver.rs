//! Loads the kernel's NVMe/TCP host driver.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{DEVICE, FabricsError};
use crate::module;
use crate::tree::Tree;

const NAME: &str = "nvme_tcp";
/// The path of the kernel's module loader.
const HELPER: &str = "proc/sys/kernel/modprobe";

/// Loads the driver with the kernel's module loader (`modprobe`), which follows the rules of this
/// machine, or without it if there is none.
///
/// # Errors
/// Fails if the driver is not available afterwards.
pub fn load(tree: &Tree) -> Result<(), FabricsError> {
    if is_there(tree) {
        return Ok(());
    }
    match tree.attribute(HELPER).map(|helper| tree.path(helper)).filter(|helper| helper.exists()) {
        Some(helper) => load_by_helper(&helper),
        None => load_directly(tree),
    }
    // A built-in driver may have no directory in `/sys/module`.
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

/// Errors are ignored: the caller checks whether the driver is available.
fn load_by_helper(helper: &Path) {
    let mut command = Command::new(helper);
    command.args(["-q", "--", NAME]).env_clear();
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn load_directly(tree: &Tree) {
    let uname = rustix::system::uname();
    let folder = Path::new("lib/modules").join(uname.release().to_string_lossy().as_ref());
    let line = tree.text("proc/cmdline").unwrap_or_default();
    let _ = module::load(tree, folder, &line, &[NAME]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn loaded_driver_is_kept_and_missing_driver_is_an_error() {
        let fake = Fake::new();
        let error = load(&fake.tree()).unwrap_err();
        assert!(matches!(error, FabricsError::Absent | FabricsError::Denied));
        fake.file("sys/module/nvme_tcp/initstate", "live\n").file(DEVICE, "");
        load(&fake.tree()).unwrap();
    }

    #[test]
    fn module_loader_of_the_kernel_is_called() {
        use std::os::unix::fs::PermissionsExt;
        let fake = Fake::new();
        let (arguments, driver) = (fake.root.join("said"), fake.root.join("sys/module/nvme_tcp"));
        let script = format!(
            "#!/bin/sh\necho \"$@\" >{}\n/bin/mkdir -p {} {}\n: >{}\n",
            arguments.display(),
            driver.display(),
            fake.root.join("dev").display(),
            fake.root.join(DEVICE).display()
        );
        fake.file("sbin/helper", script).file(HELPER, "/sbin/helper\n");
        let helper = fake.root.join("sbin/helper");
        std::fs::set_permissions(helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        load(&fake.tree()).unwrap();
        assert_eq!(std::fs::read_to_string(arguments).unwrap(), "-q -- nvme_tcp\n");
    }
}
