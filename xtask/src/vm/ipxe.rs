//! iPXE, which boots a machine from a disk that is lent by iSCSI.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Bench;
use super::console::Message;
use super::guest::Guest;
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

/// The name with which iPXE logs in.
pub(super) const INITIATOR: &str = "iqn.2026-01.com.example:ipxe";

/// Returns a file of Debian's package of iPXE.
pub(super) fn program(bench: &Bench, name: &str) -> Result<PathBuf> {
    let package = bench.cache.pieces("ipxe", Architecture::X86_64, &["ipxe"])?;
    Ok(package.join("usr/lib/ipxe").join(name))
}

/// Returns the arguments of a network card whose network tells iPXE, by DHCP and TFTP, to boot from
/// LUN 0 of the target `iqn`, which this machine serves at `port` of the loopback. The machine has the
/// address 10.0.2.15, and reaches the loopback as 10.0.2.2.
pub(super) fn network(folder: &Path, port: u64, iqn: &str) -> Result<[String; 4]> {
    let served = folder.join("tftp");
    fs::create_dir_all(&served)?;
    let script =
        format!("#!ipxe\nset initiator-iqn {INITIATOR}\nsanboot iscsi:10.0.2.2::{port}:0:{iqn}\n");
    fs::write(served.join("boot.ipxe"), script)?;
    let network = format!("user,id=net,tftp={},bootfile=boot.ipxe", served.display());
    let card = "virtio-net-pci,netdev=net,romfile=".to_owned();
    Ok(["-netdev".to_owned(), network, "-device".to_owned(), card])
}

/// Boots a machine with BIOS from the disk, which must have the boot sectors of [`boot_sectors`].
///
/// # Errors
/// Fails if they do not print their message in time.
pub(super) fn boot(bench: &Bench, folder: &Path, port: u64, iqn: &str) -> Result<()> {
    let machine = "-accel tcg -machine pc,graphics=off -m 256 -nodefaults -no-user-config -display none \
                   -no-reboot -serial stdio -kernel";
    let mut arguments: Vec<String> = machine.split_whitespace().map(str::to_owned).collect();
    arguments.push(program(bench, "ipxe.lkrn")?.display().to_string());
    arguments.extend(network(folder, port, iqn)?);
    let machine = Guest::power_on(folder, "ipxe", &arguments)?;
    match machine.console.next(Instant::now() + PATIENCE)? {
        Message::Passed(name) if name == "ipxe-bios" => Ok(()),
        other => bail!("the disk printed {other:?}"),
    }
}
