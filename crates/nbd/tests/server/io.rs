//! Requests that are right, and those that are answered with an error: in each form of replies.

use export::{Access, Fault, Geometry, Op};
use nbd::wire::request::{self, CACHE, DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE, TRIM, WRITE_ZEROES};
use nbd::wire::{errno, reply};

use crate::says::{MODES, Mode, Say, attach, data_of, error_of, read, replies, write};
use crate::world::{SIZE, World, disk};

const KI: usize = 1 << 10;

#[test]
fn golden_replies_to_a_read() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let heard = world.ask(id, &read(0x0102_0304_0506_0708, 512, 4).bytes(Mode::Simple));
    assert_eq!(heard, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1]);
    let id = attach(&mut world, Mode::Structured);
    let heard = world.ask(id, &read(0x0102_0304_0506_0708, 512, 2).bytes(Mode::Structured));
    #[rustfmt::skip]
    assert_eq!(heard, [
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 10,
        0, 0, 0, 0, 0, 0, 2, 0, 1, 1,
    ]);
    let id = attach(&mut world, Mode::Extended);
    let heard = world.ask(id, &read(0x0102_0304_0506_0708, 512, 2).bytes(Mode::Extended));
    #[rustfmt::skip]
    assert_eq!(heard, [
        0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8,
        0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 10,
        0, 0, 0, 0, 0, 0, 2, 0, 1, 1,
    ]);
}

#[test]
fn a_write_is_acknowledged_and_read_back() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let data: Vec<u8> = (0..300 * KI).map(|at| u8::try_from(at % 251).unwrap()).collect();
        assert_eq!(error_of(&world.ask(id, &write(mode, 9, 1024, &data))), 0);
        assert_eq!(world.disk[1024..1024 + data.len()], data);
        let heard = world.ask(id, &read(10, 1024, data.len() as u64).bytes(mode));
        assert_eq!(data_of(&heard, 1024, data.len()).unwrap(), data);
        world.end_all();
    }
}

/// Case R12: a read may be anywhere; what changes the disk is whole blocks, or nothing.
#[test]
fn r12_reads_are_served_at_any_byte_and_writes_that_are_not_whole_blocks_touch_nothing() {
    for (mode, block) in MODES.into_iter().flat_map(|mode| [512, 4096].map(|block| (mode, block))) {
        let mut world = World::new();
        world.catalogue.publish(disk(Access::Writable, block, SIZE as u64));
        let id = attach(&mut world, mode);
        let before = world.disk.clone();
        for (offset, len) in [(0, 1), (511, 2), (4095, 4098), (1, 600 * KI), (SIZE - 1, 1)] {
            let heard = world.ask(id, &read(1, offset as u64, len as u64).bytes(mode));
            assert_eq!(data_of(&heard, offset as u64, len).unwrap(), before[offset..offset + len]);
        }
        let block = block as usize;
        for (offset, len) in [(1, block), (0, block - 1), (block / 2, block / 2), (block, 1)] {
            let heard = world.ask(id, &write(mode, 2, offset as u64, &vec![7; len]));
            assert_eq!(error_of(&heard), errno::EINVAL);
            let zero = Say::new(WRITE_ZEROES, 3, offset as u64, len as u64);
            assert_eq!(error_of(&world.ask(id, &zero.bytes(mode))), errno::EINVAL);
        }
        assert!(world.disk == before);
        world.end_all();
    }
}

/// Cases R13 and X37: nothing beyond the end, and nothing around the corner of 64 bits.
#[test]
fn r13_x37_the_last_byte_is_there_and_the_next_is_not() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let size = SIZE as u64;
        let submitted = world.conn(id).submitted;
        let ask = |world: &mut World, command, offset, len| {
            error_of(&world.ask(id, &Say::new(command, 1, offset, len).bytes(mode)))
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
            let heard = world.ask(id, &write(mode, 1, offset, &[0; 1024]));
            assert_eq!(error_of(&heard), errno::ENOSPC);
        }
        for command in [request::READ, TRIM, CACHE, WRITE_ZEROES] {
            assert_eq!(ask(&mut world, command, size, 0), 0, "nothing at the end is nothing");
            assert_ne!(ask(&mut world, command, size + 512, 0), 0);
        }
        assert_eq!(world.conn(id).submitted, submitted, "the disk was not asked");
        assert_eq!(ask(&mut world, WRITE_ZEROES, size - 512, 512), 0);
        world.end_all();
    }
}

