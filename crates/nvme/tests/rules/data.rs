//! Classes 5 and 6: H2CData and H2CTermReq (NVMe/TCP 1.0 §3.3.2.1, §3.6.2.4, §3.6.2.8).

use export::Reason;
use nvme::command::AdminCommand;
use nvme::status::Status;
use nvme::tcp::pdu::kind;

use crate::raw_host::{PLAIN, capsule, data_fields, data_of, frame, h2c, read, write};
use crate::world::{Id, Reply, World};

/// An I/O queue with a write of eight blocks, command 5, that waits for its data.
struct PendingWrite {
    world: World,
    other_host: (Id, Id),
    admin: Id,
    io: Id,
    ttag: u16,
    before: Vec<u8>,
}

fn writing() -> PendingWrite {
    let mut world = World::new();
    let other_host = world.other_host();
    let (admin, io) = world.attached();
    let before = world.disk.clone();
    world.send(io, &capsule(PLAIN, &write(16, 8).with_cid(5), &[]));
    let [Reply::R2t { cid: 5, ttag, offset: 0, len: 4096 }] = world.replies(io)[..] else {
        panic!()
    };
    PendingWrite { world, other_host, admin, io, ttag, before }
}

/// Sends `pdu` for that write. Checks that the connection ends and nothing is written.
fn assert_terminates(pdu: impl Fn(u16) -> Vec<u8>, fes: u16, fei: u32) {
    let PendingWrite { mut world, other_host, io, ttag, before, .. } = writing();
    world.send(io, &pdu(ttag));
    world.terminated(io, fes, fei);
    assert!(world.disk == before);
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn solicited_data_is_written() {
    let PendingWrite { mut world, io, ttag, .. } = writing();
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[1; 4000], false));
    assert!(world.replies(io).is_empty());
    world.send(io, &h2c(PLAIN, 5, ttag, 4000, &[2; 96], true));
    assert!(matches!(world.replies(io)[..], [Reply::Done(cqe)] if cqe.outcome().is_success()));
    assert_eq!(world.disk[16 * 512..][..4000], [1; 4000]);
    assert_eq!(world.disk[16 * 512 + 4000..][..96], [2; 96]);
    world.end_all();
}

#[test]
fn x28_unsolicited_data_ends_the_connection() {
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag + 1, 0, &[1; 4096], true), 2, 0);
    assert_terminates(|_| h2c(PLAIN, 5, 127, 0, &[1; 4096], true), 2, 0);
    assert_terminates(|_| h2c(PLAIN, 5, 128, 0, &[1; 4096], true), 1, 10);
    assert_terminates(|_| h2c(PLAIN, 5, 0xffff, 0, &[1; 4096], true), 1, 10);
    assert_terminates(|ttag| h2c(PLAIN, 6, ttag, 0, &[1; 4096], true), 1, 8);
}

#[test]
fn x28_data_before_connect_ends_the_connection() {
    for ttag in [0, 1, 0xffff] {
        let mut world = World::new();
        let id = world.initialized(PLAIN);
        world.send(id, &h2c(PLAIN, 0, ttag, 0, &[1; 64], true));
        let fes = if ttag == 0 { (2, 0) } else { (1, 10) };
        world.terminated(id, fes.0, fes.1);
        world.end_all();
    }
}

#[test]
fn x28_data_must_be_in_order() {
    for offset in [1, 4, 4096, u32::MAX, 1 << 31] {
        assert_terminates(|ttag| h2c(PLAIN, 5, ttag, offset, &[1; 64], false), 4, 12);
    }
    assert_terminates(
        |ttag| {
            let first = h2c(PLAIN, 5, ttag, 0, &[1; 2048], false);
            [first, h2c(PLAIN, 5, ttag, 1024, &[1; 2048], true)].concat()
        },
        4,
        12,
    );
}

#[test]
fn x28_data_beyond_the_r2t_ends_the_connection() {
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag, 0, &[1; 4100], true), 4, 16);
    assert_terminates(
        |ttag| {
            let first = h2c(PLAIN, 5, ttag, 0, &[1; 4000], false);
            [first, h2c(PLAIN, 5, ttag, 4000, &[1; 100], true)].concat()
        },
        4,
        16,
    );
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag, 0, &vec![1; (1 << 20) + 4], true), 5, 16);
}

