//! REPORT LUNS, REPORT SUPPORTED OPERATION CODES, READ DEFECT DATA, REQUEST SENSE.

use export::Access;

use crate::world::{World, code};

#[test]
fn golden_report_luns() {
    let mut world = World::new();
    let luns = |select| [0xa0, 0, select, 0, 0, 0, 0, 0, 0, 255, 0, 0];
    let expected = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(world.run(&luns(0)).data, expected);
    assert_eq!(world.run(&luns(2)).data, expected);
    assert_eq!(world.run(&luns(1)).data, [0; 8]);
    assert_eq!(code(&world.run(&luns(3))), (0x24, 0));
}

fn opcodes(options: u8, opcode: u8, action: u8) -> [u8; 12] {
    [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 0xff, 0xff, 0, 0]
}

#[test]
fn golden_opcodes_of_one_command() {
    let mut world = World::new();
    #[rustfmt::skip]
    assert_eq!(world.run(&opcodes(1, 0x28, 0)).data, [
        0, 3, 0, 10, 0x28, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0,
    ]);
    // As Linux asks for WRITE SAME (16) and for INQUIRY.
    #[rustfmt::skip]
    assert_eq!(world.run(&opcodes(1, 0x93, 0)).data, [
        0, 3, 0, 16, 0x93, 9, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0x1f, 0,
    ]);
    assert_eq!(world.run(&opcodes(1, 0x12, 0)).data, [0, 3, 0, 6, 0x12, 1, 255, 255, 255, 0]);
    #[rustfmt::skip]
    assert_eq!(world.run(&opcodes(2, 0x9e, 0x10)).data, [
        0, 3, 0, 16, 0x9e, 0x10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0,
    ]);
    assert_eq!(world.run(&opcodes(3, 0x9e, 0x12)).data[5], 0x12);
    assert_eq!(world.run(&opcodes(3, 0x28, 0)).data[1], 3);
    for (options, opcode, action) in [(1, 0x48, 0), (2, 0x9e, 0x13), (3, 0x9e, 0), (3, 0xff, 0)] {
        assert_eq!(world.run(&opcodes(options, opcode, action)).data, [0, 1, 0, 0]);
    }
}

#[test]
fn reporting_options_must_match_the_command() {
    let mut world = World::new();
    for (options, opcode) in [(1, 0x9e), (2, 0x28), (4, 0x28), (7, 0)] {
        let response = world.run(&opcodes(options, opcode, 0));
        assert_eq!(code(&response), (0x24, 0), "{options} {opcode:02x}");
    }
}

#[test]
fn every_listed_command_is_reported_and_parsed() {
    let mut world = World::new();
    let data = world.run(&opcodes(0, 0, 0)).data;
    assert_eq!(u32::from_be_bytes(data[..4].try_into().unwrap()) as usize, data.len() - 4);
    let listed: Vec<_> = data[4..].chunks(8).map(<[u8]>::to_vec).collect();
    assert!(listed.len() > 40);
    for descriptor in &listed {
        let (opcode, action, has_action) = (descriptor[0], descriptor[3], descriptor[5] == 1);
        let one = world.run(&opcodes(if has_action { 2 } else { 1 }, opcode, action)).data;
        assert_eq!((one[1], one[3], one[4]), (3, descriptor[7], opcode));
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (opcode, action);
        let begun = world.begin(0, [0; 8], &cdb);
        if let scsi::Command::Done(response) = begun {
            assert_ne!(code(&response), (0x20, 0), "{opcode:02x}");
        }
    }
}

#[test]
fn timeouts_are_reported_if_asked_for() {
    let mut world = World::new();
    let data = world.run(&opcodes(0x80, 0, 0)).data;
    for descriptor in data[4..].chunks(20) {
        assert_eq!((descriptor[5] & 2, &descriptor[8..10]), (2, &[0, 10][..]));
    }
    let one = world.run(&opcodes(0x81, 0x00, 0)).data;
    assert_eq!(one, [0, 0x83, 0, 6, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn unmap_is_listed_only_with_discards() {
    assert_eq!(World::new().run(&opcodes(1, 0x42, 0)).data[1], 3);
    let mut without = World::of((512, 512), |export| export.discard = false);
    assert_eq!(without.run(&opcodes(1, 0x42, 0)).data[1], 1);
    assert_eq!(code(&without.run(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24])), (0x20, 0));
    let mut protected = World::of((512, 512), |export| {
        (export.discard, export.access) = (false, Access::ReadOnly);
    });
    assert_eq!(code(&protected.run(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24])), (0x27, 0));
}

#[test]
fn defect_lists_are_empty() {
    let mut world = World::new();
    assert_eq!(world.run(&[0x37, 0, 0x1d, 0, 0, 0, 0, 0, 32]).data, [0, 0x1d, 0, 0]);
    let twelve = [0xb7, 0x1d, 0, 0, 0, 0, 0, 0, 0, 32];
    assert_eq!(world.run(&twelve).data, [0, 0x1d, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn request_sense_returns_what_the_transport_kept() {
    let mut world = World::new();
    let none = [0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(world.run(&[3, 0, 0, 0, 252]).data, none);
    world.initiators[0].nexus.keep_sense(Some(scsi::Sense::OUT_OF_RANGE));
    assert_eq!(world.run(&[3, 0, 0, 0, 14]).data[12..], [0x21, 0]);
    assert_eq!(world.run(&[3, 0, 0, 0, 18]).data, none);
    assert_eq!(code(&world.run(&[3, 1, 0, 0, 18])), (0x24, 0), "descriptor format");
}
