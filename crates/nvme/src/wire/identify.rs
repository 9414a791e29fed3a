//! Identify data structures (in the submodules) and lists.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

mod controller;
mod namespace;
mod short;

pub use controller::*;
pub use namespace::*;

/// Length of all Identify data structures in bytes (NVMe Base 2.0 §5.17).
pub const IDENTIFY_LEN: usize = 4096;

/// Values of CNS (NVMe Base 2.0 §5.17.1).
pub mod cns {
    /// Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// NVM sets.
    pub const NVM_SETS: u8 = 0x04;
    /// Namespace, specific to command set CSI.
    pub const NAMESPACE_SPECIFIC: u8 = 0x05;
    /// Controller, specific to command set CSI.
    pub const CONTROLLER_SPECIFIC: u8 = 0x06;
    /// Active namespace list of command set CSI.
    pub const ACTIVE_NAMESPACES_SPECIFIC: u8 = 0x07;
    /// Namespace, command set independent.
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    /// Allocated namespace list.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers attached to the namespace.
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    /// Controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// Primary controller capabilities.
    pub const PRIMARY_CONTROLLER: u8 = 0x14;
    /// Secondary controllers.
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
    /// Namespace granularity list.
    pub const NAMESPACE_GRANULARITY: u8 = 0x16;
    /// UUID list.
    pub const UUIDS: u8 = 0x17;
    /// Command set combinations.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// CSI of the NVM command set.
pub const CSI_NVM: u8 = 0x00;

/// Broadcast NSID.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Namespace list: up to 1024 identifiers in ascending order, padded with 0 (NVMe Base 2.0 §4.4.2).
/// The Changed Namespace List log page (04h) has the same layout.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct NamespaceList {
    /// Identifiers; the first 0 ends the list.
    pub nsid: [U32; 1024],
}
const _: () = assert!(size_of::<NamespaceList>() == IDENTIFY_LEN);

impl NamespaceList {
    /// Creates the list of the first 1024 of `nsids`, which must be ascending.
    pub fn emit(nsids: impl IntoIterator<Item = u32>) -> Self {
        let mut list = Self::new_zeroed();
        list.nsid.iter_mut().zip(nsids).for_each(|(entry, nsid)| entry.set(nsid));
        list
    }

    /// Returns the identifiers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.nsid.iter().map(|nsid| nsid.get()).take_while(|&nsid| nsid != 0)
    }
}

/// Controller list: up to 2047 identifiers in ascending order (NVMe Base 2.0 §4.4.1).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ControllerList {
    /// Number of identifiers.
    pub num: U16,
    /// Identifiers.
    pub cntlid: [U16; 2047],
}
const _: () = assert!(size_of::<ControllerList>() == IDENTIFY_LEN);

impl ControllerList {
    /// Creates the list of the first 2047 of `cntlids`, which must be ascending.
    pub fn emit(cntlids: impl IntoIterator<Item = u16>) -> Self {
        let mut list = Self::new_zeroed();
        let mut num: u16 = 0;
        for (entry, cntlid) in list.cntlid.iter_mut().zip(cntlids) {
            entry.set(cntlid);
            num = num.saturating_add(1);
        }
        list.num.set(num);
        list
    }

    /// Returns the identifiers; ignores an excess count.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.cntlid.iter().take(self.num.get().into()).map(|cntlid| cntlid.get())
    }
}

/// Command set combinations, CNS 1Ch: 512 vectors; bit n of a vector is command set n (NVMe Base
/// 2.0 §5.17.2.21).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommandSets {
    /// Vectors; 0 if unused.
    pub vector: [U64; 512],
}
const _: () = assert!(size_of::<CommandSets>() == IDENTIFY_LEN);

impl CommandSets {
    /// Returns one combination: the NVM command set.
    #[must_use]
    pub fn nvm() -> Self {
        let mut sets = Self::new_zeroed();
        sets.vector.iter_mut().take(1).for_each(|vector| vector.set(1 << CSI_NVM));
        sets
    }
}

/// Namespace identification descriptors, CNS 03h (NVMe Base 2.0 §5.17.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIds {
    /// NIDT 1: IEEE extended unique identifier.
    pub eui64: Option<[u8; 8]>,
    /// NIDT 2: namespace globally unique identifier.
    pub nguid: Option<[u8; 16]>,
    /// NIDT 3: UUID, in the byte order of its text form.
    pub uuid: Option<[u8; 16]>,
    /// NIDT 4: command set identifier.
    pub csi: Option<u8>,
}

