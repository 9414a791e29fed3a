//! A virtual machine under qemu, with its serial console.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Bench;
use super::cache::Kernel;
use super::console::Console;
use super::initramfs::{self, Job};

/// A running machine; killed on drop.
#[derive(Debug)]
pub(super) struct Guest {
    child: Child,
    /// Its serial console.
    pub(super) console: Console,
}

impl Guest {
    /// Boots a machine with a job; `devices` are further arguments of qemu.
    pub(super) fn boot(
        bench: &Bench,
        kernel: &Kernel,
        folder: &Path,
        job: &Job<'_>,
        devices: &[String],
    ) -> Result<Self> {
        let name = job.role;
        let initramfs = folder.join(format!("{name}.cpio"));
        initramfs::write(bench, kernel, job, &initramfs)?;
        let path = |path: &Path| path.display().to_string();
        let kernel = path(&bench.cache.boot_image(kernel)?);
        let boot = ["-kernel", &kernel, "-initrd", &path(&initramfs), "-append", COMMAND_LINE];
        let mut arguments: Vec<String> =
            machine().into_iter().chain(boot).map(str::to_owned).collect();
        arguments.extend_from_slice(devices);
        Self::power_on(folder, name, &arguments)
    }

    /// Starts a machine with these arguments of qemu; its logs are named after it.
    pub(super) fn power_on(folder: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let mut child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join(format!("{name}.qemu")))?)
            .spawn()
            .context("qemu cannot be started")?;
        let serial = child.stdout.take().context("qemu has no output")?;
        let log = File::create(folder.join(format!("{name}.log")))?;
        Ok(Self { child, console: Console::follow(&format!("the {name} machine"), serial, log) })
    }

    /// Types a line on the machine's serial console.
    pub(super) fn type_line(&mut self, line: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("the machine has no serial console")?;
        Ok(writeln!(keyboard, "{line}")?)
    }

    /// Waits until the machine has powered off.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < deadline, "the machine did not power off");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if the machine has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line of the kernel. The self-tests of ciphers and groups are disabled: emulated, the
/// largest group takes so long that handshakes time out.
pub(super) const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=1 panic=-1 nvme_core.multipath=Y cryptomgr.notests";

/// Arguments of every machine. KVM is not used: some machines have a /dev/kvm that cannot run
/// distribution kernels, and emulated boots take four seconds.
pub(super) fn machine() -> [&'static str; 17] {
    [
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-machine",
        "q35",
        "-smp",
        "2",
        "-m",
        "768",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    ]
}

/// Returns the arguments for an image as a virtio disk with a serial number.
pub(super) fn virtio_disk(image: &Path, serial: &str, read_only: bool) -> [String; 4] {
    let access = if read_only { "on" } else { "off" };
    let image = image.display();
    [
        "-drive".to_owned(),
        format!("file={image},format=raw,if=none,id={serial},cache=unsafe,readonly={access}"),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive={serial},serial={serial}"),
    ]
}

/// Returns the arguments for a network card on a private link to another machine: the first end
/// listens.
pub(super) fn link(socket: &Path, end: u8) -> [String; 4] {
    let server = if end == 1 { "on" } else { "off" };
    let socket = socket.display();
    [
        "-netdev".to_owned(),
        format!("stream,id=net,server={server},addr.type=unix,addr.path={socket}"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:0{end},romfile="),
    ]
}
