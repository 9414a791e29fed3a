//! The first machine, with the disks that it serves.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::screen::Screen;
use crate::architecture::Architecture;
use crate::vm::guest::link;
use crate::vm::qmp::Qmp;

/// How a machine is booted.
#[derive(Debug, Clone)]
pub(super) enum Start {
    /// A kernel, an initramfs and a command line, loaded by qemu.
    Direct { kernel: PathBuf, initramfs: PathBuf, line: String },
    /// Firmware that boots from a medium; without flash memory, SeaBIOS.
    Firmware { architecture: Architecture, flash: Option<Flash>, medium: PathBuf, bus: Bus },
    /// UEFI firmware that boots from the machine's first disk, again and again.
    Disk(Flash),
}

impl Start {
    fn architecture(&self) -> Architecture {
        match self {
            Self::Direct { .. } | Self::Disk(_) => Architecture::X86_64,
            Self::Firmware { architecture, .. } => *architecture,
        }
    }
}

/// UEFI firmware.
#[derive(Debug, Clone)]
pub(super) struct Flash {
    pub(super) code: PathBuf,
    pub(super) variables: PathBuf,
    /// Whether its variables are protected from the system, as Secure Boot requires.
    pub(super) is_protected: bool,
}

impl Flash {
    /// Returns the qemu arguments, with variables of this machine's own.
    fn devices(&self, folder: &Path, name: &str) -> Result<Vec<String>> {
        let own = folder.join(format!("{name}.variables"));
        std::fs::copy(&self.variables, &own)?;
        let mut words = Vec::new();
        for (unit, path, more) in [(0, &self.code, ",readonly=on"), (1, &own, "")] {
            let path = path.display();
            let drive = format!("if=pflash,format=raw,unit={unit},file={path}{more}");
            words.extend(["-drive".to_owned(), drive]);
        }
        Ok(words)
    }
}

/// How a boot medium is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bus {
    Virtio,
    /// A USB stick with blocks of this size in bytes.
    Usb(u32),
    /// A USB CD drive, like the virtual drives of servers' consoles.
    UsbCd,
    SataCd,
}

impl Bus {
    /// Returns the qemu arguments for a medium in it, which nothing may write to.
    fn devices(self, medium: &Path) -> Vec<String> {
        let kind = if matches!(self, Self::UsbCd | Self::SataCd) { ",media=cdrom" } else { "" };
        let drive =
            format!("file={},format=raw,if=none,id=start,readonly=on{kind}", medium.display());
        let device = match self {
            Self::Virtio => "virtio-blk-pci,drive=start,serial=START,bootindex=1".to_owned(),
            // usb-storage does not pass on the block size.
            Self::Usb(block) => format!(
                "scsi-hd,bus=stick.0,drive=start,serial=START,bootindex=1,\
                 logical_block_size={block},physical_block_size={block}"
            ),
            Self::UsbCd => "scsi-cd,bus=stick.0,drive=start,bootindex=1".to_owned(),
            Self::SataCd => "ide-cd,drive=start,bootindex=1".to_owned(),
        };
        let words = "-device qemu-xhci -device usb-bot,id=stick".split(' ');
        let words = words.filter(|_| matches!(self, Self::Usb(_) | Self::UsbCd));
        words.chain(["-drive", &drive, "-device", &device]).map(str::to_owned).collect()
    }
}

/// A running machine; killed on drop.
#[derive(Debug)]
pub(super) struct Machine {
    child: Child,
    start: Instant,
    control: PathBuf,
    /// Its serial terminal.
    pub(super) screen: Screen,
}

impl Machine {
    /// Starts a machine at its end of the link, which is in the parent of its log directory.
    pub(super) fn power_on(
        start: &Start,
        devices: &[String],
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        let control = folder.join(format!("{name}.qmp"));
        let mut command = Command::new(emulator(start.architecture()));
        command.args(machine(start)).args(starting(start, folder, name)?).args(devices);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", control.display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(folder.join(format!("{name}.qemu")))?);
        let log = File::create(folder.join(format!("{name}.log")))?;
        let start = Instant::now();
        let mut child = command.spawn().context("qemu cannot be started")?;
        let serial = child.stdout.take().context("qemu has no output")?;
        Ok(Self { child, start, control, screen: Screen::follow(serial, start, log) })
    }

    /// Returns the time since power on.
    pub(super) fn since_power_on(&self, then: Instant) -> Duration {
        then.saturating_duration_since(self.start)
    }

    /// Returns a connection to its QMP socket.
    pub(super) fn control(&self) -> Result<Qmp> {
        Qmp::connect(&self.control)
    }

    /// Presses a key at the serial terminal.
    pub(super) fn type_key(&mut self, key: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("the machine has no serial terminal")?;
        keyboard.write_all(key.as_bytes())?;
        Ok(keyboard.flush()?)
    }

    /// Checks that it is still running after a while.
    pub(super) fn stays_on(&mut self, time: Duration) -> Result<()> {
        std::thread::sleep(time);
        ensure!(self.child.try_wait()?.is_none(), "the machine has ended by itself");
        Ok(())
    }

    /// Waits until qemu has exited.
    pub(super) fn until_off(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "qemu ended with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "qemu still runs after {} s", patience.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the program that emulates an architecture.
pub(super) fn emulator(architecture: Architecture) -> String {
    format!("qemu-system-{}", architecture.name())
}

/// Arguments of every machine. The systemd initrd is unpacked into memory: it needs the most.
fn machine(start: &Start) -> Vec<String> {
    let is_protected = match start {
        Start::Firmware { flash: Some(flash), .. } | Start::Disk(flash) => flash.is_protected,
        _ => false,
    };
    let once = if matches!(start, Start::Disk(_)) { "" } else { " -no-reboot" };
    let kind = match (start.architecture(), is_protected) {
        (Architecture::X86_64, true) => {
            "q35,smm=on -global driver=cfi.pflash01,property=secure,value=on -cpu max"
        }
        (Architecture::X86_64, false) => "q35 -cpu max",
        // Without a random number generator the kernel takes long to have entropy.
        (Architecture::Aarch64, _) => "virt -cpu cortex-a72 -device virtio-rng-pci",
    };
    let words = format!(
        "-accel tcg,thread=multi -machine {kind} -smp 2 -m 1536 -nodefaults -no-user-config \
         -display none{once} -device virtio-scsi-pci,id=scsi"
    );
    words.split(' ').map(str::to_owned).collect()
}

/// The end of the link that reconnects.
pub(super) fn network_card(folder: &Path) -> Vec<String> {
    link(&folder.join("link"), 2).to_vec()
}

fn starting(start: &Start, folder: &Path, name: &str) -> Result<Vec<String>> {
    Ok(match start {
        Start::Direct { kernel, initramfs, line } => {
            let path = |path: &Path| path.display().to_string();
            let words = ["-kernel", &path(kernel), "-initrd", &path(initramfs), "-append", line];
            words.map(str::to_owned).to_vec()
        }
        Start::Firmware { flash, medium, bus, .. } => {
            let mut words = Vec::new();
            if let Some(flash) = flash {
                words = flash.devices(folder, name)?;
            }
            words.extend(bus.devices(medium));
            words
        }
        Start::Disk(flash) => flash.devices(folder, name)?,
    })
}
