//! What the first program of a machine must do: mount what the kernel offers, take the dead in, end the machine.
//!
//! Does not know what else runs.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// File systems that are made of nothing but what the kernel knows: where, which, and with what options.
const MOUNTS: [(&str, &str, &str); 4] = [
    ("/dev", "devtmpfs", "mode=0755"),
    ("/proc", "proc", ""),
    ("/sys", "sysfs", ""),
    ("/run", "tmpfs", "mode=0755,size=16m"),
];

/// Mounts them where nothing is mounted yet; what failed comes back, a sentence each.
pub fn mount_all() -> Vec<String> {
    let failed = |(place, kind, options): &(&str, &str, &str)| {
        mount_one(place, kind, options)
            .err()
            .map(|error| format!("{kind} cannot be mounted at {place}: {error}"))
    };
    MOUNTS.iter().filter_map(failed).collect()
}

fn mount_one(place: &str, kind: &str, options: &str) -> io::Result<()> {
    std::fs::create_dir_all(place)?;
    if is_mounted(Path::new(place))? {
        return Ok(());
    }
    let exec = if kind == "tmpfs" { MountFlags::NOEXEC } else { MountFlags::empty() };
    let options = std::ffi::CString::new(options)?;
    mount(kind, place, kind, MountFlags::NOSUID | exec, Some(options.as_c_str()))?;
    Ok(())
}

fn is_mounted(place: &Path) -> io::Result<bool> {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    Ok(device(place)? != device(Path::new("/"))?)
}

/// Keeps the kernel's messages off the consoles, but for what is the end of the machine.
pub fn quiet_kernel() -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/printk", "1")
}

/// Has Ctrl-Alt-Del come as SIGINT, instead of restarting the machine at once.
pub fn catch_ctrl_alt_del() -> io::Result<()> {
    Ok(reboot(RebootCommand::CadOff)?)
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Waits for a child, and takes in all others that end meanwhile: the first program inherits the orphans.
///
/// # Errors
/// There is no such child.
pub fn wait_for(child: Pid) -> io::Result<Exit> {
    loop {
        let ended = match wait(WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => continue,
            ended => ended?,
        };
        let Some((_, status)) = ended.filter(|(pid, _)| *pid == child) else { continue };
        if let Some(status) = status.exit_status() {
            return Ok(Exit::Exited(status));
        }
        if let Some(signal) = status.terminating_signal() {
            return Ok(Exit::Killed(signal));
        }
    }
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It is off.
    Off,
    /// It starts again.
    Restart,
}

/// Ends the machine. It returns only if that did not work.
pub fn shut_down(how: Power) -> io::Error {
    let command = match how {
        Power::Off => RebootCommand::PowerOff,
        Power::Restart => RebootCommand::Restart,
    };
    match reboot(command) {
        Ok(()) => io::Error::other("the machine goes on"),
        Err(error) => error.into(),
    }
}
