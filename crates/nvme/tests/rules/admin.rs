//! Admin commands (NVMe Base 2.0 §5).

use std::time::Duration;

use export::{Access, Reason};
use nvme::command::{AdminCommand, FabricsCommand};
use nvme::status::Status;
use nvme::wire::fabrics::{ConnectData, DISCOVERY_NQN};
use nvme::wire::feature::{aec, fid};
use nvme::wire::identify::cns;
use nvme::wire::log::lid;
use nvme::wire::{Sgl, Sqe};
use zerocopy::IntoBytes;

use crate::raw_host::{
    HOST, PLAIN, capsule, configure, connect_data, connect_sqe, data_of, h2c, read, write,
};
use crate::world::{DISK, Id, Reply, World, disk};

const INVALID: Status = Status::INVALID_FIELD.dnr();

fn log(lid: u8, offset: u64, len: u32) -> Sqe {
    AdminCommand::log_page(lid, offset, len.into()).emit().with_data(Sgl::transport(len))
}

/// Returns the Admin queue of a ready discovery controller.
fn discovery(world: &mut World) -> Id {
    let data = ConnectData::emit([9; 16], 0xffff, DISCOVERY_NQN, HOST).unwrap();
    let id = world.initialized(PLAIN);
    assert!(world.ask(id, &connect_sqe(0, 32), data.as_bytes()).outcome().is_success());
    assert!(world.status(id, &configure(1)).is_success());
    id
}

#[test]
fn x33_log_pages_end_in_zeros_at_any_offset_and_length() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    for (page, len) in
        [(0, 1024), (1, 4096), (2, 512), (3, 512), (4, 4096), (5, 4096), (0x12, 1024)]
    {
        let whole = world.fetch(admin, &log(page, 0, len));
        for (offset, part) in [(0, 4), (4, 8), (len / 2, len / 2), (len - 4, 4)] {
            let got = world.fetch(admin, &log(page, offset.into(), part));
            let at = usize::try_from(offset).unwrap();
            assert_eq!(got, whole[at..at + usize::try_from(part).unwrap()], "page {page:#x}");
        }
        let beyond = world.fetch(admin, &log(page, (len - 4).into(), 64));
        assert!(beyond[4..].iter().all(|&byte| byte == 0));
    }
    world.end_all();
}

#[test]
fn x33_log_page_offsets_beyond_the_end_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let discovery = discovery(&mut world);
    let offsets = [1 << 20, 1 << 32, (1 << 32) + 4, 1 << 63, u64::MAX - 3];
    for offset in offsets {
        for page in [0, 1, 2, 3, 4, 5, 0x12] {
            assert_eq!(world.status(admin, &log(page, offset, 64)), INVALID, "{offset:#x}");
        }
        assert_eq!(world.status(discovery, &log(lid::DISCOVERY, offset, 64)), INVALID);
    }
    for odd in [1, 2, 3, 5, u64::MAX] {
        assert_eq!(world.status(admin, &log(2, odd, 64)), INVALID);
    }
    world.end_all();
}

#[test]
fn x33_log_page_lengths_beyond_mdts_or_the_sgl_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let largest = world.fetch(admin, &log(2, 0, 1 << 20));
    assert_eq!(largest.len(), 1 << 20);
    assert_eq!(world.status(admin, &log(2, 0, (1 << 20) + 4)), INVALID);
    let all = AdminCommand::log_page(2, 0, 1 << 34).emit().with_data(Sgl::transport(u32::MAX));
    assert_eq!(world.status(admin, &all), INVALID);
    let short = log(2, 0, 512).with_data(Sgl::transport(508));
    assert_eq!(world.status(admin, &short), Status::DATA_SGL_LENGTH_INVALID.dnr());
    let in_capsule = log(2, 0, 512).with_data(Sgl::in_capsule(0, 512));
    assert_eq!(world.status(admin, &in_capsule), Status::SGL_TYPE_INVALID.dnr());
    world.end_all();
}

