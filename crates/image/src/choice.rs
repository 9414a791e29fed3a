//! Which drivers go into an image, out of all that a kernel comes with.
//!
//! Knows folders of the kernel's source, in which drivers of a kind stand together; reads no module.

use linux::module::{Index, refused};
use std::collections::BTreeSet;

/// For which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine<'a> {
    /// Any of this architecture.
    Any,
    /// One whose hardware has these names (modaliases), and what may be plugged into it.
    Of(&'a BTreeSet<String>),
}

/// Where drivers stand that lending a disk needs: disks, wired networks, what these hang on, and keyboards.
const KINDS: &[&str] = &[
    "arch/x86/crypto/crc",
    "drivers/acpi/ac.",
    "drivers/acpi/battery.",
    "drivers/acpi/button.",
    "drivers/ata/",
    "drivers/block/virtio_blk.",
    "drivers/block/xen-blkfront.",
    "drivers/firewire/",
    "drivers/hid/hid.",
    "drivers/hid/hid-apple.",
    "drivers/hid/hid-generic.",
    "drivers/hid/hid-hyperv.",
    "drivers/hid/usbhid/usbhid.",
    "drivers/hv/hv_vmbus.",
    "drivers/input/evdev.",
    "drivers/input/keyboard/atkbd.",
    "drivers/input/serio/",
    "drivers/message/fusion/",
    "drivers/mmc/",
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
    "drivers/pci/controller/vmd.",
    "drivers/scsi/",
    "drivers/thunderbolt/",
    "drivers/ufs/",
    "drivers/usb/common/",
    "drivers/usb/core/",
    "drivers/usb/dwc3/",
    "drivers/usb/host/",
    "drivers/usb/storage/",
    "drivers/virtio/",
    "net/ipv6/ipv6.",
    "net/packet/af_packet.",
];

/// What stands in these folders and is left out: disks of elsewhere, which are not this machine's to lend (iSCSI, fibre
/// channel); tapes, and devices that only tests have; radio; and network cards of switches and data centres
/// whose drivers are as large as all others together, or are of no use without firmware that is larger still.
const LEFT_OUT: &[&str] = &[
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
];

/// What the hardware of one known machine may also need to come up; for any machine it is far too much.
const AROUND: &[&str] = &[
    "drivers/bus/",
    "drivers/clk/",
    "drivers/dma/",
    "drivers/gpio/",
    "drivers/i2c/",
    "drivers/iommu/",
    "drivers/mfd/",
    "drivers/phy/",
    "drivers/pinctrl/",
    "drivers/regulator/",
    "drivers/reset/",
    "drivers/soc/",
    "drivers/spi/",
    "drivers/usb/typec/",
];

/// What is plugged in later, and what no hardware asks for.
const BESIDE: &[&str] = &[
    "af_packet",
    "evdev",
    "hid_generic",
    "ipv6",
    "sd_mod",
    "thunderbolt_net",
    "uas",
    "usb_storage",
    "usbhid",
];

/// The chosen modules, with all that they need, sorted. What would assemble disks is never among them.
pub fn choose(index: &Index, machine: Machine<'_>) -> Vec<String> {
    let mut chosen = BTreeSet::new();
    for name in wanted(index, machine) {
        let closure = closure(index, name);
        if closure.iter().all(|name| refused(name).is_none()) {
            chosen.extend(closure.into_iter().map(str::to_owned));
        }
    }
    chosen.into_iter().collect()
}

/// A module with what it needs, and what it may ask for as it runs.
fn closure<'a>(index: &'a Index, name: &'a str) -> Vec<&'a str> {
    let weak = index.weak(name).iter().flat_map(|weak| index.closure(weak));
    let weak = weak.filter(|name| refused(name).is_none());
    index.closure(name).into_iter().chain(weak).collect()
}

fn wanted<'a>(index: &'a Index, machine: Machine<'_>) -> Vec<&'a str> {
    let is = |name: &str, kinds: &[&[&str]]| {
        index.file(name).and_then(|file| file.to_str()).is_some_and(|file| stands_in(file, kinds))
    };
    match machine {
        Machine::Any => index.names().into_iter().filter(|name| is(name, &[KINDS])).collect(),
        Machine::Of(modaliases) => {
            let found = modaliases.iter().flat_map(|name| index.matching(name));
            let found = found.filter(|name| is(name, &[KINDS, AROUND]));
            found.chain(BESIDE.iter().flat_map(|name| index.resolve(name))).collect()
        }
    }
}

fn stands_in(file: &str, kinds: &[&[&str]]) -> bool {
    let file = file.strip_prefix("kernel/").unwrap_or(file);
    let begins = |start: &&str| file.starts_with(start);
    kinds.iter().any(|kind| kind.iter().any(begins)) && !LEFT_OUT.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::fake::Modules;

    #[test]
    fn for_any_machine_disks_and_networks_are_chosen_and_no_radio() {
        let modules = Modules::new();
        let chosen = choose(&modules.index(), Machine::Any);
        for name in ["nvme", "nvme_core", "ahci", "sd_mod", "raid_class", "virtio_net", "crc_t10"] {
            assert!(chosen.iter().any(|chosen| chosen == name), "{name} of {chosen:?}");
        }
        for name in ["nvme_tcp", "iwlwifi", "md_mod", "raid1", "i915", "qla2xxx", "assembler"] {
            assert!(!chosen.iter().any(|chosen| chosen == name), "{name}");
        }
    }

    #[test]
    fn for_one_machine_only_its_hardware_is_chosen() {
        let modules = Modules::new();
        let hardware = ["pci:nvme1", "pci:gpu", "pci:raid"].map(str::to_owned).into();
        let chosen = choose(&modules.index(), Machine::Of(&hardware));
        assert_eq!(chosen, ["crc_t10", "nvme", "nvme_core", "sd_mod"]);
    }
}
