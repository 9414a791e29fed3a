//! A machine with BIOS that iPXE boots from a disk that is lent by iSCSI.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Bench;
use super::console::{Console, Message};
use crate::architecture::Architecture;

/// iPXE takes half a minute on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// The start of a disk: a boot sector for BIOS, which reads the second sector by INT 13h (EDD, function
/// 42h) and prints it by INT 10h up to the first zero byte. Its second sector is a message of a test.
pub(super) fn boot_sectors() -> Vec<u8> {
    #[rustfmt::skip]
    let code: [u8; 51] = [
        0x31, 0xc0,             // xor ax, ax
        0x8e, 0xd8,             // mov ds, ax
        0x8e, 0xc0,             // mov es, ax
        0xbe, 0x23, 0x7c,       // mov si, packet
        0xb4, 0x42,             // mov ah, 42h
        0xcd, 0x13,             // int 13h
        0x72, 0x11,             // jc stop
        0xbe, 0x00, 0x7e,       // mov si, 7e00h
        0xac,                   // next: lodsb
        0x84, 0xc0,             // test al, al
        0x74, 0x09,             // jz stop
        0xb4, 0x0e,             // mov ah, 0eh
        0xbb, 0x07, 0x00,       // mov bx, 7
        0xcd, 0x10,             // int 10h
        0xeb, 0xf2,             // jmp next
        0xf4,                   // stop: hlt
        0xeb, 0xfd,             // jmp stop
        // packet: one block from LBA 1 to 0000:7e00
        0x10, 0x00, 0x01, 0x00, 0x00, 0x7e, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];
    let mut sectors = code.to_vec();
    sectors.resize(510, 0);
    sectors.extend([0x55, 0xaa]);
    // The console of the firmware holds back the last character.
    sectors.extend(b"\r\nvmtest ok ipxe-bios\r\n\r\n ");
    sectors.resize(1024, 0);
    sectors
}

/// Boots from LUN 0 of the target `iqn`, which this machine serves at `port` of the loopback.
///
/// # Errors
/// Fails if the boot sector of the disk does not print its message in time.
pub(super) fn boot(bench: &Bench, folder: &Path, port: u64, iqn: &str) -> Result<()> {
    let loader =
        bench.cache.pieces("ipxe", Architecture::X86_64, &["ipxe"])?.join("usr/lib/ipxe/ipxe.lkrn");
    let script = folder.join("script.ipxe");
    let initiator = "iqn.2026-01.com.example:ipxe";
    fs::write(
        &script,
        format!(
            "#!ipxe\ndhcp\nset initiator-iqn {initiator}\nsanboot iscsi:10.0.2.2::{port}:0:{iqn}\n"
        ),
    )?;
    let devices = "-accel tcg -machine pc,graphics=off -m 256 -nodefaults -no-user-config -display none -no-reboot \
                   -serial stdio -netdev user,id=net -device virtio-net-pci,netdev=net,romfile=";
    let mut machine = Command::new("qemu-system-x86_64")
        .args(devices.split_whitespace())
        .arg("-kernel")
        .arg(loader)
        .arg("-initrd")
        .arg(script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("ipxe.qemu"))?)
        .spawn()
        .context("qemu cannot be started")?;
    let serial = machine.stdout.take().context("qemu has no output")?;
    let console =
        Console::follow("the iPXE machine", serial, File::create(folder.join("ipxe.log"))?);
    let outcome = until_passed(&console);
    // Both fail only if it has ended already.
    let _ = machine.kill();
    let _ = machine.wait();
    outcome
}

fn until_passed(console: &Console) -> Result<()> {
    match console.next(Instant::now() + PATIENCE)? {
        Message::Passed(name) if name == "ipxe-bios" => Ok(()),
        other => bail!("the disk printed {other:?}"),
    }
}