#[test]
fn unsupported_log_pages_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let known = [0, 1, 2, 3, 4, 5, 0x0c, 0x12, 0x80];
    for page in (0..=255).filter(|page| !known.contains(page)) {
        assert_eq!(world.status(admin, &log(page, 0, 64)), Status::INVALID_LOG_PAGE.dnr());
    }
    let discovery = discovery(&mut world);
    for page in (0..=255).filter(|page| ![0, 1, 0x12, 0x70].contains(page)) {
        assert_eq!(world.status(discovery, &log(page, 0, 64)), Status::INVALID_LOG_PAGE.dnr());
    }
    let other = Sqe { nsid: 2.into(), ..log(2, 0, 64) };
    assert_eq!(world.status(admin, &other), INVALID);
    let index = Sqe { cdw14: (1 << 23).into(), ..log(2, 0, 64) };
    assert_eq!(world.status(admin, &index), INVALID);
    world.end_all();
}

#[test]
fn discovery_log_is_a_snapshot_while_it_is_read() {
    let mut world = World::new();
    let id = discovery(&mut world);
    let whole = world.fetch(id, &log(lid::DISCOVERY, 0, 3072));
    world.fetch(id, &log(lid::DISCOVERY, 0, 1024));
    world.catalogue.withdraw(&DISK.into());
    world.notify(export::Notice::StateChanged);
    for at in [1024, 2048] {
        let part = world.fetch(id, &log(lid::DISCOVERY, at, 1024));
        assert_eq!(part, whole[usize::try_from(at).unwrap()..][..1024]);
    }
    let after = world.fetch(id, &log(lid::DISCOVERY, 0, 16));
    assert_ne!(after[..8], whole[..8], "the generation counter tells");
    assert_eq!(world.status(id, &log(lid::DISCOVERY, 2052, 4)), INVALID, "the log is shorter now");
    world.end_all();
}

#[test]
fn identify_refuses_unsupported_cns_values() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let known =
        [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x10, 0x11, 0x12, 0x13, 0x16, 0x1c];
    for page in (0..=255).filter(|page| !known.contains(page)) {
        assert_eq!(world.status(admin, &AdminCommand::identify(page, 1).emit()), INVALID);
    }
    for page in [cns::NAMESPACE_SPECIFIC, cns::CONTROLLER_SPECIFIC, cns::ACTIVE_NAMESPACES_SPECIFIC]
    {
        for csi in [1, 2, 0xff] {
            let command = AdminCommand::Identify { cns: page, cntid: 0, nsid: 1, csi };
            assert_eq!(world.status(admin, &command.emit()), INVALID);
        }
    }
    let short = AdminCommand::identify(1, 0).emit().with_data(Sgl::transport(4092));
    assert_eq!(world.status(admin, &short), Status::DATA_SGL_LENGTH_INVALID.dnr());
    world.end_all();
}

#[test]
fn identify_refuses_invalid_namespaces() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let none = Status::INVALID_NAMESPACE.dnr();
    for page in [0x00, 0x03, 0x05, 0x08, 0x12] {
        assert_eq!(world.fetch(admin, &AdminCommand::identify(page, 1).emit()).len(), 4096);
        for nsid in [0, 2, 0xffff_fffe] {
            assert_eq!(world.status(admin, &AdminCommand::identify(page, nsid).emit()), none);
        }
    }
    // FFFFFFFFh with CNS 00h requires namespace management.
    for page in [0x00, 0x03, 0x05, 0x08, 0x11, 0x12] {
        assert_eq!(world.status(admin, &AdminCommand::identify(page, u32::MAX).emit()), none);
    }
    for (nsid, first) in [(0, 1), (1, 0), (0xffff_fffd, 0)] {
        let list = world.fetch(admin, &AdminCommand::identify(2, nsid).emit());
        assert_eq!(list[0], first);
    }
    for nsid in [0xffff_fffe, 0xffff_ffff] {
        assert_eq!(world.status(admin, &AdminCommand::identify(2, nsid).emit()), none);
    }
    world.end_all();
}