#[test]
fn x28_offset_and_length_that_wrap_end_the_connection() {
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag, u32::MAX - 63, &[1; 128], true), 4, 12);
    let huge = |ttag| {
        let mut pdu =
            frame(PLAIN, kind::H2C_DATA, 4, &data_fields(5, ttag, 0, u32::MAX - 24), &[1; 64]);
        pdu[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        pdu
    };
    assert_terminates(huge, 5, 16);
}

#[test]
fn data_length_must_match_plen_and_not_be_zero() {
    for datal in [1, 63, 65, 4096, u32::MAX] {
        assert_terminates(
            |ttag| frame(PLAIN, kind::H2C_DATA, 4, &data_fields(5, ttag, 0, datal), &[1; 64]),
            1,
            16,
        );
    }
    assert_terminates(
        |ttag| frame(PLAIN, kind::H2C_DATA, 4, &data_fields(5, ttag, 0, 0), &[1; 64]),
        1,
        16,
    );
    assert_terminates(
        |ttag| frame(PLAIN, kind::H2C_DATA, 4, &data_fields(5, ttag, 0, 0), &[]),
        1,
        16,
    );
}

#[test]
fn last_pdu_flag_is_required_on_the_last_only() {
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag, 0, &[1; 4096], false), 1, 1);
    assert_terminates(|ttag| h2c(PLAIN, 5, ttag, 0, &[1; 2048], true), 1, 1);
}

#[test]
fn x28_data_after_the_last_ends_the_connection() {
    let PendingWrite { mut world, other_host, io, ttag, .. } = writing();
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[1; 4096], true));
    assert!(matches!(world.replies(io)[..], [Reply::Done(_)]));
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[2; 4096], true));
    world.terminated(io, 2, 0);
    assert_eq!(world.disk[16 * 512..24 * 512], [1; 4096]);
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn x28_data_during_the_write_ends_the_connection() {
    let PendingWrite { mut world, io, ttag, .. } = writing();
    world.conn(io).hold = true;
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[1; 4096], true));
    assert_eq!(world.jobs(io).len(), 1);
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[2; 4096], true));
    world.terminated(io, 2, 0);
    world.finish(io, 0, Ok(()));
    assert_eq!(world.disk[16 * 512..24 * 512], [1; 4096], "memory in use is not written to");
    world.end_all();
}

#[test]
fn x28_data_for_a_read_ends_the_connection() {
    let mut world = World::new();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &read(0, 8).with_cid(5), &[]));
    for ttag in 0..1 {
        world.send(io, &h2c(PLAIN, 5, ttag, 0, &[1; 4096], true));
    }
    world.terminated(io, 2, 0);
    world.end_all();
}

#[test]
fn data_of_an_aborted_command_is_discarded() {
    let PendingWrite { mut world, admin, io, ttag, before, .. } = writing();
    world.send(io, &h2c(PLAIN, 5, ttag, 0, &[1; 1024], false));
    let cqe = world.ask(admin, &AdminCommand::Abort { sqid: 1, cid: 5 }.emit(), &[]);
    assert_eq!((cqe.outcome(), cqe.dw0.get()), (Status::SUCCESS, 0));
    assert!(matches!(world.replies(io)[..],
        [Reply::Done(cqe)] if cqe.outcome() == Status::ABORT_REQUESTED));
    world.send(io, &h2c(PLAIN, 5, ttag, 1024, &[1; 1024], false));
    // The identifier is free again while data of its first command is outstanding.
    assert_eq!(world.fetch(io, &read(0, 1).with_cid(5)), before[..512]);
    world.send(io, &h2c(PLAIN, 5, ttag, 2048, &[1; 2048], true));
    assert_eq!(world.conn(io).closed, None);
    assert!(world.replies(io).is_empty() && world.disk == before);
    world.end_all();
}

