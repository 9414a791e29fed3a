//! Valid requests, and requests answered with an error, in each form of replies.

use export::{Access, Fault, Geometry, Op};
use nbd::wire::request::{self, CACHE, DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE, TRIM, WRITE_ZEROES};
use nbd::wire::{errno, reply};

use crate::messages::{
    MODES, Mode, RequestHeader, attach, data_of, error_of, read, replies, write,
};
use crate::world::{SIZE, World, disk};

const KI: usize = 1 << 10;

#[test]
fn golden_replies_to_a_read() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let received = world.exchange(id, &read(0x0102_0304_0506_0708, 512, 4).bytes(Mode::Simple));
    assert_eq!(received, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1]);
    let id = attach(&mut world, Mode::Structured);
    let received = world.exchange(id, &read(0x0102_0304_0506_0708, 512, 2).bytes(Mode::Structured));
    #[rustfmt::skip]
    assert_eq!(received, [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 10,
        0, 0, 0, 0, 0, 0, 2, 0, 1, 1,
    ]);
    let id = attach(&mut world, Mode::Extended);
    let received = world.exchange(id, &read(0x0102_0304_0506_0708, 512, 2).bytes(Mode::Extended));
    #[rustfmt::skip]
    assert_eq!(received, [
        0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 10,
        0, 0, 0, 0, 0, 0, 2, 0, 1, 1,
    ]);
}

#[test]
fn written_data_is_read_back() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let data: Vec<u8> = (0..300 * KI).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert_eq!(error_of(&world.exchange(id, &write(mode, 9, 1024, &data))), 0);
        assert_eq!(world.disk[1024..1024 + data.len()], data);
        let received = world.exchange(id, &read(10, 1024, data.len() as u64).bytes(mode));
        assert_eq!(data_of(&received, 1024, data.len()).unwrap(), data);
        world.end_all();
    }
}

/// Case R12: reads are served at any byte; writes of incomplete blocks are refused.
#[test]
fn r12_unaligned_reads_succeed_and_writes_fail() {
    for (mode, block) in MODES.into_iter().flat_map(|mode| [512, 4096].map(|block| (mode, block))) {
        let mut world = World::new();
        world.catalogue.publish(disk(Access::Writable, block, SIZE as u64));
        let id = attach(&mut world, mode);
        let before = world.disk.clone();
        for (offset, len) in [(0, 1), (511, 2), (4095, 4098), (1, 600 * KI), (SIZE - 1, 1)] {
            let received = world.exchange(id, &read(1, offset as u64, len as u64).bytes(mode));
            assert_eq!(
                data_of(&received, offset as u64, len).unwrap(),
                before[offset..offset + len]
            );
        }
        let block = block as usize;
        for (offset, len) in [(1, block), (0, block - 1), (block / 2, block / 2), (block, 1)] {
            let received = world.exchange(id, &write(mode, 2, offset as u64, &vec![7; len]));
            assert_eq!(error_of(&received), errno::EINVAL);
            let zero = RequestHeader::new(WRITE_ZEROES, 3, offset as u64, len as u64);
            assert_eq!(error_of(&world.exchange(id, &zero.bytes(mode))), errno::EINVAL);
        }
        assert!(world.disk == before);
        world.end_all();
    }
}

/// Cases R13 and X37: requests beyond the end, also with sums that overflow 64 bits.
#[test]
fn r13_x37_requests_beyond_the_end_fail() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let size = SIZE as u64;
        let submitted = world.conn(id).submitted;
        let ask = |world: &mut World, command, offset, len| {
            error_of(&world.exchange(id, &RequestHeader::new(command, 1, offset, len).bytes(mode)))
        };
        for (offset, len) in [
            (size, 1_u64),
            (size - 512, 1024),
            (u64::MAX, 1),
            (u64::MAX - 511, 512),
            (u64::MAX - 511, 0xffff_fe00),
            (1 << 63, 512),
        ] {
            assert_eq!(ask(&mut world, request::READ, offset, len), errno::EINVAL);
            assert_eq!(ask(&mut world, TRIM, offset, len), errno::EINVAL);
            assert_eq!(ask(&mut world, CACHE, offset, len), errno::EINVAL);
            assert_eq!(ask(&mut world, WRITE_ZEROES, offset, len), errno::ENOSPC);
            let received = world.exchange(id, &write(mode, 1, offset, &[0; 1024]));
            assert_eq!(error_of(&received), errno::ENOSPC);
        }
        for command in [request::READ, TRIM, CACHE, WRITE_ZEROES] {
            assert_eq!(ask(&mut world, command, size, 0), 0, "length zero at the end succeeds");
            assert_ne!(ask(&mut world, command, size + 512, 0), 0);
        }
        assert_eq!(world.conn(id).submitted, submitted, "no disk request");
        assert_eq!(ask(&mut world, WRITE_ZEROES, size - 512, 512), 0);
        world.end_all();
    }
}