#[test]
fn unsupported_and_unsaveable_features_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let known = [1, 2, 4, 5, 6, 7, 0x0a, 0x0b, 0x0e, 0x0f, 0x16, 0x7e, 0x81, 0x82, 0x83, 0x84];
    for fid in (0..=255).filter(|fid| !known.contains(fid)) {
        let get = AdminCommand::get_features(fid).emit().with_data(Sgl::transport(4096));
        assert_eq!(world.status(admin, &get), INVALID, "{fid:#x}");
        let set = AdminCommand::set_features(fid, 0).emit();
        match world.command(admin, &set, &[])[..] {
            [Reply::Done(cqe)] => assert_eq!(cqe.outcome(), INVALID, "{fid:#x}"),
            [Reply::R2t { cid, ttag, len, .. }] => {
                world.send(admin, &h2c(PLAIN, cid, ttag, 0, &vec![0; len as usize], true));
                let [Reply::Done(cqe)] = world.replies(admin)[..] else { panic!() };
                assert_eq!(cqe.outcome(), INVALID, "{fid:#x}");
            }
            ref other => panic!("{other:02x?}"),
        }
    }
    let save = Sqe { cdw10: (1 << 31 | 4).into(), ..AdminCommand::set_features(4, 0).emit() };
    assert_eq!(world.status(admin, &save), Status::FEATURE_NOT_SAVEABLE.dnr());
    world.end_all();
}

#[test]
fn invalid_feature_values_are_refused() {
    let mut world = World::new();
    let (admin, cntlid) = world.admin();
    let set = |world: &mut World, fid, value| {
        world.status(admin, &AdminCommand::set_features(fid, value).emit())
    };
    for queues in [0xffff, 0xffff_0000, u32::MAX] {
        assert_eq!(set(&mut world, fid::NUMBER_OF_QUEUES, queues), INVALID);
    }
    assert_eq!(set(&mut world, fid::POWER_MANAGEMENT, 1), INVALID);
    world.io(cntlid, 1);
    let late = set(&mut world, fid::NUMBER_OF_QUEUES, 0x0001_0001);
    assert_eq!(late, Status::COMMAND_SEQUENCE_ERROR.dnr());
    for select in 4..8_u32 {
        let sqe = Sqe { cdw10: (select << 8 | 4).into(), ..AdminCommand::get_features(4).emit() };
        assert_eq!(world.status(admin, &sqe), INVALID);
    }
    let short =
        AdminCommand::get_features(fid::HOST_IDENTIFIER).emit().with_data(Sgl::transport(8));
    assert_eq!(world.status(admin, &short), INVALID, "over fabrics it has 16 bytes");
    world.end_all();
}

#[test]
fn host_cannot_clear_write_protection() {
    let mut world = World::new();
    world.catalogue.publish(disk(Access::ReadOnly, 512));
    let (admin, _) = world.admin();
    for (nsid, value, status) in [
        (1, 0, Status::FEATURE_NOT_CHANGEABLE.dnr()),
        (1, 2, Status::FEATURE_NOT_CHANGEABLE.dnr()),
        (1, 1, Status::SUCCESS),
        (0, 0, Status::INVALID_NAMESPACE.dnr()),
        (u32::MAX, 0, Status::INVALID_NAMESPACE.dnr()),
    ] {
        let set = AdminCommand::set_features(fid::NAMESPACE_WRITE_PROTECTION, value).emit();
        assert_eq!(world.status(admin, &Sqe { nsid: nsid.into(), ..set }), status, "{nsid:#x}");
    }
    world.end_all();
}

#[test]
fn host_metadata_with_wrong_lengths_is_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let set = AdminCommand::set_features(fid::CONTROLLER_METADATA, 0).emit();
    let set = set.with_data(Sgl::in_capsule(0, 4096));
    for (start, status) in [
        (&[1, 0, 1, 0, 0xff, 0xff][..], INVALID),
        (&[255, 0], Status::SUCCESS),
        (&[2, 0, 1, 0, 0xf8, 0x0f], INVALID),
        (&[1, 0, 1, 0, 4, 0, b'n', b'a', b'm', b'e'], Status::SUCCESS),
    ] {
        let mut data = vec![0; 4096];
        data[..start.len()].copy_from_slice(start);
        assert_eq!(world.ask(admin, &set, &data).outcome(), status, "{start:x?}");
    }
    world.end_all();
}

