//! `storagetm boot --now`: restarts a running machine into target mode, by kexec.

mod plan;

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use ::image::cpio::Archive;
use console::escape_lines_to_ascii;
use failure::Failure;
use keys::store::{Store, StoredFile};
use linux::kexec;
use linux::tree::Tree;

use crate::confirmation;
use crate::image;
use crate::options::boot::Boot;
use plan::Plan;

/// The key store of target mode, whose init is root.
const KEY_STORE: &str = "var/lib/storagetm";
/// Names of disks without a serial number are made from it.
const MACHINE_ID: &str = "etc/machine-id";
/// Permissions of files with keys.
const PRIVATE: u32 = 0o600;

/// Shown where kexec is not possible.
const OTHER_WAY: &str = "storagetm image --for this-machine --entry adds an entry to the boot loader instead; give it the \
                         addresses and the return time by --command-line, as it has neither these nor the keys of hosts";

/// Shows what will happen, asks for consent, and restarts the machine.
///
/// # Errors
/// Fails if no host could attach a disk afterwards, or if this machine cannot be restarted so.
pub(super) fn run(options: &Boot) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("restarting this machine into target mode needs root"));
    }
    let tree = Tree::machine();
    let store = Store::open(&Store::locate(options.keys.as_deref())?)?;
    let (hosts, files): (Vec<_>, Vec<_>) =
        store.files_of_hosts(SystemTime::now()).into_iter().unzip();
    let plan = Plan::new(&tree, options, hosts)?;
    let text = format!("{}\n", escape_lines_to_ascii(plan.to_string().trim_end()));
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Failure::new(format!("standard output cannot be written: {error}")))?;
    if let Some(obstacle) = obstacle(&tree) {
        return Err(impossible(obstacle));
    }
    if options.dry_run {
        return Ok(());
    }
    let question = "This system stops, with all that runs on it";
    confirmation::consent(question, "yes", "--yes", options.yes).map_err(Failure::new)?;
    let (kernel, initramfs) = image::for_this_machine()?;
    let initramfs = [own_files(&tree, &files.concat()), initramfs].concat();
    kexec::load(&kernel, &initramfs, &plan.command_line)
        .map_err(|error| impossible(&refusal(&kernel, &error)))?;
    restart()
}

fn obstacle(tree: &Tree) -> Option<&'static str> {
    let is_systemd = tree.path("run/systemd/system").exists();
    let unordered =
        "systemd does not run here, which would stop the services and unmount the file systems";
    kexec::obstacle(tree).or(if is_systemd { None } else { Some(unordered) })
}

fn impossible(reason: &str) -> Failure {
    Failure::new(format!("this machine cannot be restarted by kexec: {reason}. {OTHER_WAY}"))
}

fn refusal(kernel: &Path, error: &io::Error) -> String {
    let kernel = kernel.display();
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM) => {
            format!("the kernel refuses to load {kernel} (locked down, or in a container)")
        }
        Some(
            rustix::io::Errno::NOKEY | rustix::io::Errno::KEYREJECTED | rustix::io::Errno::NODATA,
        ) => format!("{kernel} has no signature that the running kernel accepts"),
        _ => format!("{kernel} cannot be loaded: {error}"),
    }
}

/// Returns an archive of the hosts with their keys, and of the identity of this machine.
fn own_files(tree: &Tree, files: &[StoredFile]) -> Vec<u8> {
    let mut archive = Archive::new(0);
    if let Ok(id) = tree.bytes(MACHINE_ID) {
        archive.file(MACHINE_ID, &id);
    }
    for (path, content) in files {
        archive.file_with_mode(&format!("{KEY_STORE}/{}", path.display()), PRIVATE, content);
    }
    archive.finish()
}

/// Stops the services, unmounts the file systems, and starts the loaded kernel.
fn restart() -> Result<(), Failure> {
    let reason = match Command::new("systemctl").arg("kexec").status() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    // A later restart is not to start it.
    let _ = kexec::unload();
    Err(Failure::new(format!("the restart was refused (systemctl kexec: {reason})")))
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn hosts_and_machine_id_are_where_target_mode_reads_them() {
        let folder = Scratch::new();
        std::fs::create_dir(folder.0.join("etc")).unwrap();
        std::fs::write(folder.0.join("etc/machine-id"), "0123\n").unwrap();
        let key = ("keys/laptop".into(), b"a key\n".to_vec().into());
        let archive = own_files(&Tree::at(&folder.0), &[key]);
        let text = String::from_utf8_lossy(&archive).into_owned();
        assert!(text.contains("etc/machine-id\0") && text.contains("0123\n"), "{text}");
        assert!(text.contains("var/lib/storagetm/keys/laptop\0"), "{text}");
        let mode = text.split("070701").find(|entry| entry.contains("keys/laptop")).unwrap();
        assert_eq!(&mode[8..16], "00008180", "readable by root alone");
    }

    #[test]
    fn machine_without_systemd_is_told_the_other_way() {
        let folder = Scratch::new();
        std::fs::create_dir_all(folder.0.join("sys/kernel")).unwrap();
        std::fs::write(folder.0.join("sys/kernel/kexec_loaded"), "0\n").unwrap();
        let tree = Tree::at(&folder.0);
        let failure = impossible(obstacle(&tree).unwrap()).to_string();
        assert!(failure.contains("systemd does not run"), "{failure}");
        assert!(failure.contains("storagetm image --for this-machine --entry"), "{failure}");
        std::fs::create_dir_all(folder.0.join("run/systemd/system")).unwrap();
        assert_eq!(obstacle(&tree), None);
    }
}
