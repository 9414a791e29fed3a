//! Command capsules: data pointers, identifiers, queue depth, fused pairs (NVMe/TCP 1.0 §3.3.2, NVMe Base 2.0
//! §3.3.3.1, §3.4.2).

use nvme::command::{AdminCommand, IoCommand};
use nvme::status::Status;
use nvme::wire::{Fuse, Sgl, Sqe};

use crate::raw_host::{PLAIN, capsule, data_of, h2c, read, write, write_in_capsule};
use crate::world::{BLOCKS, Id, Reply, World};

/// Checks that each command with its in-capsule data fails with its status and nothing is written.
fn assert_all_fail<'a>(cases: impl IntoIterator<Item = (Sqe, &'a [u8], Status)>) {
    let mut world = World::new();
    let other_host = world.other_host();
    let (_, io) = world.attached();
    let before = world.disk.clone();
    for (sqe, data, status) in cases {
        let count = world.conn(io).submitted;
        let cqe = world.ask(io, &sqe.with_cid(0x1234), data);
        assert_eq!(cqe.outcome(), status, "{sqe:02x?}");
        assert_eq!(world.conn(io).submitted, count, "the disk is not asked");
        assert_eq!(world.fetch(io, &read(1, 1)), before[512..1024], "the stream is still in step");
    }
    assert!(world.disk == before);
    world.assert_still_served(other_host);
    world.end_all();
}

fn assert_fails(sqe: Sqe, data: &[u8], status: Status) {
    assert_all_fail([(sqe, data, status)]);
}

#[test]
fn unknown_sgl_types_are_refused() {
    let unknown = (0..=255).filter(|id| ![Sgl::OFFSET, Sgl::TRANSPORT].contains(id));
    let sgls = unknown.map(|id| Sgl::new(id, 0, 512));
    let sqes = sgls.flat_map(|sgl| [write(0, 1).with_data(sgl), read(0, 1).with_data(sgl)]);
    assert_all_fail(sqes.map(|sqe| (sqe, &[][..], Status::SGL_TYPE_INVALID.dnr())));
}

#[test]
fn nonzero_in_capsule_offset_is_refused() {
    for offset in [1, 4, 512, u64::MAX] {
        let sqe = write(0, 1).with_data(Sgl::in_capsule(offset, 512));
        assert_fails(sqe, &[1; 512], Status::SGL_OFFSET_INVALID.dnr());
    }
}

#[test]
fn sgl_length_must_match_blocks_and_capsule() {
    let status = Status::DATA_SGL_LENGTH_INVALID.dnr();
    for len in [0, 1, 511, 513, 1024, 1 << 20, u32::MAX] {
        assert_fails(write(0, 1).with_data(Sgl::in_capsule(0, len)), &[1; 512], status);
        assert_fails(write(0, 1).with_data(Sgl::transport(len)), &[], status);
        assert_fails(read(0, 1).with_data(Sgl::transport(len)), &[], status);
    }
    assert_fails(write_in_capsule(0, 1), &[1; 508], status);
    assert_fails(write_in_capsule(0, 1), &[1; 516], status);
    assert_fails(write_in_capsule(0, 1), &[1; 16384], status);
    assert_fails(write_in_capsule(0, 1), &[], status);
}

#[test]
fn in_capsule_data_of_a_dataless_command_is_refused() {
    let invalid = Status::INVALID_FIELD.dnr();
    assert_fails(read(0, 1), &[1; 512], invalid);
    assert_fails(
        read(0, 1).with_data(Sgl::in_capsule(0, 512)),
        &[1; 512],
        Status::SGL_TYPE_INVALID.dnr(),
    );
    assert_fails(write(0, 1), &[1; 512], invalid);
    assert_fails(IoCommand::Flush { nsid: 1 }.emit(), &[1; 4], invalid);
}

#[test]
fn prps_are_refused() {
    for psdt in [0b00, 0b10, 0b11_u8] {
        let sqe = Sqe { flags: psdt << 6, ..read(0, 1) };
        assert_fails(sqe, &[], Status::INVALID_FIELD.dnr());
    }
}

#[test]
fn unknown_opcodes_are_refused() {
    let known = [0, 1, 2, 5, 8, 9, 0x0c, 0x0d, 0x0e, 0x11, 0x15, 0x19, 0x7f];
    let unknown = (0..=255).filter(|opcode| !known.contains(opcode));
    let sqes = unknown.map(|opcode| Sqe { opcode, ..read(0, 1) });
    assert_all_fail(sqes.map(|sqe| (sqe, &[][..], Status::INVALID_OPCODE.dnr())));
}

#[test]
fn unknown_and_fused_admin_commands_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let known = [0x02, 0x06, 0x08, 0x09, 0x0a, 0x0c, 0x18, 0x7f];
    let alive = AdminCommand::KeepAlive.emit();
    for opcode in (0..=255).filter(|opcode| !known.contains(opcode)) {
        assert_eq!(world.status(admin, &Sqe { opcode, ..alive }), Status::INVALID_OPCODE.dnr());
    }
    for fuse in [Fuse::First, Fuse::Second, Fuse::Reserved] {
        assert_eq!(world.status(admin, &alive.with_fuse(fuse)), Status::INVALID_FIELD.dnr());
    }
    world.end_all();
}