#[test]
fn event_requests_beyond_aerl_are_refused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let request = AdminCommand::AsyncEventRequest.emit();
    for cid in 10..14 {
        assert!(world.command(admin, &request.with_cid(cid), &[]).is_empty());
    }
    for cid in 14..100 {
        let cqe = world.ask(admin, &request.with_cid(cid), &[]);
        assert_eq!(cqe.outcome(), Status::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
    }
    world.end_all();
}

/// SPDK's host forgets its requests when it detaches, and reuses their identifiers for the
/// shutdown.
#[test]
fn event_request_identifier_can_be_reused() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    assert!(
        world.command(admin, &AdminCommand::AsyncEventRequest.emit().with_cid(10), &[]).is_empty()
    );
    let cqe = world.ask(admin, &AdminCommand::KeepAlive.emit().with_cid(10), &[]);
    assert!(cqe.outcome().is_success());
    assert!(
        world.command(admin, &AdminCommand::AsyncEventRequest.emit().with_cid(10), &[]).is_empty()
    );
    world.end_all();
}

#[test]
fn event_is_masked_until_its_log_page_is_read() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let wanted =
        AdminCommand::set_features(fid::ASYNC_EVENT_CONFIGURATION, aec::NAMESPACE_ATTRIBUTE);
    assert!(world.status(admin, &wanted.emit()).is_success());
    let request = AdminCommand::AsyncEventRequest.emit();
    for cid in 10..13 {
        world.command(admin, &request.with_cid(cid), &[]);
    }
    let export = world.catalogue.find(&DISK.into()).unwrap();
    for bytes in [1 << 20, 2 << 20, 3 << 20] {
        export.resize(bytes);
        world.notify(export::Notice::StateChanged);
    }
    assert_eq!(world.replies(admin).len(), 1);
    let replies = world.command(admin, &log(lid::CHANGED_NAMESPACE_LIST, 0, 4096).with_cid(1), &[]);
    assert_eq!(data_of(&replies, 1)[0], 1);
    world.end_all();
}

#[test]
fn r26_keep_alive_ends_a_silent_association() {
    let mut world = World::new();
    let other_host = world.other_host();
    let data = connect_data(0xffff);
    let kato = 5000;
    let connect = FabricsCommand::Connect { recfmt: 0, qid: 0, sqsize: 32, cattr: 0, kato };
    let admin = world.initialized(PLAIN);
    let cqe = world.ask(admin, &connect.emit(), data.as_bytes());
    world.status(admin, &configure(crate::raw_host::ENABLE));
    let queues = AdminCommand::set_features(fid::NUMBER_OF_QUEUES, 0).emit();
    assert!(world.status(admin, &queues).is_success());
    let io = world.io(u16::try_from(cqe.dw0.get() & 0xffff).unwrap(), 1);
    // Traffic on any queue counts.
    for _ in 0..5 {
        world.advance(Duration::from_millis(4000));
        assert_eq!(world.fetch(io, &read(0, 1)).len(), 512);
    }
    world.advance(Duration::from_millis(7000));
    assert_eq!(world.conn(admin).closed, Some(Reason::Timeout));
    assert_eq!(world.conn(io).closed, Some(Reason::Ended));
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn keep_alive_of_zero_or_of_weeks_is_accepted() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    for millis in [0, 1, 1000, u32::MAX] {
        let set = AdminCommand::set_features(fid::KEEP_ALIVE_TIMER, millis).emit();
        assert_eq!(world.status(admin, &set), Status::SUCCESS);
        let get = AdminCommand::get_features(fid::KEEP_ALIVE_TIMER).emit();
        assert_eq!(world.ask(admin, &get, &[]).dw0.get(), millis);
    }
    world.advance(Duration::from_secs(40 * 24 * 3600));
    assert_eq!(world.conn(admin).closed, None, "49 days");
    world.advance(Duration::from_secs(20 * 24 * 3600));
    assert_eq!(world.conn(admin).closed, Some(Reason::Timeout));
    world.end_all();
}

fn abort(sqid: u16, cid: u16) -> Sqe {
    AdminCommand::Abort { sqid, cid }.emit().with_cid(0x77)
}

