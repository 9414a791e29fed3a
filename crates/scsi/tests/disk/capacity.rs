//! READ CAPACITY and READ FORMAT CAPACITIES (SBC-3, MMC-6).

use crate::world::{World, code, sixteen};

const CAPACITY_16: u8 = 0x10;

fn capacity_16(world: &mut World, allocation: u32) -> Vec<u8> {
    let response = world.run(&sixteen(0x9e, CAPACITY_16, 0, allocation));
    assert!(response.is_good());
    response.data
}

#[test]
fn golden_capacity() {
    let mut world = World::new();
    assert_eq!(world.run(&[0x25]).data, [0, 0, 1, 0xff, 0, 0, 2, 0]);
    let mut expected = vec![0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2, 0, 0, 3, 0x80, 0];
    expected.resize(32, 0);
    assert_eq!(capacity_16(&mut world, 32), expected);
    assert_eq!(capacity_16(&mut world, 15), expected[..15]);
    assert_eq!(
        world.run(&[0x23, 0, 0, 0, 0, 0, 0, 0, 12, 0]).data,
        [0, 0, 0, 8, 0, 0, 2, 0, 2, 0, 2, 0]
    );
}

#[test]
fn golden_capacity_of_4096_byte_blocks() {
    let mut world = World::of((4096, 4096), |export| export.discard_zeroes = true);
    assert_eq!(world.run(&[0x25]).data, [0, 0, 1, 0xff, 0, 0, 0x10, 0]);
    assert_eq!(capacity_16(&mut world, 32)[8..16], [0, 0, 0x10, 0, 0, 0, 0xc0, 0]);
    let mut without =
        World::of((4096, 4096), |export| (export.discard, export.discard_zeroes) = (false, true));
    assert_eq!(capacity_16(&mut without, 32)[14..16], [0, 0]);
}

#[test]
fn large_disk_does_not_fit_in_32_bits() {
    let mut world = World::new();
    world.export.resize(512 << 32);
    assert_eq!(code(&world.run(&[0])), (0, 0), "before it is notified");
    assert_eq!(world.run(&[0x25]).data[..4], [0xff; 4]);
    assert_eq!(capacity_16(&mut world, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(world.run(&[0x23, 0, 0, 0, 0, 0, 0, 0, 12, 0]).data[4..8], [0xff; 4]);
    world.export.resize((512 << 32) + 512);
    assert_eq!(world.run(&[0x25]).data[..4], [0xff; 4]);
    assert_eq!(capacity_16(&mut world, 8), [0, 0, 0, 1, 0, 0, 0, 0]);
}

#[test]
fn empty_disk_has_no_medium() {
    let mut world = World::new();
    world.export.resize(0);
    for cdb in [&[0x25][..], &sixteen(0x9e, CAPACITY_16, 0, 32), &[0x23, 0, 0, 0, 0, 0, 0, 0, 12]] {
        assert_eq!(code(&world.run(cdb)), (0x3a, 0));
    }
}

#[test]
fn block_without_partial_medium_indicator_is_refused() {
    let mut world = World::new();
    assert_eq!(code(&world.run(&[0x25, 0, 0, 0, 0, 1])), (0x24, 0));
    assert!(world.run(&[0x25, 0, 0, 0, 0, 1, 0, 0, 1]).is_good());
}