#[test]
fn queue_overrun_ends_the_connection() {
    let mut world = World::new();
    let other_host = world.other_host();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    for cid in 0..128 {
        world.send(io, &capsule(PLAIN, &read(0, 1).with_cid(cid), &[]));
    }
    assert_eq!((world.conn(io).closed, world.jobs(io).len()), (None, 128));
    world.send(io, &capsule(PLAIN, &read(0, 1).with_cid(128), &[]));
    world.terminated(io, 2, 0);
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn identifier_in_use_is_refused_without_side_effects() {
    let mut world = World::new();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &read(4, 1).with_cid(9), &[]));
    let cqe = world.ask(io, &write_in_capsule(4, 1).with_cid(9), &[1; 512]);
    assert_eq!(cqe.outcome(), Status::COMMAND_ID_CONFLICT.dnr());
    world.finish(io, 0, Ok(()));
    assert_eq!(data_of(&world.replies(io), 9), world.disk[4 * 512..5 * 512]);
    world.end_all();
}

#[test]
fn all_command_identifiers_are_usable() {
    let mut world = World::new();
    let (_, io) = world.attached();
    for cid in [0, 1, 0x7fff, 0x8000, 0xffff] {
        assert_eq!(world.fetch(io, &read(2, 1).with_cid(cid)), world.disk[1024..1536]);
    }
    world.end_all();
}

// ---- fused pairs

fn compare(slba: u64, blocks: u32) -> Sqe {
    let command =
        IoCommand::Compare { nsid: 1, slba, nlb: blocks, fua: false, limited_retry: false };
    command.emit().with_data(Sgl::in_capsule(0, blocks * 512)).with_fuse(Fuse::First)
}

fn second(slba: u64, blocks: u32) -> Sqe {
    write_in_capsule(slba, blocks).with_fuse(Fuse::Second)
}

/// Returns the status of each completed command, by identifier.
fn outcomes(world: &mut World, io: Id) -> Vec<(u16, Status)> {
    let done = |reply: &Reply| match reply {
        Reply::Done(cqe) => Some((cqe.cid.get(), cqe.outcome())),
        _ => None,
    };
    let mut all: Vec<_> = world.replies(io).iter().filter_map(done).collect();
    all.sort_by_key(|&(cid, _)| cid);
    all
}

/// Sends a fused pair with in-capsule data.
fn pair(
    first: Sqe,
    expected: &[u8],
    second: Sqe,
    replacement: &[u8],
) -> (World, Vec<(u16, Status)>) {
    let mut world = World::new();
    let (_, io) = world.attached();
    let mut bytes = capsule(PLAIN, &first.with_cid(1), expected);
    bytes.extend(capsule(PLAIN, &second.with_cid(2), replacement));
    world.send(io, &bytes);
    let outcomes = outcomes(&mut world, io);
    assert_eq!(world.fetch(io, &read(100, 1).with_cid(3)).len(), 512);
    (world, outcomes)
}

#[test]
fn matching_pair_writes() {
    let (mut world, outcomes) = pair(compare(5, 1), &[5; 512], second(5, 1), &[0xaa; 512]);
    assert_eq!(outcomes, [(1, Status::SUCCESS), (2, Status::SUCCESS)]);
    assert_eq!(world.disk[5 * 512..6 * 512], [0xaa; 512]);
    world.end_all();
}

#[test]
fn miscomparing_pair_does_not_write() {
    let (mut world, outcomes) = pair(compare(5, 1), &[6; 512], second(5, 1), &[0xaa; 512]);
    let failed = Status::ABORTED_FAILED_FUSED.dnr();
    assert_eq!(outcomes, [(1, Status::COMPARE_FAILURE.dnr()), (2, failed)]);
    assert_eq!(world.disk[5 * 512..6 * 512], [5; 512]);
    world.end_all();
}

#[test]
fn inconsistent_pairs_are_refused() {
    let (invalid, failed) = (Status::INVALID_FIELD.dnr(), Status::ABORTED_FAILED_FUSED.dnr());
    let read_first = read(5, 1).with_fuse(Fuse::First);
    let compare_second = compare(5, 1).with_fuse(Fuse::Second);
    let cases: [(Sqe, &[u8], Sqe, Status, Status); 5] = [
        (compare(5, 1), &[5; 512], second(6, 1), failed, invalid),
        (compare(5, 1), &[5; 512], compare_second, failed, invalid),
        (read_first, &[], second(5, 1), invalid, failed),
        (compare(BLOCKS, 1), &[5; 512], second(BLOCKS, 1), Status::LBA_OUT_OF_RANGE.dnr(), failed),
        (
            compare(5, 1).with_fuse(Fuse::Reserved),
            &[5; 512],
            second(5, 1),
            invalid,
            Status::ABORTED_MISSING_FUSED.dnr(),
        ),
    ];
    for (first, expected, second, one, two) in cases {
        let (mut world, outcomes) = pair(first, expected, second, &[0xaa; 512]);
        assert_eq!(outcomes, [(1, one), (2, two)], "{first:02x?} {second:02x?}");
        assert_eq!(world.disk[5 * 512..6 * 512], [5; 512]);
        world.end_all();
    }
}