/// Case X17.
#[test]
fn x17_read_only_export_is_never_written() {
    for mode in MODES {
        let mut world = World::new();
        world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
        let id = attach(&mut world, mode);
        assert_eq!(error_of(&world.exchange(id, &write(mode, 1, 0, &[1; 512]))), errno::EPERM);
        for command in [TRIM, WRITE_ZEROES] {
            let received = world.exchange(id, &RequestHeader::new(command, 1, 0, 512).bytes(mode));
            assert_eq!(error_of(&received), errno::EPERM);
        }
        assert_eq!(world.conn(id).submitted, 0);
        let flush = RequestHeader::new(request::FLUSH, 1, 0, 0);
        assert_eq!(error_of(&world.exchange(id, &flush.bytes(mode))), 0);
        world.end_all();
    }
}

/// Each command is executed as the matching disk operation.
#[test]
fn every_command_submits_the_matching_disk_request() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        let zero = |unmap, durable, fast| Op::Zero { unmap, durable, fast };
        for (command, flags, op) in [
            (request::FLUSH, FUA, Op::Flush),
            (TRIM, 0, Op::Discard),
            (CACHE, FUA, Op::Prefetch),
            (WRITE_ZEROES, 0, zero(true, false, false)),
            (WRITE_ZEROES, NO_HOLE | FUA, zero(false, true, false)),
            (WRITE_ZEROES, FAST_ZERO, zero(true, false, true)),
            (request::READ, FUA, Op::Read),
        ] {
            let len = if command == request::FLUSH { 0 } else { 1024 };
            world.send(id, &RequestHeader::new(command, 1, 0, len).flags(flags).bytes(mode));
            assert_eq!(world.jobs(id)[0].op(), op);
            assert_eq!(world.jobs(id)[0].len(), len);
            assert!(world.received(id).is_empty(), "no reply before completion");
            world.finish(id, 0, Ok(()));
            assert!(!world.received(id).is_empty());
        }
        world.end_all();
    }
}

#[test]
fn fua_replies_follow_stable_storage() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        let payload = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
        let header = RequestHeader::new(request::WRITE, 1, 0, 512).flags(FUA | payload).bytes(mode);
        world.send(id, &[header, vec![1; 512]].concat());
        assert_eq!(world.jobs(id)[0].op(), Op::Write { durable: true });
        world.finish(id, 0, Ok(()));
        world.received(id);
        world.send(id, &RequestHeader::new(TRIM, 2, 0, 512).flags(FUA).bytes(mode));
        world.finish(id, 0, Ok(()));
        assert!(world.received(id).is_empty());
        assert_eq!(world.jobs(id)[0].op(), Op::Flush);
        world.finish(id, 0, Err(Fault::Io));
        assert_eq!(error_of(&world.received(id)), errno::EIO);
        world.end_all();
    }
}

#[test]
fn trim_is_shrunk_to_whole_blocks() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.conn(id).hold = true;
    world.send(id, &RequestHeader::new(TRIM, 1, 100, 2000).bytes(Mode::Simple));
    let job = world.jobs(id)[0];
    assert_eq!((job.offset(), job.len()), (512, 1536));
    world.finish(id, 0, Ok(()));
    world.received(id);
    assert_eq!(
        error_of(&world.exchange(id, &RequestHeader::new(TRIM, 1, 100, 600).bytes(Mode::Simple))),
        0
    );
    world.end_all();
}

#[test]
fn unsupported_trim_is_refused_or_ignored() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.faults.push_back(Err(Fault::Unsupported));
    assert_eq!(
        error_of(&world.exchange(id, &RequestHeader::new(TRIM, 1, 0, 512).bytes(Mode::Simple))),
        0
    );
    world.faults.push_back(Err(Fault::Unsupported));
    let fast = RequestHeader::new(WRITE_ZEROES, 1, 0, 512).flags(FAST_ZERO).bytes(Mode::Simple);
    assert_eq!(error_of(&world.exchange(id, &fast)), errno::ENOTSUP);
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let geometry = Geometry::new(512, 512).unwrap();
    let mut plain =
        export::Export::new("sda", crate::world::DISK, <_>::default(), geometry, 4096, file);
    plain.access = Access::Writable;
    world.catalogue.publish(plain.into());
    let id = attach(&mut world, Mode::Simple);
    let received = world.exchange(id, &RequestHeader::new(TRIM, 1, 0, 512).bytes(Mode::Simple));
    assert_eq!(error_of(&received), errno::EINVAL);
}