#[test]
fn abort_in_the_middle_of_a_pdu_keeps_framing() {
    for cut in [24, 25, 1000, 24 + 4095] {
        let PendingWrite { mut world, admin, io, ttag, before, .. } = writing();
        let pdu = h2c(PLAIN, 5, ttag, 0, &[1; 4096], true);
        world.send(io, &pdu[..cut]);
        world.ask(admin, &AdminCommand::Abort { sqid: 1, cid: 5 }.emit(), &[]);
        world.replies(io);
        world.send(io, &pdu[cut..]);
        assert!(world.disk == before);
        assert_eq!(world.fetch(io, &read(2, 1).with_cid(5)), before[1024..1536]);
        world.end_all();
    }
}

#[test]
fn data_of_an_aborted_command_is_still_checked() {
    let PendingWrite { mut world, admin, io, ttag, .. } = writing();
    world.ask(admin, &AdminCommand::Abort { sqid: 1, cid: 5 }.emit(), &[]);
    world.replies(io);
    world.send(io, &h2c(PLAIN, 5, ttag, 8, &[1; 64], false));
    world.terminated(io, 4, 12);
    world.end_all();
}

#[test]
fn r2ts_can_be_answered_in_any_order() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let many: Vec<u8> = (0..64)
        .flat_map(|cid: u16| capsule(PLAIN, &write(u64::from(cid) * 8, 8).with_cid(cid), &[]))
        .collect();
    world.send(io, &many);
    let mut asked: Vec<(u16, u16)> = world
        .replies(io)
        .iter()
        .map(|reply| match *reply {
            Reply::R2t { cid, ttag, .. } => (cid, ttag),
            _ => panic!("{reply:02x?}"),
        })
        .collect();
    assert_eq!(asked.len(), 64);
    asked.sort_by_key(|&(cid, _)| cid.wrapping_mul(37) % 64);
    for half in 0..2_u32 {
        for &(cid, ttag) in &asked {
            let data = [u8::try_from(cid).unwrap() + 1; 2048];
            world.send(io, &h2c(PLAIN, cid, ttag, half * 2048, &data, half == 1));
        }
    }
    for cid in 0..64_usize {
        assert!(
            world.disk[cid * 4096..(cid + 1) * 4096].iter().all(|&b| usize::from(b) == cid + 1)
        );
    }
    let replies = world.replies(io);
    assert!((0..64).all(|cid| data_of(&replies, cid).is_empty()));
    world.end_all();
}

#[test]
fn h2c_term_req_closes_without_a_reply() {
    for fes in [0, 1, 2, 3, 4, 5, 6, 7, 0xffff_u16] {
        for len in [0, 1, 24, 127, 128] {
            let PendingWrite { mut world, other_host, io, .. } = writing();
            let fields = [&fes.to_le_bytes()[..], &[0xff; 14]].concat();
            let mut pdu = frame(PLAIN, kind::H2C_TERM_REQ, 0, &fields, &vec![7; len]);
            pdu[3] = 0;
            world.send(io, &pdu);
            assert_eq!(world.conn(io).closed, Some(Reason::Peer));
            assert!(world.replies(io).is_empty());
            world.assert_still_served(other_host);
            world.end_all();
        }
    }
}

#[test]
fn malformed_h2c_term_req_is_not_answered() {
    for (plen, hlen) in [(0_u32, 24), (23, 24), (153, 24), (u32::MAX, 24), (24, 23), (24, 152)] {
        let PendingWrite { mut world, other_host, io, .. } = writing();
        let mut pdu = frame(PLAIN, kind::H2C_TERM_REQ, 0, &[0; 16], &[0; 200]);
        (pdu[2], pdu[3]) = (hlen, 0);
        pdu[4..8].copy_from_slice(&plen.to_le_bytes());
        world.send(io, &pdu);
        assert_eq!(world.conn(io).closed, Some(Reason::Violation));
        assert!(world.replies(io).is_empty());
        world.assert_still_served(other_host);
        world.end_all();
    }
}

#[test]
fn h2c_term_req_is_accepted_before_ic_req() {
    let mut world = World::new();
    let id = world.open();
    world.send(id, &frame(PLAIN, kind::H2C_TERM_REQ, 0, &[0; 16], &[]));
    assert_eq!(world.conn(id).closed, Some(Reason::Peer));
    world.end_all();
}
