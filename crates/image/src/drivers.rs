//! Selection of the drivers of an image from all modules of a kernel.
//!
//! Selects by directories of the kernel source, in which drivers of a kind are together.

use crate::architecture::Architecture;
use linux::module::{Index, refused};
use std::collections::BTreeSet;

/// The machine that an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine<'a> {
    /// Any machine of this architecture.
    Any(Architecture),
    /// A machine with this hardware (modaliases), and hot-pluggable devices.
    Known(&'a BTreeSet<String>),
}

/// Directories of drivers needed to export disks: storage, wired networks, USB device controllers
/// with the switches of their roles, their buses, and keyboards, also those of laptops behind SPI,
/// I2C and embedded controllers.
const INCLUDED: &[&str] = &[
    "arch/arm64/crypto/crc",
    "arch/x86/crypto/crc",
    "drivers/acpi/ac.",
    "drivers/acpi/battery.",
    "drivers/acpi/button.",
    "drivers/ata/",
    "drivers/block/mtip32xx/",
    "drivers/block/virtio_blk.",
    "drivers/block/xen-blkfront.",
    "drivers/dma/idma64.",
    "drivers/firewire/",
    "drivers/hid/hid.",
    "drivers/hid/hid-apple.",
    "drivers/hid/hid-generic.",
    "drivers/hid/hid-hyperv.",
    "drivers/hid/i2c-hid/",
    "drivers/hid/surface-hid/",
    "drivers/hid/usbhid/usbhid.",
    "drivers/hv/hv_vmbus.",
    "drivers/i2c/busses/i2c-designware",
    "drivers/input/evdev.",
    "drivers/input/keyboard/applespi.",
    "drivers/input/keyboard/atkbd.",
    "drivers/input/keyboard/cros_ec_keyb.",
    "drivers/input/serio/",
    "drivers/memstick/",
    "drivers/message/fusion/",
    "drivers/mfd/cros_ec_dev.",
    "drivers/mfd/intel-lpss",
    "drivers/mmc/",
    "drivers/net/bonding/",
    "drivers/net/ethernet/",
    "drivers/net/fjes/",
    "drivers/net/hyperv/",
    "drivers/net/mdio/",
    "drivers/net/pcs/",
    "drivers/net/phy/",
    "drivers/net/thunderbolt",
    "drivers/net/usb/",
    "drivers/net/virtio_net.",
    "drivers/net/vmxnet3/",
    "drivers/net/xen-netfront.",
    "drivers/nvme/host/nvme.",
    "drivers/pci/controller/pci-hyperv",
    "drivers/pci/controller/vmd.",
    "drivers/platform/chrome/cros_ec",
    "drivers/platform/surface/aggregator/",
    "drivers/platform/surface/surface_aggregator_hub.",
    "drivers/platform/surface/surface_aggregator_registry.",
    "drivers/scsi/",
    "drivers/spi/spi-pxa2xx",
    "drivers/thunderbolt/",
    "drivers/tty/serial/8250/8250_dw.",
    "drivers/tty/serial/8250/8250_lpss.",
    "drivers/ufs/",
    "drivers/usb/cdns3/",
    "drivers/usb/chipidea/",
    "drivers/usb/common/",
    "drivers/usb/core/",
    "drivers/usb/dwc2/",
    "drivers/usb/dwc3/",
    "drivers/usb/gadget/function/usb_f_fs.",
    "drivers/usb/gadget/libcomposite.",
    "drivers/usb/gadget/udc/",
    "drivers/usb/host/",
    "drivers/usb/mtu3/",
    "drivers/usb/musb/",
    "drivers/usb/roles/",
    "drivers/usb/storage/",
    "drivers/usb/typec/",
    "drivers/virtio/",
    "net/8021q/8021q.",
    "net/ipv6/ipv6.",
    "net/packet/af_packet.",
];

/// Excluded directories: remote storage (iSCSI, Fibre Channel), which must not be exported again;
/// tapes and test devices; wireless; and network cards of switches and data centers, whose drivers
/// are very large or need very large firmware.
const EXCLUDED: &[&str] = &[
    "drivers/message/fusion/mptctl.",
    "drivers/message/fusion/mptfc.",
    "drivers/message/fusion/mptlan.",
    "drivers/net/ethernet/mellanox/mlxsw/",
    "drivers/net/ethernet/netronome/",
    "drivers/net/ethernet/qlogic/qed",
    "drivers/net/usb/rndis_wlan.",
    "drivers/scsi/be2iscsi/",
    "drivers/scsi/bfa/",
    "drivers/scsi/bnx2fc/",
    "drivers/scsi/bnx2i/",
    "drivers/scsi/ch.",
    "drivers/scsi/csiostor/",
    "drivers/scsi/cxgbi/",
    "drivers/scsi/elx/",
    "drivers/scsi/fcoe/",
    "drivers/scsi/fnic/",
    "drivers/scsi/iscsi_",
    "drivers/scsi/libfc/",
    "drivers/scsi/libiscsi",
    "drivers/scsi/lpfc/",
    "drivers/scsi/pcmcia/",
    "drivers/scsi/qedf/",
    "drivers/scsi/qedi/",
    "drivers/scsi/qla2xxx/",
    "drivers/scsi/qla4xxx/",
    "drivers/scsi/scsi_debug.",
    "drivers/scsi/snic/",
    "drivers/scsi/st.",
    "drivers/usb/gadget/udc/dummy_hcd.",
];