/// Command flags that the command does not have or that were not negotiated. One of them crashed
/// another server.
#[test]
fn command_flags_not_negotiated_are_einval() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        for (command, flags) in [
            (request::READ, FAST_ZERO),
            (request::READ, NO_HOLE),
            (request::READ, REQ_ONE),
            (request::READ, 0x8000),
            (TRIM, FAST_ZERO),
            (CACHE, DF),
            (WRITE_ZEROES, DF),
            (WRITE_ZEROES, 0x40),
            (request::BLOCK_STATUS, DF),
            (request::RESIZE, 0),
            (0xffff, 0),
        ] {
            let received = world
                .exchange(id, &RequestHeader::new(command, 1, 0, 512).flags(flags).bytes(mode));
            assert_eq!(error_of(&received), errno::EINVAL, "{command} {flags:x} {mode:?}");
        }
        let received = world.exchange(id, &read(1, 0, 512).flags(DF).bytes(mode));
        let expected = if mode == Mode::Simple { Err(errno::EINVAL) } else { Ok(vec![0; 512]) };
        assert_eq!(data_of(&received, 0, 512), expected);
        let flush = RequestHeader::new(request::FLUSH, 1, 512, 0).bytes(mode);
        assert_eq!(error_of(&world.exchange(id, &flush)), errno::EINVAL);
        world.end_all();
    }
}

#[test]
fn unexpected_payload_is_skipped_with_einval() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Extended);
    let header = read(1, 0, 700).flags(request::PAYLOAD_LEN).bytes(Mode::Extended);
    world.send(id, &header);
    assert!(world.received(id).is_empty(), "no reply before the payload");
    assert_eq!(error_of(&world.exchange(id, &[9; 700])), errno::EINVAL);
    let received = world.exchange(id, &read(2, 512, 2).bytes(Mode::Extended));
    assert_eq!(data_of(&received, 512, 2).unwrap(), [1, 1]);
    // A write without PAYLOAD_LEN is accepted.
    let write = RequestHeader::new(request::WRITE, 3, 0, 512).bytes(Mode::Extended);
    assert_eq!(error_of(&world.exchange(id, &[write, vec![5; 512]].concat())), 0);
    world.end_all();
}

/// Case X26.
#[test]
fn x26_requests_up_to_the_maximum_payload_succeed() {
    let max = 32 << 20;
    for mode in MODES {
        let mut world = World::small(40 << 20, 512);
        let id = attach(&mut world, mode);
        for (len, ok) in [(max - 1, true), (max, true), (max + 1, false)] {
            let received = world.exchange(id, &read(1, 0, len).bytes(mode));
            assert_eq!(data_of(&received, 0, usize::try_from(len).unwrap()).is_ok(), ok, "{len}");
        }
        for (len, error) in [(max, 0), (max + 512, errno::EINVAL), (max - 1, errno::EINVAL)] {
            let data = vec![1; usize::try_from(len).unwrap()];
            assert_eq!(error_of(&world.exchange(id, &write(mode, 2, 0, &data))), error, "{len}");
        }
        if mode != Mode::Simple {
            let received = world.exchange(id, &read(1, 0, 64 << 10).flags(DF).bytes(mode));
            assert_eq!(replies(&received, |_| 0).len(), 1);
            let received = world.exchange(id, &read(1, 0, 1 << 20).flags(DF).bytes(mode));
            assert_eq!(replies(&received, |_| 0).len(), 1);
            let received = world.exchange(id, &read(1, 0, 1 + (1 << 20)).flags(DF).bytes(mode));
            assert_eq!(error_of(&received), errno::EOVERFLOW);
        }
        let flags = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
        world.send(
            id,
            &RequestHeader::new(request::WRITE, 1, 0, 0xffff_fe00).flags(flags).bytes(mode),
        );
        assert_eq!(world.conn(id).closed, Some(export::Reason::Violation));
    }
}