/// Case X17.
#[test]
fn x17_a_read_only_export_is_never_written_to() {
    for mode in MODES {
        let mut world = World::new();
        world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
        let id = attach(&mut world, mode);
        assert_eq!(error_of(&world.ask(id, &write(mode, 1, 0, &[1; 512]))), errno::EPERM);
        for command in [TRIM, WRITE_ZEROES] {
            let heard = world.ask(id, &Say::new(command, 1, 0, 512).bytes(mode));
            assert_eq!(error_of(&heard), errno::EPERM);
        }
        assert_eq!(world.conn(id).submitted, 0);
        let flush = Say::new(request::FLUSH, 1, 0, 0);
        assert_eq!(error_of(&world.ask(id, &flush.bytes(mode))), 0);
        world.end_all();
    }
}

/// The command of a request becomes the request of the disk that it names.
#[test]
fn every_command_asks_the_disk_for_what_it_says() {
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
            world.send(id, &Say::new(command, 1, 0, len).flags(flags).bytes(mode));
            assert_eq!(world.conn(id).jobs[0].op(), op);
            assert_eq!(world.conn(id).jobs[0].len(), len);
            assert!(world.heard(id).is_empty(), "not answered before it is done");
            world.finish(id, 0, Ok(()));
            assert!(!world.heard(id).is_empty());
        }
        world.end_all();
    }
}

#[test]
fn a_durable_write_and_a_durable_trim_are_on_stable_storage_when_they_are_answered() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        let payload = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
        let header = Say::new(request::WRITE, 1, 0, 512).flags(FUA | payload).bytes(mode);
        world.send(id, &[header, vec![1; 512]].concat());
        assert_eq!(world.conn(id).jobs[0].op(), Op::Write { durable: true });
        world.finish(id, 0, Ok(()));
        world.heard(id);
        world.send(id, &Say::new(TRIM, 2, 0, 512).flags(FUA).bytes(mode));
        world.finish(id, 0, Ok(()));
        assert!(world.heard(id).is_empty());
        assert_eq!(world.conn(id).jobs[0].op(), Op::Flush);
        world.finish(id, 0, Err(Fault::Io));
        assert_eq!(error_of(&world.heard(id)), errno::EIO);
        world.end_all();
    }
}

#[test]
fn a_trim_is_shrunk_to_whole_blocks_and_one_of_no_whole_block_is_done() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.conn(id).hold = true;
    world.send(id, &Say::new(TRIM, 1, 100, 2000).bytes(Mode::Simple));
    let job = &world.conn(id).jobs[0];
    assert_eq!((job.offset(), job.len()), (512, 1536));
    world.finish(id, 0, Ok(()));
    world.heard(id);
    assert_eq!(error_of(&world.ask(id, &Say::new(TRIM, 1, 100, 600).bytes(Mode::Simple))), 0);
    world.end_all();
}

#[test]
fn a_disk_that_cannot_trim_is_not_asked_to_and_one_that_finds_it_cannot_is_no_error() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.faults.push_back(Err(Fault::Unsupported));
    assert_eq!(error_of(&world.ask(id, &Say::new(TRIM, 1, 0, 512).bytes(Mode::Simple))), 0);
    world.faults.push_back(Err(Fault::Unsupported));
    let fast = Say::new(WRITE_ZEROES, 1, 0, 512).flags(FAST_ZERO).bytes(Mode::Simple);
    assert_eq!(error_of(&world.ask(id, &fast)), errno::ENOTSUP);
    let file = std::fs::File::open("/dev/null").unwrap().into();
    let geometry = Geometry::new(512, 512).unwrap();
    let mut plain =
        export::Export::new("sda", crate::world::DISK, <_>::default(), geometry, 4096, file);
    plain.access = Access::Writable;
    world.catalogue.publish(plain.into());
    let id = attach(&mut world, Mode::Simple);
    let heard = world.ask(id, &Say::new(TRIM, 1, 0, 512).bytes(Mode::Simple));
    assert_eq!(error_of(&heard), errno::EINVAL);
}