#[test]
fn abort_of_an_unknown_command_reports_not_aborted() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    for (sqid, cid) in [(0, 9), (0, 0x77), (1, 9), (2, 0), (9, 0), (0xffff, 0xffff)] {
        let cqe = world.ask(admin, &abort(sqid, cid), &[]);
        assert_eq!((cqe.outcome(), cqe.dw0.get()), (Status::SUCCESS, 1), "{sqid} {cid}");
    }
    assert_eq!(world.fetch(io, &read(0, 1)).len(), 512);
    world.end_all();
}

#[test]
fn event_request_can_be_aborted() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    world.command(admin, &AdminCommand::AsyncEventRequest.emit().with_cid(9), &[]);
    let replies = world.command(admin, &abort(0, 9), &[]);
    let [Reply::Done(event), Reply::Done(abort)] = replies[..] else { panic!() };
    assert_eq!((event.cid.get(), event.outcome()), (9, Status::ABORT_REQUESTED));
    assert_eq!((abort.outcome(), abort.dw0.get()), (Status::SUCCESS, 0));
    for cid in 20..24 {
        assert!(
            world
                .command(admin, &AdminCommand::AsyncEventRequest.emit().with_cid(cid), &[])
                .is_empty()
        );
    }
    world.end_all();
}

#[test]
fn submitted_command_is_not_aborted() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &read(4, 1).with_cid(9), &[]));
    let cqe = world.ask(admin, &abort(1, 9), &[]);
    assert_eq!((cqe.outcome(), cqe.dw0.get()), (Status::SUCCESS, 1));
    world.finish(io, 0, Ok(()));
    assert_eq!(data_of(&world.replies(io), 9), world.disk[4 * 512..5 * 512]);
    world.end_all();
}

#[test]
fn admin_command_can_be_aborted_during_its_transfer() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let set = AdminCommand::set_features(fid::TIMESTAMP, 0).emit().with_cid(9);
    let [Reply::R2t { ttag, len, .. }] = world.command(admin, &set, &[])[..] else { panic!() };
    let replies = world.command(admin, &abort(0, 9), &[]);
    assert!(matches!(replies[0], Reply::Done(cqe) if cqe.outcome() == Status::ABORT_REQUESTED));
    world.send(admin, &h2c(PLAIN, 9, ttag, 0, &vec![0; len as usize], true));
    assert_eq!(world.conn(admin).closed, None);
    world.end_all();
}

/// An Abort waits until the other queue is notified.
#[test]
fn pending_abort_cannot_be_aborted() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.send(io, &capsule(PLAIN, &write(0, 8).with_cid(9), &[]));
    let mut both = capsule(PLAIN, &abort(1, 9).with_cid(1), &[]);
    both.extend(capsule(PLAIN, &abort(0, 1).with_cid(2), &[]));
    both.extend(capsule(PLAIN, &AdminCommand::AsyncEventRequest.emit().with_cid(3), &[]));
    world.send(admin, &both);
    let mut answers: Vec<(u16, Status, u32)> = world
        .replies(admin)
        .iter()
        .map(|reply| match reply {
            Reply::Done(cqe) => (cqe.cid.get(), cqe.outcome(), cqe.dw0.get()),
            other => panic!("{other:02x?}"),
        })
        .collect();
    answers.sort_by_key(|answer| answer.0);
    assert_eq!(answers, [(1, Status::SUCCESS, 0), (2, Status::SUCCESS, 1)]);
    world.end_all();
}

#[test]
fn error_log_is_bounded_and_newest_first() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    for cid in 0..200 {
        world.ask(io, &read(crate::world::BLOCKS, 1).with_cid(cid), &[]);
    }
    let page = world.fetch(admin, &log(lid::ERROR_INFORMATION, 0, 64 * 64));
    assert_eq!(page[..8], 200_u64.to_le_bytes());
    assert_eq!((page[8], page[10]), (1, 199), "queue and command");
    assert_eq!(page[63 * 64..63 * 64 + 8], 137_u64.to_le_bytes());
    world.end_all();
}