#[test]
fn long_zero_request_is_split() {
    let mut world = World::small(0, 512);
    world.catalogue.publish(disk(Access::Writable, 512, 10 << 30));
    let id = attach(&mut world, Mode::Extended);
    world.conn(id).hold = true;
    world.send(id, &RequestHeader::new(WRITE_ZEROES, 1, 512, 5 << 30).bytes(Mode::Extended));
    let mut total = 0;
    while let Some((id, job)) = world.jobs.pop_front() {
        assert_eq!(job.offset(), 512 + total);
        total += job.len();
        world.complete(id, job, Ok(()));
        world.run();
    }
    assert_eq!(total, 5 << 30);
    assert_eq!(error_of(&world.received(id)), 0);
}

/// A disk fault fails the request, is reported, and does not close the connection.
#[test]
fn disk_fault_fails_only_its_request() {
    for (mode, fault) in MODES.into_iter().flat_map(|mode| Fault::ALL.map(|fault| (mode, fault))) {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let fail = |world: &mut World, bytes: &[u8]| {
            world.faults.push_back(Err(fault));
            let error = error_of(&world.exchange(id, bytes));
            assert_ne!(error, 0, "{fault}");
            error
        };
        fail(&mut world, &read(1, 512, 1024).bytes(mode));
        fail(&mut world, &write(mode, 2, 0, &[1; 1024]));
        fail(&mut world, &RequestHeader::new(WRITE_ZEROES, 3, 0, 512).bytes(mode));
        let reported = world.conn(id).reported();
        let quiet =
            matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy | Fault::Reserved);
        let expected =
            ["attached ", "fault read 512 1024", "fault write 0 1024", "fault zero 0 512"];
        assert_eq!(reported, if quiet { &expected[..1] } else { &expected[..] });
        let received = world.exchange(id, &read(4, 0, 512).bytes(mode));
        assert_eq!(data_of(&received, 0, 512).unwrap(), [0; 512]);
        world.end_all();
    }
}

/// Case R41: with structured replies the error has an offset, and the other parts are sent.
#[test]
fn failed_part_of_a_long_read_has_its_offset() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.faults.extend([Ok(()), Err(Fault::Io), Ok(())]);
        let received = world.exchange(id, &read(1, 100, 1 << 20).bytes(mode));
        let parts = replies(&received, |_| 0);
        let failed: Vec<_> = parts.iter().filter(|part| part.error != 0).collect();
        assert_eq!((failed.len(), failed[0].kind), (1, reply::ERROR_OFFSET));
        assert_eq!(failed[0].data[6..], (256_u64 << 10).to_be_bytes());
        assert_eq!(parts.iter().filter(|part| part.done).count(), 1);
        assert!(parts.last().unwrap().done);
        world.end_all();
    }
}

/// Case R17.
#[test]
fn r17_no_flush_succeeds_after_a_failed_one() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let flush = RequestHeader::new(request::FLUSH, 1, 0, 0).bytes(Mode::Simple);
    assert_eq!(error_of(&world.exchange(id, &flush)), 0);
    world.faults.push_back(Err(Fault::Io));
    assert_eq!(error_of(&world.exchange(id, &flush)), errno::EIO);
    assert_eq!(error_of(&world.exchange(id, &flush)), errno::EIO);
    let other = attach(&mut world, Mode::Simple);
    assert_eq!(error_of(&world.exchange(other, &flush)), errno::EIO, "on every connection");
}

/// Case R10: a flush on one connection is executed on the descriptor that all connections share.
#[test]
fn r10_flush_covers_writes_of_other_connections() {
    let mut world = World::new();
    let (a, b) = (attach(&mut world, Mode::Simple), attach(&mut world, Mode::Simple));
    assert_eq!(error_of(&world.exchange(a, &write(Mode::Simple, 1, 0, &[9; 512]))), 0);
    world.conn(b).hold = true;
    world.send(b, &RequestHeader::new(request::FLUSH, 1, 0, 0).bytes(Mode::Simple));
    assert_eq!(world.jobs(b)[0].op(), Op::Flush);
    let export = world.export();
    assert!(std::sync::Arc::ptr_eq(world.jobs(b)[0].export(), &export));
    world.finish_all(b);
    world.end_all();
}

#[test]
fn write_waits_for_exclusive_access_of_another_request() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let right = export::Exclusive::claim(&world.export()).unwrap();
    world.send(id, &write(Mode::Simple, 1, 0, &[9; 600 << 10]));
    assert!(world.received(id).is_empty());
    drop(right);
    world.notify(export::Notice::StateChanged);
    assert_eq!(error_of(&world.received(id)), 0);
    assert!(world.disk[..600 << 10].iter().all(|&byte| byte == 9));
    world.end_all();
}
