//! `cargo xtask initrds`: builds initrds with storagetm by dracut, initramfs-tools and mkosi, in a
//! minimal Debian. Does not boot them. Needs minutes and the network: a nightly job.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::chroot::{self, Chroot, Recipe, STABLE};
use crate::deb;
use crate::tally::Tally;
use crate::vm::mirror;

/// Options of `cargo xtask initrds`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Put this program into them instead of building storagetm
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Make only the one of this name: dracut, initramfs-tools, mkosi
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

const PACKAGES: [&str; 16] = [
    "cpio",
    "dbus",
    "dracut-core",
    "dracut-network",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "mkosi",
    "plymouth",
    "systemd",
    "systemd-boot-efi",
    "systemd-sysv",
    "udev",
    "xz-utils",
    "zstd",
];

/// An initrd generator.
struct Maker {
    name: &'static str,
    /// Builds `/initrds/NAME.img` for the kernel `$kernel`, and unpacks it into the working
    /// directory.
    script: &'static str,
    /// The files that it must contain.
    holds: &'static [&'static str],
}

/// What systemd in an initrd needs to enter the target.
const UNITS: &[&str] = &[
    "usr/bin/storagetm",
    "usr/bin/systemd-tmpfiles",
    "usr/lib/storagetm/hands-off.conf",
    "usr/lib/systemd/system/modprobe@.service",
    "usr/lib/systemd/system/storage-target-mode.target",
    "usr/lib/systemd/system/storagetm-console.service",
    "usr/lib/systemd/system/storagetm-failure.service",
    "usr/lib/systemd/system/storagetm-hands-off.service",
    "usr/lib/systemd/system/storagetm.service",
    "usr/lib/systemd/system/systemd-journald-dev-log.socket",
    "usr/lib/systemd/system/systemd-journald.socket",
    "usr/lib/systemd/system/systemd-modules-load.service",
    "usr/lib/systemd/system/systemd-network-generator.service",
    "usr/lib/systemd/system/systemd-networkd.service",
    "usr/lib/systemd/system/systemd-udev-trigger.service",
    "usr/lib/systemd/system/systemd-udevd.service",
    "usr/lib/systemd/systemd-networkd",
];

const MAKERS: [Maker; 3] = [
    Maker {
        name: "initramfs-tools",
        script: "rm -f /etc/initramfs-tools/conf.d/storagetm && mkinitramfs -o without.img $kernel\n\
                 if lsinitramfs without.img | grep bin/storagetm; then exit 1; fi\n\
                 rm without.img\n\
                 echo STORAGETM=yes > /etc/initramfs-tools/conf.d/storagetm\n\
                 mkinitramfs -o /initrds/initramfs-tools.img $kernel\n\
                 unmkinitramfs /initrds/initramfs-tools.img .\n\
                 test ! -d main || mv main/* .\n\
                 grep -n . scripts/init-top/ORDER | grep -A9 '/storagetm ' | grep -q '/udev '",
        holds: &[
            "conf/initramfs.conf",
            "scripts/init-top/storagetm",
            "scripts/storagetm",
            "usr/bin/storagetm",
        ],
    },
    Maker {
        name: "dracut",
        script: "dracut --quiet --force --no-hostonly --no-early-microcode --zstd --add storagetm \
                 --kver $kernel /initrds/dracut.img\n\
                 zstd -dc /initrds/dracut.img | cpio -id --quiet",
        holds: UNITS,
    },
    Maker {
        name: "mkosi",
        script: "cp /initrds/mkosi.sources /initrds/mkosi.conf . && mkdir -p \
                 mkosi.sandbox/etc/apt/sources.list.d && mv mkosi.sources \
                 mkosi.sandbox/etc/apt/sources.list.d\n\
                 mkosi --force --output-directory=/initrds build\n\
                 rm -r mkosi.* && zstd -dc /initrds/made.cpio.zst | cpio -id --quiet\n\
                 mv /initrds/made.cpio.zst /initrds/mkosi.img",
        holds: UNITS,
    },
];

