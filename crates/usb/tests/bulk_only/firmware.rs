//! The first commands of Linux, `SeaBIOS` and EDK2, as recorded.

use crate::world::{World, transfer_10};

fn padded<const N: usize>(cdb: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| cdb.get(at).copied().unwrap_or(0))
}

const INQUIRY: &[u8] = &[0x12, 0, 0, 0, 36, 0];
const READY: &[u8] = &[0; 6];
const SENSE: &[u8] = &[3, 0, 0, 0, 18, 0];
const CAPACITY: &[u8] = &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn check_capacity((data, halted, residue, status): (Vec<u8>, bool, u32, u8)) {
    assert_eq!((data, halted, residue, status), (vec![0, 0, 7, 0xff, 0, 0, 2, 0], false, 0, 0));
}

fn check_inquiry((data, _, residue, status): (Vec<u8>, bool, u32, u8)) {
    assert_eq!((data.len(), residue, status), (36, 0, 0));
    assert_eq!(data[..2], [0, 0], "a disk, not removable");
}

#[test]
fn linux_recognizes_the_disk() {
    let mut world = World::writable();
    check_inquiry(world.read(0, INQUIRY, 36));
    assert_eq!(world.read(0, READY, 0).3, 1);
    assert_eq!(world.sense(0), (6, 0x29, 0));
    assert_eq!(world.read(0, READY, 0), (vec![], false, 0, 0));
    check_capacity(world.read(0, CAPACITY, 8));
    assert_eq!(world.read(0, &transfer_10(0x28, 0, 1), 512).3, 0);
    for _ in 0..2 {
        let (data, halted, residue, status) = world.read(0, &[0x1a, 0, 0x3f, 0, 192, 0], 192);
        assert_eq!((usize::from(data[0]) + 1, status), (data.len(), 0));
        assert_eq!((residue as usize, halted), (192 - data.len(), data.len().is_multiple_of(64)));
        assert_eq!(data[2] & 0x80, 0, "not write protected");
    }
    let (data, _, residue, status) =
        world.read(0, &padded::<16>(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]), 32);
    assert_eq!(
        (data[..12].to_vec(), residue, status),
        (vec![0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0], 0, 0)
    );
    assert_eq!(world.read(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).3, 0);
    // Refused, which Linux accepts.
    assert_eq!(world.read(0, &padded::<12>(&[0xa3, 0x1f]), 512).3, 1);
    assert_eq!(world.sense(0).0, 5);
}

#[test]
fn seabios_reads_one_sector_after_another() {
    let mut world = World::writable();
    check_inquiry(world.read(0, &padded::<12>(INQUIRY), 36));
    assert_eq!(world.read(0, &padded::<12>(READY), 0).3, 1);
    assert_eq!(world.read(0, &padded::<12>(SENSE), 18).0[12], 0x29);
    assert_eq!(world.read(0, &padded::<12>(READY), 0).3, 0);
    check_capacity(world.read(0, &padded::<12>(CAPACITY), 8));
    let (data, _, residue, status) =
        world.read(0, &padded::<12>(&[0x5a, 0, 0x04, 0, 0, 0, 0, 0, 27]), 27);
    assert_eq!((27 - data.len(), status == 0 || data.is_empty()), (residue as usize, true));
    for lba in 0..3 {
        let (data, halted, residue, status) =
            world.read(0, &padded::<12>(&transfer_10(0x28, lba, 1)), 512);
        assert_eq!((data[0], halted, residue, status), (u8::try_from(lba).unwrap(), false, 0, 0));
    }
}

#[test]
fn edk2_resets_first_and_reads_some_sectors() {
    let mut world = World::writable();
    (0..3).for_each(|_| world.reset());
    check_inquiry(world.read(0, &padded::<12>(INQUIRY), 36));
    assert_eq!(world.read(0, &padded::<12>(READY), 0).3, 1);
    assert_eq!(world.read(0, &padded::<12>(SENSE), 18).0[12], 0x29);
    assert_eq!(world.read(0, &padded::<12>(READY), 0).3, 0);
    let (data, _, residue, status) = world.read(0, &[0x1a, 0, 0x3f, 0, 4, 0], 4);
    assert_eq!((data.len(), residue, status), (4, 0, 0));
    check_capacity(world.read(0, &padded::<12>(CAPACITY), 8));
    for blocks in 1..=4u16 {
        let length = u32::from(blocks) * 512;
        let (data, ..) = world.read(0, &padded::<12>(&transfer_10(0x28, 7, blocks)), length);
        assert_eq!(data, world.disk[7 * 512..][..length as usize]);
    }
}

/// From documentation; not recorded.
#[test]
fn windows_and_macos_get_what_they_ask_for() {
    let mut world = World::writable().attended();
    let (data, ..) = world.read(0, &[0x23, 0, 0, 0, 0, 0, 0, 0, 252, 0], 252);
    assert_eq!(data[..8], [0, 0, 0, 8, 0, 0, 8, 0]);
    assert_eq!(world.read(0, &[0x1a, 0, 0x1c, 0, 192, 0], 192).3 & 2, 0);
    assert_eq!(world.read(0, &[0x1e, 0, 0, 0, 1, 0], 0).3, 0);
    assert_eq!(world.read(0, &[0x1e, 0, 0, 0, 0, 0], 0).3, 0);
    for page in [0x00, 0x80, 0x83] {
        let (data, _, _, status) = world.read(0, &[0x12, 1, page, 0, 255, 0], 255);
        assert_eq!((data.get(1), status), (Some(&page), 0), "{page:x}");
    }
    assert_eq!(world.read(0, &padded::<12>(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16]), 16).3, 0);
}
