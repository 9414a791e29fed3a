//! READ and WRITE of 6, 10, 12 and 16 bytes (SBC-3).

use export::{Fault, Op};
use scsi::{Command, Sense, Status, Transfer};

use crate::world::{SECTOR, World, code, sixteen, ten};

fn twelve(opcode: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

fn six(opcode: u8, lba: u32, blocks: u8) -> Vec<u8> {
    let [_, high, middle, low] = lba.to_be_bytes();
    vec![opcode, high, middle, low, blocks, 0]
}

#[test]
fn reads_of_every_length_return_the_blocks() {
    let mut world = World::new();
    for cdb in
        [six(0x08, 3, 8), ten(0x28, 0, 3, 8), twelve(0xa8, 0x10, 3, 8), sixteen(0x88, 0x1a, 3, 8)]
    {
        assert_eq!(world.run(&cdb).data, world.blocks(3, 8), "{cdb:02x?}");
    }
}

#[test]
fn writes_of_every_length_write_the_blocks() {
    let mut world = World::new();
    let cdbs = [
        (six(0x0a, 500, 12), false),
        (ten(0x2a, 0x10, 500, 12), false),
        (twelve(0xaa, 0x08, 500, 12), true),
        (sixteen(0x8a, 0x0a, 500, 12), true),
    ];
    for (number, (cdb, durable)) in cdbs.into_iter().enumerate() {
        let data = vec![0xa0 + u8::try_from(number).unwrap(); 12 * SECTOR];
        assert!(world.run_out(&cdb, &data).is_good(), "{cdb:02x?}");
        assert_eq!(world.blocks(500, 12), data);
        assert!(world.ops.drain(..).all(|(op, ..)| op == Op::Write { durable }));
    }
}

#[test]
fn six_byte_commands_have_21_bits_and_256_blocks() {
    let mut world = World::new();
    assert_eq!(world.run(&six(0x08, 256, 0)).data, world.blocks(256, 256));
    world.export.resize(512 << 21);
    match world.begin(0, [0; 8], &six(0x08, 0x1f_ffff, 1)) {
        Command::Read(transfer) => {
            assert_eq!(transfer, Transfer { lba: 0x1f_ffff, blocks: 1, durable: false });
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(code(&world.run(&six(0x08, 0x20_0000, 1))), (0x24, 0));
}

#[test]
fn zero_blocks_are_no_error() {
    let mut world = World::new();
    for cdb in [ten(0x28, 0, 0, 0), twelve(0xa8, 0, 7, 0), sixteen(0x88, 0, 511, 0)] {
        assert!(world.run(&cdb).is_good());
    }
    assert!(world.run(&ten(0x2a, 0, 0, 0)).is_good());
    assert_eq!(code(&world.run(&ten(0x28, 0, 513, 0))), (0x21, 0));
    assert_eq!(code(&world.run(&ten(0x2a, 0, u32::MAX, 0))), (0x21, 0));
    assert_eq!(world.ops, []);
}

#[test]
fn ranges_beyond_the_end_are_refused() {
    let mut world = World::new();
    for blocks in 1..=256 {
        for lba in [513 - u32::from(blocks), 511 + u32::from(blocks == 1), 1 << 31, u32::MAX] {
            assert_eq!(code(&world.run(&ten(0x28, 0, lba, blocks))), (0x21, 0), "{lba} {blocks}");
            assert_eq!(code(&world.run(&ten(0x2a, 0, lba, blocks))), (0x21, 0), "{lba} {blocks}");
        }
    }
    assert_eq!(code(&world.run(&sixteen(0x88, 0, u64::MAX, 1))), (0x21, 0));
    assert_eq!(code(&world.run(&sixteen(0x8a, 0, u64::MAX, u32::MAX))), (0x21, 0));
}

#[test]
fn protection_fields_and_reserved_bits_are_refused() {
    let mut world = World::new();
    for protect in 1..8 {
        for opcode in [0x28, 0x2a, 0x2e, 0x2f, 0x41] {
            let cdb = ten(opcode, protect << 5, 0, 1);
            assert_eq!(code(&world.run(&cdb)), (0x24, 0), "{cdb:02x?}");
        }
        for opcode in [0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x93] {
            let cdb = sixteen(opcode, protect << 5, 0, 1);
            assert_eq!(code(&world.run(&cdb)), (0x24, 0), "{cdb:02x?}");
        }
    }
    let mut naca = ten(0x28, 0, 0, 1);
    naca[9] = 4;
    assert_eq!(code(&world.run(&naca)), (0x24, 0));
}

#[test]
fn transfers_longer_than_the_limit_are_refused() {
    let mut world = World::new();
    world.export.resize(512 << 20);
    let limit = (32 << 20) / 512;
    assert!(matches!(world.begin(0, [0; 8], &sixteen(0x88, 0, 0, limit)), Command::Read(_)));
    assert_eq!(code(&world.run(&sixteen(0x88, 0, 0, limit + 1))), (0x24, 0));
    assert_eq!(code(&world.run(&sixteen(0x8a, 0, 0, limit + 1))), (0x24, 0));
}

#[test]
fn every_write_to_a_protected_disk_is_refused() {
    let mut world = World::read_only();
    for cdb in [
        six(0x0a, 0, 1),
        ten(0x2a, 0, 0, 1),
        twelve(0xaa, 0, 0, 1),
        sixteen(0x8a, 0, 0, 1),
        ten(0x2e, 2, 0, 1),
        twelve(0xae, 2, 0, 1),
        sixteen(0x8e, 2, 0, 1),
        ten(0x41, 0, 0, 1),
        ten(0x41, 8, 0, 1),
        sixteen(0x93, 8, 0, 1),
        sixteen(0x8b, 0, 0, 1),
        vec![0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24],
    ] {
        assert_eq!(world.run(&cdb).sense, Some(Sense::WRITE_PROTECTED), "{cdb:02x?}");
    }
    assert!(world.run(&ten(0x28, 0, 0, 1)).is_good());
    assert!(world.run(&ten(0x35, 0, 0, 0)).is_good());
    assert_eq!(world.ops.last(), Some(&(Op::Flush, 0, 0)));
}

#[test]
fn medium_error_is_reported_with_its_block() {
    let mut world = World::new();
    world.faults.extend([Ok(()), Err(Fault::Io)]);
    let response = world.run(&ten(0x28, 0, 100, 6));
    assert_eq!(response.status, Status::CheckCondition);
    assert_eq!(response.sense, Some(Sense::READ_ERROR.with_information(103)));
    world.faults.push_back(Err(Fault::NoSpace));
    let response = world.run_out(&ten(0x2a, 0, 0, 1), &[0; SECTOR]);
    assert_eq!(response.sense, Some(Sense::NO_SPACE));
}
