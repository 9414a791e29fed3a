//! The disk of a server: Debian's systemd, kernel and boot loaders, installed without their package
//! manager.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use image::cpio::Archive;
use image::files::Files;

use crate::vm::Bench;
use crate::vm::apt::succeed;
use crate::vm::boot::systemd;
use crate::vm::boot::ways::modules;
use crate::vm::cache::{Cache, Kernel};
use crate::vm::image::{MIB, bootable, ext4};
use crate::vm::modules;

/// Packages besides those of the initrd of systemd: what installs and chooses entries of GRUB.
const PACKAGES: &[&str] =
    &["dash", "diffutils", "findutils", "gettext-base", "grep", "grub2-common", "mawk"];
/// What a server does without.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "usr/share/zoneinfo",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
];
/// Bytes of the root file system.
const ROOT: u64 = 320 * MIB;
const UUID: &str = "5b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d12";
/// A shell on the serial line, in place of a login.
const LINE: &str = "console=ttyS0 quiet net.ifnames=0 systemd.debug_shell=ttyS0 systemd.mask=serial-getty@ttyS0.service";
/// Mounts the root file system and starts its init.
const INIT: &str = "#!/busybox/sh\nexport PATH=/busybox\nmount -t devtmpfs dev /dev\n\
    while read -r module; do insmod \"$module\"; done </modules/order\n\
    until [ -b /dev/vda2 ]; do usleep 100000; done\n\
    mount -t ext4 -o ro /dev/vda2 /root\nmount --move /dev /root/dev\nexec switch_root /root /usr/lib/systemd/systemd\n";
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];
/// What the system writes to its console when it is up, with its network.
pub(super) const UP: &str = "The server is up.";
/// The address of the server on a VLAN of its card.
pub(super) const ON_VLAN: &str = "192.168.55.1";
/// The settings of systemd-networkd: the card asks DHCP, and has a VLAN.
const NETWORK: [(&str, &str); 3] = [
    ("vlan.netdev", "[NetDev]\nName=eth0.5\nKind=vlan\n[VLAN]\nId=5\n"),
    ("card.network", "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nVLAN=eth0.5\n"),
    ("vlan.network", "[Match]\nName=eth0.5\n[Network]\nAddress=192.168.55.1/24\n"),
];
/// Units that the installation of their package would enable, by the target that wants them.
const WANTED: [(&str, &str); 2] = [
    ("multi-user.target", "systemd-networkd.service"),
    ("network-online.target", "systemd-networkd-wait-online.service"),
];

/// The boot loaders of the server, in Debian's packages.
const LOADERS: [(&str, &str); 3] = [
    ("EFI/BOOT/BOOTX64.EFI", "usr/lib/shim/shimx64.efi.signed"),
    ("EFI/BOOT/grubx64.efi", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
    ("EFI/BOOT/mmx64.efi", "usr/lib/shim/mmx64.efi.signed"),
];

/// Writes the disk. `keys` is the state directory of storagetm there.
pub(super) fn write(
    bench: &Bench,
    kernel: &Kernel,
    loaders: &Path,
    keys: &Path,
    to: &Path,
) -> Result<()> {
    let work = to.with_extension("work");
    let root = work.join("root");
    fill(bench, kernel, &root, &work)?;
    copy(keys, &root.join("var/lib/storagetm"))?;
    let volume = work.join("root.img");
    ext4(&bench.cache.tools(super::super::kernel()?), &root, (ROOT, UUID), &volume)?;
    bootable(system_files(loaders)?, &volume, to)?;
    Ok(fs::remove_dir_all(work)?)
}

/// Copies a directory with owners, permissions and links.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    succeed(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from.join(".")).arg(to))
        .map(drop)
}

/// Copies the system to a directory: Debian's packages and accounts, without a kernel.
pub(in crate::vm::boot) fn userland(bench: &Bench, root: &Path, work: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    let packages: Vec<&str> = systemd::PACKAGES.iter().chain(PACKAGES).copied().collect();
    let packages = bench.cache.packages("server", &packages)?;
    copy(&packages, root)?;
    for path in LEFT_OUT {
        // Not every release has all of them.
        let _ = fs::remove_dir_all(root.join(path));
    }
    copy(&systemd::accounts(&packages, work)?, root)
}

fn fill(bench: &Bench, kernel: &Kernel, root: &Path, work: &Path) -> Result<()> {
    userland(bench, root, work)?;
    let unpacked = bench.cache.kernel(kernel);
    let (version, _) = modules::folder(&unpacked)?;
    copy(&modules(&bench.cache, &unpacked)?, &root.join("usr/lib/modules").join(&version))?;
    let put = |path: &str, content: &[u8]| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    put(&format!("boot/vmlinuz-{version}"), &fs::read(Cache::boot_image_in(&unpacked)?)?)?;
    put(&format!("boot/initrd.img-{version}"), &initrd(bench, kernel)?)?;
    put("boot/grub/grub.cfg", first_configuration(&version).as_bytes())?;
    put("etc/default/grub", configuration().as_bytes())?;
    put("etc/hostname", b"server\n")?;
    put("etc/machine-id", b"0123456789abcdef0123456789abcdef\n")?;
    put("etc/fstab", format!("UUID={UUID} / ext4 defaults 0 0\n").as_bytes())?;
    for (name, text) in NETWORK {
        put(&format!("etc/systemd/network/{name}"), text.as_bytes())?;
    }
    put("etc/systemd/system/up.service", up().as_bytes())?;
    for (target, service) in WANTED {
        let wants = root.join(format!("etc/systemd/system/{target}.wants"));
        fs::create_dir_all(&wants)?;
        symlink(format!("/usr/lib/systemd/system/{service}"), wants.join(service))?;
    }
    symlink("../up.service", root.join("etc/systemd/system/multi-user.target.wants/up.service"))?;
    fs::copy(&bench.program, root.join("usr/bin/storagetm"))?;
    Ok(())
}

/// A unit that says when the system is up.
fn up() -> String {
    format!(
        "[Unit]\nWants=network-online.target\nAfter=network-online.target debug-shell.service\n\
         [Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo {UP} >/dev/console'\n"
    )
}

/// What starts the system before `update-grub` has run there.
fn first_configuration(version: &str) -> String {
    format!(
        "linux /boot/vmlinuz-{version} root=UUID={UUID} ro {LINE}\ninitrd /boot/initrd.img-{version}\nboot\n"
    )
}

/// The settings from which `update-grub` makes the configuration.
fn configuration() -> String {
    format!(
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=\nGRUB_CMDLINE_LINUX=\"{LINE}\"\n\
         GRUB_TERMINAL=console\nGRUB_DISABLE_OS_PROBER=true\n"
    )
}

fn initrd(bench: &Bench, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "root"] {
        archive.directory(folder);
    }
    let tools = bench.cache.tools(kernel);
    crate::vm::initramfs::add_busybox(&mut archive, &tools)?;
    crate::vm::initramfs::add_modules(&mut archive, &bench.cache.kernel(kernel), MODULES)?;
    archive.console("dev/console");
    archive.program("init", INIT.as_bytes());
    Ok(archive.finish())
}

/// Returns the files of an EFI system partition as Debian lays it out.
fn system_files(loaders: &Path) -> Result<Files> {
    let mut files = Files::default();
    let text = format!(
        "search.fs_uuid {UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    files.add("EFI/debian/grub.cfg", text.into_bytes());
    for (to, from) in LOADERS {
        let from = loaders.join(from);
        files.add(to, fs::read(&from).with_context(|| from.display().to_string())?);
    }
    Ok(files)
}