#[test]
fn pair_larger_than_acwu_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let blocks = (1 << 16) / 512 + 1;
    let first = compare(0, blocks).with_data(Sgl::transport(blocks * 512));
    let status = world.status(io, &first);
    assert_eq!(status, Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
    world.end_all();
}

#[test]
fn second_without_a_first_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let cqe = world.ask(io, &second(5, 1), &[1; 512]);
    assert_eq!(cqe.outcome(), Status::ABORTED_MISSING_FUSED.dnr());
    world.end_all();
}

#[test]
fn first_command_without_its_second_is_aborted() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let mut bytes = capsule(PLAIN, &compare(5, 1).with_cid(1), &[5; 512]);
    bytes.extend(capsule(PLAIN, &write_in_capsule(5, 1).with_cid(2), &[1; 512]));
    world.send(io, &bytes);
    let expected = [(1, Status::ABORTED_MISSING_FUSED.dnr()), (2, Status::SUCCESS)];
    assert_eq!(outcomes(&mut world, io), expected);
    world.end_all();
}

#[test]
fn aborted_first_command_discards_its_data() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let first = compare(5, 1).with_data(Sgl::transport(512)).with_cid(1);
    world.send(io, &capsule(PLAIN, &first, &[]));
    let [Reply::R2t { ttag, .. }] = world.replies(io)[..] else { panic!() };
    world.send(io, &capsule(PLAIN, &read(0, 1).with_cid(2), &[]));
    let replies = world.replies(io);
    assert!(matches!(replies[0], Reply::Done(cqe) if cqe.cid.get() == 1
        && cqe.outcome() == Status::ABORTED_MISSING_FUSED.dnr()));
    world.send(io, &h2c(PLAIN, 1, ttag, 0, &[5; 512], true));
    assert_eq!(world.conn(io).closed, None, "the host may still send what it was asked for");
    assert_eq!(world.fetch(io, &read(1, 1).with_cid(1)), world.disk[512..1024]);
    world.end_all();
}

#[test]
fn interleaved_pairs_match_in_submission_order() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let by_r2t = |blocks: u64| write(blocks, 1).with_fuse(Fuse::Second);
    let mut bytes = Vec::new();
    for pair in 0..3_u16 {
        let block = 10 + pair;
        let expected = [u8::try_from(block).unwrap(); 512];
        bytes.extend(capsule(PLAIN, &compare(block.into(), 1).with_cid(pair * 2), &expected));
        bytes.extend(capsule(PLAIN, &by_r2t(block.into()).with_cid(pair * 2 + 1), &[]));
    }
    world.send(io, &bytes);
    let r2ts = world.replies(io);
    assert_eq!(r2ts.len(), 3);
    for reply in r2ts.iter().rev() {
        let Reply::R2t { cid, ttag, .. } = *reply else { panic!() };
        world.send(io, &h2c(PLAIN, cid, ttag, 0, &[0xa0 + u8::try_from(cid).unwrap(); 512], true));
    }
    let all = outcomes(&mut world, io);
    assert_eq!(all, (0..6).map(|cid| (cid, Status::SUCCESS)).collect::<Vec<_>>());
    for pair in 0..3_u8 {
        let start = (10 + usize::from(pair)) * 512;
        assert_eq!(world.disk[start..start + 512], [0xa1 + pair * 2; 512]);
    }
    world.end_all();
}

#[test]
fn disk_fault_fails_the_right_command_of_a_pair() {
    use export::Fault;
    let cases = [
        (
            vec![Err(Fault::Io)],
            Status::UNRECOVERED_READ_ERROR.dnr(),
            Status::ABORTED_FAILED_FUSED.dnr(),
        ),
        (vec![Ok(()), Err(Fault::Io)], Status::SUCCESS, Status::WRITE_FAULT.dnr()),
    ];
    for (faults, one, two) in cases {
        let mut world = World::new();
        let (_, io) = world.attached();
        world.faults = faults.into();
        let mut bytes = capsule(PLAIN, &compare(5, 1).with_cid(1), &[5; 512]);
        bytes.extend(capsule(PLAIN, &second(5, 1).with_cid(2), &[1; 512]));
        world.send(io, &bytes);
        assert_eq!(outcomes(&mut world, io), [(1, one), (2, two)]);
        let cqe = world.ask(io, &write_in_capsule(5, 1), &[2; 512]);
        assert_eq!(cqe.outcome(), Status::SUCCESS, "the disk is free again");
        world.end_all();
    }
}