/// Flags that no command of that kind has, or that were not agreed on: another server was ended by one of them.
#[test]
fn flags_that_were_not_agreed_on_are_invalid_and_end_nothing() {
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
            let heard = world.ask(id, &Say::new(command, 1, 0, 512).flags(flags).bytes(mode));
            assert_eq!(error_of(&heard), errno::EINVAL, "{command} {flags:x} {mode:?}");
        }
        let heard = world.ask(id, &read(1, 0, 512).flags(DF).bytes(mode));
        let expected = if mode == Mode::Simple { Err(errno::EINVAL) } else { Ok(vec![0; 512]) };
        assert_eq!(data_of(&heard, 0, 512), expected);
        let flush = Say::new(request::FLUSH, 1, 512, 0).bytes(mode);
        assert_eq!(error_of(&world.ask(id, &flush)), errno::EINVAL);
        world.end_all();
    }
}

#[test]
fn a_payload_that_no_command_wants_is_dropped_and_the_command_invalid() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Extended);
    let header = read(1, 0, 700).flags(request::PAYLOAD_LEN).bytes(Mode::Extended);
    world.send(id, &header);
    assert!(world.heard(id).is_empty(), "answered when it has come");
    assert_eq!(error_of(&world.ask(id, &[9; 700])), errno::EINVAL);
    let heard = world.ask(id, &read(2, 512, 2).bytes(Mode::Extended));
    assert_eq!(data_of(&heard, 512, 2).unwrap(), [1, 1]);
    // One that forgets to say that a payload follows is understood.
    let write = Say::new(request::WRITE, 3, 0, 512).bytes(Mode::Extended);
    assert_eq!(error_of(&world.ask(id, &[write, vec![5; 512]].concat())), 0);
    world.end_all();
}

/// Case X26.
#[test]
fn x26_requests_up_to_the_longest_payload_and_one_byte_more() {
    let max = 32 << 20;
    for mode in MODES {
        let mut world = World::small(40 << 20, 512);
        let id = attach(&mut world, mode);
        for (len, ok) in [(max - 1, true), (max, true), (max + 1, false)] {
            let heard = world.ask(id, &read(1, 0, len).bytes(mode));
            assert_eq!(data_of(&heard, 0, usize::try_from(len).unwrap()).is_ok(), ok, "{len}");
        }
        for (len, error) in [(max, 0), (max + 512, errno::EINVAL), (max - 1, errno::EINVAL)] {
            let data = vec![1; usize::try_from(len).unwrap()];
            assert_eq!(error_of(&world.ask(id, &write(mode, 2, 0, &data))), error, "{len}");
        }
        if mode != Mode::Simple {
            let heard = world.ask(id, &read(1, 0, 64 << 10).flags(DF).bytes(mode));
            assert_eq!(replies(&heard, |_| 0).len(), 1);
            let heard = world.ask(id, &read(1, 0, 1 << 20).flags(DF).bytes(mode));
            assert_eq!(replies(&heard, |_| 0).len(), 1);
            let heard = world.ask(id, &read(1, 0, 1 + (1 << 20)).flags(DF).bytes(mode));
            assert_eq!(error_of(&heard), errno::EOVERFLOW);
        }
        let flags = if mode == Mode::Extended { request::PAYLOAD_LEN } else { 0 };
        world.send(id, &Say::new(request::WRITE, 1, 0, 0xffff_fe00).flags(flags).bytes(mode));
        assert_eq!(world.conn(id).closed, Some(export::Reason::Violation));
    }
}