impl NamespaceIds {
    /// Returns the descriptor list, padded with 0.
    #[must_use]
    pub fn emit(&self) -> [u8; IDENTIFY_LEN] {
        let mut list = Vec::with_capacity(64);
        descriptor(&mut list, 1, self.eui64.as_ref().map(<[u8; 8]>::as_slice));
        descriptor(&mut list, 2, self.nguid.as_ref().map(<[u8; 16]>::as_slice));
        descriptor(&mut list, 3, self.uuid.as_ref().map(<[u8; 16]>::as_slice));
        descriptor(&mut list, 4, self.csi.as_ref().map(core::slice::from_ref));
        let mut bytes = [0; IDENTIFY_LEN];
        bytes.iter_mut().zip(list).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Parses a descriptor list. Ignores descriptors of an unknown type or wrong length; stops at
    /// one that is incomplete.
    #[must_use]
    pub fn parse(mut list: &[u8]) -> Self {
        let mut ids = Self::default();
        while let [nidt @ 1..=u8::MAX, nidl, _, _, rest @ ..] = list {
            let Some((nid, next)) = rest.split_at_checked((*nidl).into()) else { break };
            ids.set(*nidt, nid);
            list = next;
        }
        ids
    }

    fn set(&mut self, nidt: u8, nid: &[u8]) {
        match nidt {
            1 => self.eui64 = nid.try_into().ok(),
            2 => self.nguid = nid.try_into().ok(),
            3 => self.uuid = nid.try_into().ok(),
            4 => self.csi = <[u8; 1]>::try_from(nid).ok().map(|[csi]| csi),
            _ => {}
        }
    }
}

/// Appends a descriptor: NIDT, NIDL, two reserved bytes, NID of at most 16 bytes.
fn descriptor(list: &mut Vec<u8>, nidt: u8, nid: Option<&[u8]>) {
    let Some(nid) = nid else { return };
    let nidl = u8::try_from(nid.len()).unwrap_or(u8::MAX);
    list.extend_from_slice(&[nidt, nidl, 0, 0]);
    list.extend_from_slice(nid);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_namespace_list() {
        let list = NamespaceList::emit([1, 2, 0x0102_0304]);
        assert_eq!(list.as_bytes()[..16], [1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 2, 0x0102_0304]);
        assert_eq!(NamespaceList::emit(1..=2000).iter().count(), 1024);
    }

    #[test]
    fn golden_controller_list() {
        let list = ControllerList::emit([1, 0x0203]);
        assert_eq!(list.as_bytes()[..8], [2, 0, 1, 0, 3, 2, 0, 0]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 0x0203]);
        assert_eq!(ControllerList::emit(1..=4000).num.get(), 2047);
        let excessive = ControllerList { num: U16::new(u16::MAX), ..list };
        assert_eq!(excessive.iter().count(), 2047);
    }

    #[test]
    fn golden_command_sets() {
        assert_eq!(CommandSets::nvm().as_bytes()[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn golden_descriptors() {
        let ids = NamespaceIds {
            eui64: Some([1, 2, 3, 4, 5, 6, 7, 8]),
            nguid: None,
            uuid: Some([0xaa; 16]),
            csi: Some(CSI_NVM),
        };
        #[rustfmt::skip]
        let expected = [
            1, 8, 0, 0,   1, 2, 3, 4, 5, 6, 7, 8,          // EUI64
            3, 16, 0, 0,  0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
                          0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, // UUID
            4, 1, 0, 0,   0,                               // CSI
            0, 0, 0, 0,                                    // the end
        ];
        assert_eq!(ids.emit()[..expected.len()], expected);
        assert_eq!(NamespaceIds::parse(&ids.emit()), ids);
    }

    #[test]
    fn malformed_descriptors_are_ignored() {
        assert_eq!(NamespaceIds::parse(&[2, 16, 0, 0, 1, 2]), NamespaceIds::default());
        assert_eq!(NamespaceIds::parse(&[2, 16, 0]), NamespaceIds::default());
        assert_eq!(NamespaceIds::parse(&[0xff; 4096]), NamespaceIds::default());
        let odd = [2, 3, 0, 0, 1, 2, 3, 9, 0, 0, 0, 4, 1, 0, 0, 7];
        assert_eq!(
            NamespaceIds::parse(&odd),
            NamespaceIds { csi: Some(7), ..NamespaceIds::default() }
        );
    }
}
