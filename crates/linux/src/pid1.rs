//! Duties of PID 1: mount the kernel's file systems, reap orphaned processes, power off the
//! machine.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// The kernel's virtual file systems: mount point, type and options.
const MOUNTS: [(&str, &str, &str); 4] = [
    ("/dev", "devtmpfs", "mode=0755"),
    ("/proc", "proc", ""),
    ("/sys", "sysfs", ""),
    ("/run", "tmpfs", "mode=0755,size=16m"),
];

/// Mounts them unless something is mounted there. Returns a sentence for each failure.
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

/// Keeps kernel messages off the console, except emergencies.
pub fn quiet_kernel() -> io::Result<()> {
    std::fs::write("/proc/sys/kernel/printk", "1")
}

/// Makes Ctrl-Alt-Del send SIGINT to PID 1, instead of restarting the machine at once.
pub fn catch_ctrl_alt_del() -> io::Result<()> {
    Ok(reboot(RebootCommand::CadOff)?)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Exited with this status.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
}

/// Waits for a child, and reaps all other children meanwhile: PID 1 inherits orphans.
///
/// # Errors
/// Fails if the child does not exist.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Power off.
    Off,
    /// Restart.
    Restart,
}

/// Powers off or restarts the machine. Returns only on failure.
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