/// Platform drivers that the hardware of one known machine may also need. PCs have that in firmware;
/// on ARM64 disks and network cards of many machines depend on these.
const PLATFORM: &[&str] = &[
    "drivers/bus/",
    "drivers/clk/",
    "drivers/dma/",
    "drivers/firmware/",
    "drivers/gpio/",
    "drivers/hwspinlock/",
    "drivers/i2c/",
    "drivers/interconnect/",
    "drivers/iommu/",
    "drivers/mailbox/",
    "drivers/mfd/",
    "drivers/nvmem/",
    "drivers/pci/controller/",
    "drivers/phy/",
    "drivers/pinctrl/",
    "drivers/pmdomain/",
    "drivers/regulator/",
    "drivers/reset/",
    "drivers/soc/",
    "drivers/spi/",
];

/// Drivers of devices that are plugged in later, and of software that no modalias matches.
const HOT_PLUG: &[&str] = &[
    "8021q",
    "af_packet",
    "bonding",
    "evdev",
    "hid_generic",
    "ipv6",
    "libcomposite",
    "sd_mod",
    "thunderbolt_net",
    "uas",
    "usb_f_fs",
    "usb_storage",
    "usbhid",
];

/// What a machine needs, besides its hardware's drivers, to start a system from a disk that another one lends: the host
/// driver of NVMe/TCP, TLS with its ciphers, file systems, and what systemd expects.
const LENT_ROOT: &[&str] = &[
    "aes_ce_blk",
    "aesni_intel",
    "autofs4",
    "binfmt_misc",
    "configfs",
    "crc32c_generic",
    "ctr",
    "efivarfs",
    "ext4",
    "fuse",
    "gcm",
    "ghash_ce",
    "ghash_clmulni_intel",
    "ghash_generic",
    "loop",
    "nls_ascii",
    "nls_cp437",
    "nvme_tcp",
    "overlay",
    "tls",
    "vfat",
    "xfs",
];

/// Returns as [`select`], with what a machine needs to start a system from a lent disk.
pub fn select_for_lent_root(index: &Index, machine: Machine<'_>) -> Vec<String> {
    let more = LENT_ROOT.iter().filter(|name| index.file(name).is_some());
    let more = more.flat_map(|name| closure(index, name)).map(str::to_owned);
    let all: BTreeSet<String> = select(index, machine).into_iter().chain(more).collect();
    all.into_iter().collect()
}

/// Returns the selected modules and their dependencies, sorted. Never includes modules that assemble disks
/// (RAID, LVM).
pub fn select(index: &Index, machine: Machine<'_>) -> Vec<String> {
    let mut chosen = BTreeSet::new();
    for name in candidates(index, machine) {
        let closure = closure(index, name);
        if closure.iter().all(|name| refused(name).is_none()) {
            chosen.extend(closure.into_iter().map(str::to_owned));
        }
    }
    chosen.into_iter().collect()
}

/// Returns the drivers of disks and networks that no image includes, sorted.
pub fn left_out(index: &Index) -> Vec<String> {
    let is_left_out = |name: &&str| {
        let file = index.file(name).and_then(|file| file.to_str()).unwrap_or_default();
        let file = file.strip_prefix("kernel/").unwrap_or(file);
        begins(file, INCLUDED) && begins(file, EXCLUDED)
    };
    let mut names: Vec<String> =
        index.names().into_iter().filter(is_left_out).map(str::to_owned).collect();
    names.sort();
    names
}

/// Returns a module with its hard and weak dependencies.
fn closure<'a>(index: &'a Index, name: &'a str) -> Vec<&'a str> {
    let weak = index.weak(name).iter().flat_map(|weak| index.closure(weak));
    let weak = weak.filter(|name| refused(name).is_none());
    index.closure(name).into_iter().chain(weak).collect()
}

