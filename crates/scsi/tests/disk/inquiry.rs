//! INQUIRY, byte for byte (SPC-4 §6.6, §7.8; SBC-3).

use export::Cache;

use crate::world::{World, code};

fn vital(world: &mut World, page: u8) -> Vec<u8> {
    let response = world.run(&[0x12, 1, page, 0, 255, 0]);
    assert!(response.is_good(), "page {page:02x}");
    response.data
}

#[test]
fn golden_standard_data() {
    let data = World::new().run(&[0x12, 0, 0, 0, 255, 0]).data;
    let mut expected = vec![0, 0, 6, 2, 91, 8, 0, 2];
    expected.extend(b"STORAGTMA model of more 1.2 ");
    expected.extend([0; 22]);
    expected.extend([0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0x09, 0x60]);
    expected.resize(96, 0);
    assert_eq!(data, expected);
}

#[test]
fn golden_list_of_pages() {
    let expected = [0, 0, 0, 7, 0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2];
    assert_eq!(vital(&mut World::new(), 0x00), expected);
}

#[test]
fn golden_serial_number() {
    assert_eq!(vital(&mut World::new(), 0x80), *b"\x00\x80\x00\x05S1234");
}

#[test]
fn golden_designators() {
    let mut expected = vec![0, 0x83, 0, 0];
    // NAA, locally assigned.
    expected.extend([0x01, 0x03, 0, 8, 0x31, 2, 3, 4, 5, 6, 8, 0x0a]);
    expected.extend(b"\x02\x01\x00\x28STORAGTMa102030405068708890a0b0c0d0e0f10");
    // The target port, and the target device.
    expected.extend([0x51, 0x94, 0, 4, 0, 0, 0, 1]);
    expected.extend(b"\x53\x98\x00\x28iqn.2026-01.org.example:disk,t,0x0001\0\0\0");
    expected.extend(b"\x53\xa8\x00\x20iqn.2026-01.org.example:disk\0\0\0\0");
    expected[3] = u8::try_from(expected.len() - 4).unwrap();
    assert_eq!(vital(&mut World::new(), 0x83), expected);
}

#[test]
fn identity_without_a_uuid_has_a_designator() {
    let mut world = World::of((512, 512), |export| export.identity = export::Identity::default());
    assert_eq!(vital(&mut world, 0x83)[8..16], [0x30, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn golden_extended_data() {
    let mut expected = vec![0, 0x86, 0, 60, 0, 1, 1];
    expected.resize(64, 0);
    assert_eq!(vital(&mut World::new(), 0x86), expected);
    let cache = Cache::WriteThrough;
    assert_eq!(vital(&mut World::of((512, 512), |export| export.cache = cache), 0x86)[6], 0);
}

#[test]
fn golden_block_limits() {
    #[rustfmt::skip]
    let mut expected = vec![
        0, 0xb0, 0, 60, 0, 128, 0, 8, // 64 KiB, 8 blocks
        0, 1, 0, 0, 0, 0, 0, 0, // 32 MiB
        0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff,
        0, 0, 1, 0, 0, 0, 0, 8, // 256 descriptors, 8 blocks
        0x80, 0, 0, 0, 0, 0, 0, 0,
        0, 4, 0, 0, // 128 MiB
    ];
    expected.resize(64, 0);
    assert_eq!(vital(&mut World::new(), 0xb0), expected);
}

#[test]
fn golden_characteristics() {
    let mut expected = vec![0, 0xb1, 0, 60, 0, 1];
    expected.resize(64, 0);
    assert_eq!(vital(&mut World::new(), 0xb1), expected);
    let mut rotating = World::of((512, 512), |export| export.rotational = true);
    assert_eq!(vital(&mut rotating, 0xb1)[4..6], [0, 0]);
}

#[test]
fn provisioning_is_announced_only_with_discards() {
    assert_eq!(vital(&mut World::new(), 0xb2), [0, 0xb2, 0, 4, 0, 0xe0, 2, 0]);
    let mut zeros = World::of((512, 512), |export| export.discard_zeroes = true);
    assert_eq!(vital(&mut zeros, 0xb2)[5], 0xe4);
    let mut without = World::of((512, 512), |export| export.discard = false);
    assert_eq!(vital(&mut without, 0xb2), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
    assert_eq!(vital(&mut without, 0xb0)[20..36], [0; 16]);
}

#[test]
fn data_is_cut_off_at_the_allocation_length() {
    let mut world = World::new();
    assert_eq!(world.run(&[0x12, 0, 0, 0, 5, 0]).data, [0, 0, 6, 2, 91]);
    assert_eq!(world.run(&[0x12, 1, 0xb0, 0, 4, 0]).data, [0, 0xb0, 0, 60]);
    assert_eq!(world.run(&[0x12, 0, 0, 0, 0, 0]).data, []);
    assert_eq!(world.run(&[0x12, 0, 0, 1, 0, 0]).data.len(), 96);
}

#[test]
fn unsupported_pages_are_refused() {
    let mut world = World::new();
    for cdb in [[0x12, 1, 0xc0, 0, 255, 0], [0x12, 0, 0x80, 0, 255, 0], [0x12, 2, 0, 0, 255, 0]] {
        assert_eq!(code(&world.run(&cdb)), (0x24, 0), "{cdb:02x?}");
    }
}

#[test]
fn text_fields_have_only_printable_ascii() {
    let identity = export::Identity { model: "größe\n7".to_owned(), ..Default::default() };
    let data = World::of((512, 512), |export| export.identity = identity)
        .run(&[0x12, 0, 0, 0, 36, 0])
        .data;
    assert_eq!(data[16..36], *b"gr  e 7             ");
}