#[test]
fn a_very_long_range_of_zeros_goes_to_the_disk_in_strides() {
    let mut world = World::small(0, 512);
    world.catalogue.publish(disk(Access::Writable, 512, 10 << 30));
    let id = attach(&mut world, Mode::Extended);
    world.conn(id).hold = true;
    world.send(id, &Say::new(WRITE_ZEROES, 1, 512, 5 << 30).bytes(Mode::Extended));
    let mut total = 0;
    while let Some(job) = world.conn(id).jobs.pop_front() {
        assert_eq!(job.offset(), 512 + total);
        total += job.len();
        let (ticket, outcome) = job.finish(Ok(()));
        let now = world.now;
        export::Session::complete(&mut world.conn(id).session, now, ticket, outcome);
        world.run();
    }
    assert_eq!(total, 5 << 30);
    assert_eq!(error_of(&world.heard(id)), 0);
}

/// Each fault of the disk is an error of that request, is told to the owner, and ends nothing else.
#[test]
fn a_fault_fails_the_request_that_met_it() {
    for (mode, fault) in MODES.into_iter().flat_map(|mode| Fault::ALL.map(|fault| (mode, fault))) {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let fail = |world: &mut World, bytes: &[u8]| {
            world.faults.push_back(Err(fault));
            let error = error_of(&world.ask(id, bytes));
            assert_ne!(error, 0, "{fault}");
            error
        };
        fail(&mut world, &read(1, 512, 1024).bytes(mode));
        fail(&mut world, &write(mode, 2, 0, &[1; 1024]));
        fail(&mut world, &Say::new(WRITE_ZEROES, 3, 0, 512).bytes(mode));
        let told = world.conn(id).told();
        let quiet = matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy);
        let expected =
            ["attached ", "fault read 512 1024", "fault write 0 1024", "fault zero 0 512"];
        assert_eq!(told, if quiet { &expected[..1] } else { &expected[..] });
        let heard = world.ask(id, &read(4, 0, 512).bytes(mode));
        assert_eq!(data_of(&heard, 0, 512).unwrap(), [0; 512]);
        world.end_all();
    }
}

/// Case R41's ground: with structured replies a failed part has its place, and the other parts come.
#[test]
fn a_failed_part_of_a_long_read_has_its_place() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.faults.extend([Ok(()), Err(Fault::Io), Ok(())]);
        let heard = world.ask(id, &read(1, 100, 1 << 20).bytes(mode));
        let parts = replies(&heard, |_| 0);
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
fn r17_after_a_failed_flush_no_later_one_succeeds() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let flush = Say::new(request::FLUSH, 1, 0, 0).bytes(Mode::Simple);
    assert_eq!(error_of(&world.ask(id, &flush)), 0);
    world.faults.push_back(Err(Fault::Io));
    assert_eq!(error_of(&world.ask(id, &flush)), errno::EIO);
    assert_eq!(error_of(&world.ask(id, &flush)), errno::EIO);
    let other = attach(&mut world, Mode::Simple);
    assert_eq!(error_of(&world.ask(other, &flush)), errno::EIO, "on every connection");
}

/// Case R14: a flush on one connection is asked of the one descriptor that all share.
#[test]
fn r10_flush_covers_writes_of_other_connections() {
    let mut world = World::new();
    let (a, b) = (attach(&mut world, Mode::Simple), attach(&mut world, Mode::Simple));
    assert_eq!(error_of(&world.ask(a, &write(Mode::Simple, 1, 0, &[9; 512]))), 0);
    world.conn(b).hold = true;
    world.send(b, &Say::new(request::FLUSH, 1, 0, 0).bytes(Mode::Simple));
    assert_eq!(world.conn(b).jobs[0].op(), Op::Flush);
    let export = world.export();
    assert!(std::sync::Arc::ptr_eq(world.conn(b).jobs[0].export(), &export));
    world.finish_all(b);
    world.end_all();
}

#[test]
fn while_another_request_has_the_disk_for_itself_a_write_waits() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    let right = export::Exclusive::claim(&world.export()).unwrap();
    world.send(id, &write(Mode::Simple, 1, 0, &[9; 600 << 10]));
    assert!(world.heard(id).is_empty());
    drop(right);
    world.notify(export::Notice::StateChanged);
    assert_eq!(error_of(&world.heard(id)), 0);
    assert!(world.disk[..600 << 10].iter().all(|&byte| byte == 9));
    world.end_all();
}