fn candidates<'a>(index: &'a Index, machine: Machine<'_>) -> Vec<&'a str> {
    let is = |name: &str, lists: &[&[&str]]| {
        index.file(name).and_then(|file| file.to_str()).is_some_and(|file| is_in(file, lists))
    };
    match machine {
        Machine::Any(architecture) => {
            let lists: &[&[&str]] = match architecture {
                Architecture::X86_64 => &[INCLUDED],
                Architecture::Aarch64 => &[INCLUDED, PLATFORM],
            };
            index.names().into_iter().filter(|name| is(name, lists)).collect()
        }
        Machine::Known(modaliases) => {
            let found = modaliases.iter().flat_map(|name| index.matching(name));
            let found = found.filter(|name| is(name, &[INCLUDED, PLATFORM]));
            found.chain(HOT_PLUG.iter().flat_map(|name| index.resolve(name))).collect()
        }
    }
}

fn is_in(file: &str, lists: &[&[&str]]) -> bool {
    let file = file.strip_prefix("kernel/").unwrap_or(file);
    lists.iter().any(|list| begins(file, list)) && !begins(file, EXCLUDED)
}

fn begins(file: &str, starts: &[&str]) -> bool {
    starts.iter().any(|start| file.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::fake::Modules;

    #[test]
    fn any_machine_gets_storage_and_network_but_no_wireless() {
        let modules = Modules::new();
        let chosen = select(&modules.index(), Machine::Any(Architecture::X86_64));
        for name in ["nvme", "nvme_core", "ahci", "sd_mod", "raid_class", "virtio_net", "crc_t10"] {
            assert!(chosen.iter().any(|chosen| chosen == name), "{name} of {chosen:?}");
        }
        for name in ["nvme_tcp", "iwlwifi", "md_mod", "raid1", "i915", "qla2xxx", "assembler"] {
            assert!(!chosen.iter().any(|chosen| chosen == name), "{name}");
        }
    }

    #[test]
    fn lent_root_needs_the_host_driver_besides() {
        let modules = Modules::new();
        let index = modules.index();
        let machine = Machine::Any(Architecture::X86_64);
        let (usual, more) = (select(&index, machine), select_for_lent_root(&index, machine));
        assert!(usual.iter().all(|name| more.contains(name)));
        assert!(more.iter().any(|name| name == "nvme_tcp"), "{more:?}");
        assert!(more.is_sorted());
    }

    #[test]
    fn any_arm_machine_gets_platform_drivers() {
        let modules = Modules::new();
        let has_clock = |architecture| {
            let chosen = select(&modules.index(), Machine::Any(architecture));
            chosen.iter().any(|name| name == "clk_board")
        };
        assert!(has_clock(Architecture::Aarch64) && !has_clock(Architecture::X86_64));
    }

    #[test]
    fn excluded_drivers_are_named() {
        assert_eq!(left_out(&Modules::new().index()), ["qla2xxx"]);
    }

    #[test]
    fn keyboards_of_laptops_and_guests_of_hyper_v_are_included() {
        for file in [
            "kernel/drivers/input/keyboard/applespi.ko.xz",
            "kernel/drivers/platform/surface/aggregator/surface_aggregator.ko",
            "kernel/drivers/input/keyboard/cros_ec_keyb.ko",
            "kernel/drivers/pci/controller/pci-hyperv.ko",
            "kernel/drivers/scsi/hv_storvsc.ko",
            "kernel/drivers/net/hyperv/hv_netvsc.ko",
            "kernel/drivers/scsi/mpt3sas/mpt3sas.ko",
        ] {
            assert!(is_in(file, &[INCLUDED]), "{file}");
        }
        assert!(!is_in("kernel/drivers/message/fusion/mptfc.ko", &[INCLUDED]));
    }

    #[test]
    fn usb_device_controllers_are_included_but_no_emulated_one() {
        for file in [
            "kernel/drivers/usb/dwc2/dwc2.ko",
            "kernel/drivers/usb/dwc3/dwc3-pci.ko.xz",
            "kernel/drivers/usb/gadget/udc/net2280.ko",
            "kernel/drivers/usb/gadget/udc/udc-core.ko",
            "kernel/drivers/usb/gadget/function/usb_f_fs.ko",
            "kernel/drivers/usb/gadget/libcomposite.ko",
            "kernel/drivers/usb/roles/intel-xhci-usb-role-switch.ko",
            "kernel/drivers/usb/typec/ucsi/ucsi_acpi.ko",
        ] {
            assert!(is_in(file, &[INCLUDED]), "{file}");
        }
        for file in ["udc/dummy_hcd.ko", "function/usb_f_mass_storage.ko", "legacy/g_ether.ko"] {
            assert!(!is_in(&format!("kernel/drivers/usb/gadget/{file}"), &[INCLUDED]), "{file}");
        }
    }

    #[test]
    fn known_machine_gets_only_its_hardware() {
        let modules = Modules::new();
        let hardware = ["pci:nvme1", "pci:gpu", "pci:raid"].map(str::to_owned).into();
        let chosen = select(&modules.index(), Machine::Known(&hardware));
        assert_eq!(chosen, ["crc_t10", "nvme", "nvme_core", "sd_mod"]);
    }
}