const MKOSI: &str = "\
[Include]
Include=/usr/share/storagetm/mkosi

[Distribution]
Distribution=debian
Release=trixie
Architecture=x86-64

[Output]
Format=cpio
Output=made
CompressOutput=zstd

[Content]
Bootable=no
MakeInitrd=yes
CleanPackageMetadata=yes
Packages=
        kmod
        linux-image-cloud-amd64
        systemd
        systemd-sysv
        udev
KernelModulesInclude=
        /drivers/nvme/
        virtio_blk
WithDocs=no
";

/// Builds all of them, or the selected one.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let wanted = |maker: &&Maker| options.only.as_deref().is_none_or(|name| name == maker.name);
    if let Some(reason) = chroot::missing() {
        tally.skip("initrds", &reason);
        return Ok(tally);
    }
    let chroot = prepare(options)?;
    let kernel = chroot.run("ls /lib/modules")?.trim().to_owned();
    for maker in MAKERS.iter().filter(wanted) {
        tally.check(&format!("initrd by {}", maker.name), make(&chroot, maker, &kernel));
    }
    Ok(tally)
}

/// Returns a Debian with the package of storagetm installed.
fn prepare(options: &Options) -> Result<Chroot> {
    let built = || cargo::build_program("storagetm");
    let program = options.program.clone().map_or_else(built, Ok)?;
    let package = deb::build(&program)?;
    let recipe = Recipe { name: "initrds", suite: STABLE, foreign: None, packages: &PACKAGES };
    let chroot = Chroot::open(&recipe)?;
    let folder = chroot.root().join("initrds");
    fs::create_dir_all(&folder)?;
    fs::copy(package, folder.join("storagetm.deb"))?;
    fs::write(folder.join("mkosi.conf"), MKOSI)?;
    fs::write(folder.join("mkosi.sources"), sources()?)?;
    chroot.run("dpkg --no-triggers --install /initrds/storagetm.deb")?;
    Ok(chroot)
}

/// mkosi's own list has archives that not every mirror carries.
fn sources() -> Result<String> {
    let mirror = mirror::of_this_machine()?;
    let stanza = |address: &str, suite: &str| {
        format!(
            "Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        )
    };
    let security = mirror.security.map(|address| stanza(&address, "trixie-security"));
    Ok(stanza(&mirror.main, "trixie") + &security.unwrap_or_default())
}

fn make(chroot: &Chroot, maker: &Maker, kernel: &str) -> Result<()> {
    let folder = format!("/initrds/{}", maker.name);
    let script = format!("kernel={kernel}\nrm -rf {folder}\nmkdir {folder}\ncd {folder}\n");
    chroot.run(&format!("{script}{}", maker.script))?;
    let unpacked = chroot.root().join(folder.trim_start_matches('/'));
    for path in maker.holds {
        ensure!(unpacked.join(path).exists(), "{path} is not in it");
    }
    has_driver(&unpacked, "virtio_net", kernel)?;
    chroot.run(&format!("chroot {folder} /usr/bin/storagetm --version"))?;
    let image = chroot.root().join("initrds").join(format!("{}.img", maker.name));
    let size = fs::metadata(&image).with_context(|| image.display().to_string())?.len() >> 20;
    println!("# {}: {} MiB", image.display(), size);
    Ok(())
}

/// Checks that the list of modules names a network driver: drivers of disks are included anyway,
/// those of networks because of storagetm.
fn has_driver(unpacked: &Path, name: &str, kernel: &str) -> Result<()> {
    let list = unpacked.join("usr/lib/modules").join(kernel).join("modules.dep");
    let text = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let file = format!("/{name}.ko");
    ensure!(text.contains(&file), "the driver {name} is not in it");
    Ok(())
}
