//! Classes 2 and 3: the common header, and digests (NVMe/TCP 1.0 §3.3.1.1, §3.6.1).

use nvme::status::Status;
use nvme::tcp::pdu::kind;

use crate::raw_host::{
    BOTH, Digests, PLAIN, capsule, connect_data, data_of, frame, h2c, read, write, write_in_capsule,
};
use crate::world::{Id, Reply, World};

/// Sends `bytes` on an I/O queue. Checks that it ends with that FES and FEI, and that another host
/// is still served.
fn assert_terminates(bytes: &[u8], fes: u16, fei: u32) {
    ends_with(PLAIN, bytes, fes, fei);
}

fn ends_with(digests: Digests, bytes: &[u8], fes: u16, fei: u32) {
    let mut world = World::new();
    let other_host = world.other_host();
    let (admin, cntlid) = world.admin();
    let id = world.io_of(&connect_data(cntlid), 1, digests);
    world.send(id, bytes);
    world.terminated(id, fes, fei);
    assert_eq!(world.conn(admin).closed, None, "the Admin queue lives on");
    world.assert_still_served(other_host);
    world.end_all();
}

fn changed(mut pdu: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    pdu[at] = value;
    pdu
}

fn with_plen(mut pdu: Vec<u8>, plen: u32) -> Vec<u8> {
    pdu[4..8].copy_from_slice(&plen.to_le_bytes());
    pdu
}

#[test]
fn unknown_types_end_the_connection() {
    for pdu_type in (0x08..=0x08).chain(0x0a..=0xff) {
        assert_terminates(&changed(capsule(PLAIN, &read(0, 1), &[]), 0, pdu_type), 1, 0);
    }
}

#[test]
fn x27_hlen_must_match_the_pdu_type() {
    for hlen in [0, 8, 71, 73, 76, 128, 255] {
        assert_terminates(&changed(capsule(PLAIN, &read(0, 1), &[]), 2, hlen), 1, 2);
        assert_terminates(&changed(h2c(PLAIN, 0, 0, 0, &[0; 64], true), 2, hlen), 1, 2);
    }
}

#[test]
fn x27_plen_out_of_range_ends_the_connection() {
    let command = || capsule(PLAIN, &read(0, 1), &[]);
    for plen in [0, 1, 8, 71] {
        assert_terminates(&with_plen(command(), plen), 1, 4);
    }
    assert_terminates(&with_plen(command(), u32::MAX), 1, 4);
    assert_terminates(&with_plen(command(), 72 + 128 + 16384 + 5), 1, 4);
    for plen in [0, 23] {
        assert_terminates(&with_plen(h2c(PLAIN, 0, 0, 0, &[0; 64], true), plen), 1, 4);
    }
}

#[test]
fn plen_includes_the_digests() {
    ends_with(BOTH, &with_plen(capsule(BOTH, &read(0, 1), &[]), 75), 1, 4);
    let mut data = h2c(BOTH, 0, 0, 0, &[0; 4], true);
    data[4..8].copy_from_slice(&32_u32.to_le_bytes());
    let digest = nvme::tcp::crc32c(&data[..24]).to_le_bytes();
    data[24..28].copy_from_slice(&digest);
    ends_with(BOTH, &data, 1, 4);
}

#[test]
fn data_pdu_of_4_gib_is_refused_at_its_header() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let fields = crate::raw_host::data_fields(0, 0, 0, u32::MAX - 24);
    let mut pdu = frame(PLAIN, kind::H2C_DATA, 4, &fields, &[0]);
    pdu = with_plen(pdu, u32::MAX);
    world.send(io, &pdu);
    world.terminated(io, 2, 0);
    world.end_all();
}

#[test]
fn x27_invalid_pdo_ends_the_connection() {
    let pdu = || capsule(PLAIN, &write_in_capsule(0, 1), &[1; 512]);
    for pdo in [0, 1, 24, 71] {
        assert_terminates(&changed(pdu(), 3, pdo), 1, 3);
    }
    assert_terminates(&changed(pdu(), 3, 73), 1, 3);
    assert_terminates(&changed(pdu(), 3, 74), 1, 3);
    let short = || with_plen(pdu(), 100);
    assert_terminates(&changed(short(), 3, 104), 1, 3);
    assert_terminates(&changed(short(), 3, 100), 1, 4);
}

#[test]
fn padding_before_the_data_is_skipped() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let mut pdu = capsule(PLAIN, &write_in_capsule(9, 1), &[0x5a; 512]);
    pdu.splice(72..72, [0xff; 56]);
    pdu[3] = 128;
    world.send(io, &with_plen(pdu, 128 + 512));
    let [Reply::Done(cqe)] = world.replies(io)[..] else { panic!() };
    assert_eq!(cqe.outcome(), Status::SUCCESS);
    assert_eq!(world.disk[9 * 512..10 * 512], [0x5a; 512]);
    world.end_all();
}

#[test]
fn digest_flags_must_match_the_negotiated_digests() {
    assert_terminates(&changed(capsule(PLAIN, &read(0, 1), &[]), 1, 0x01), 1, 1);
    assert_terminates(&changed(capsule(PLAIN, &read(0, 1), &[]), 1, 0x02), 1, 1);
    ends_with(BOTH, &changed(capsule(BOTH, &read(0, 1), &[]), 1, 0x00), 1, 1);
    let only = Digests { header: true, data: false };
    ends_with(BOTH, &capsule(only, &write_in_capsule(0, 1), &[0; 512]), 1, 1);
}

#[test]
fn wrong_header_digest_ends_the_connection() {
    let bad = |at: usize| {
        let mut pdu = capsule(BOTH, &read(0, 1), &[]);
        pdu[at] ^= 0x10;
        pdu
    };
    for at in [8, 40, 72, 75] {
        ends_with(BOTH, &bad(at), 3, 0);
    }
}

#[test]
fn c2h_term_req_contains_the_offending_header() {
    let mut world = World::new();
    let (_, cntlid) = world.admin();
    let io = world.io_of(&connect_data(cntlid), 1, BOTH);
    let mut pdu = capsule(BOTH, &read(0, 1), &[]);
    pdu[50] ^= 1;
    world.send(io, &pdu);
    let [Reply::Terminated { ref header, .. }] = world.replies(io)[..] else { panic!() };
    assert_eq!(*header, pdu[..72]);
    world.end_all();
}

/// A connection with data digests only, and a write of eight blocks that waits for its data.
fn writing() -> (World, Id, Digests, u16) {
    let digests = Digests { header: false, data: true };
    let mut world = World::new();
    let (_, cntlid) = world.admin();
    let io = world.io_of(&connect_data(cntlid), 1, digests);
    world.send(io, &capsule(digests, &write(0, 8).with_cid(5), &[]));
    let [Reply::R2t { cid: 5, ttag, offset: 0, len: 4096 }] = world.replies(io)[..] else {
        panic!()
    };
    (world, io, digests, ttag)
}

#[test]
fn wrong_data_digest_fails_the_command_only() {
    let (mut world, io, digests, ttag) = writing();
    let before = world.disk.clone();
    let mut pdu = h2c(digests, 5, ttag, 0, &[1; 4096], true);
    *pdu.last_mut().unwrap() ^= 1;
    world.send(io, &pdu);
    let [Reply::Done(cqe)] = world.replies(io)[..] else { panic!() };
    assert_eq!(cqe.outcome().code(), Status::TRANSIENT_TRANSPORT_ERROR);
    assert!(!cqe.outcome().is_dnr(), "the host is to try again");
    assert!(world.disk == before, "damaged data is not written");
    world.send(io, &capsule(digests, &read(3, 1).with_cid(6), &[]));
    assert_eq!(data_of(&world.replies(io), 6), world.disk[3 * 512..4 * 512]);
    world.end_all();
}

#[test]
fn x29_wrong_data_digest_in_the_middle_fails_the_command_once() {
    let (mut world, io, digests, ttag) = writing();
    let before = world.disk.clone();
    let mut first = h2c(digests, 5, ttag, 0, &[1; 2048], false);
    *first.last_mut().unwrap() ^= 1;
    world.send(io, &first);
    assert!(world.replies(io).is_empty(), "the rest of the data is still to come");
    world.send(io, &h2c(digests, 5, ttag, 2048, &[1; 2048], true));
    let [Reply::Done(cqe)] = world.replies(io)[..] else { panic!() };
    assert_eq!(cqe.outcome().code(), Status::TRANSIENT_TRANSPORT_ERROR);
    assert!(world.disk == before);
    assert_eq!(world.conn(io).closed, None);
    world.end_all();
}

#[test]
fn wrong_data_digest_leaves_other_commands_alone() {
    let (mut world, io, digests, ttag) = writing();
    world.conn(io).hold = true;
    let reads: Vec<u8> = (10..14)
        .flat_map(|cid| capsule(digests, &read(cid.into(), 1).with_cid(cid), &[]))
        .collect();
    world.send(io, &reads);
    let mut in_capsule = capsule(digests, &write_in_capsule(1, 1).with_cid(6), &[2; 512]);
    *in_capsule.last_mut().unwrap() ^= 1;
    world.send(io, &in_capsule);
    let mut pdu = h2c(digests, 5, ttag, 0, &[1; 4096], true);
    *pdu.last_mut().unwrap() ^= 1;
    world.send(io, &pdu);
    let failed = world.replies(io);
    assert_eq!(failed.len(), 2);
    for reply in failed {
        let Reply::Done(cqe) = reply else { panic!("{reply:02x?}") };
        assert_eq!(cqe.outcome().code(), Status::TRANSIENT_TRANSPORT_ERROR);
    }
    for cid in 10..14_u16 {
        world.finish(io, 0, Ok(()));
        let start = usize::from(cid) * 512;
        assert_eq!(data_of(&world.replies(io), cid), world.disk[start..start + 512]);
    }
    world.end_all();
}

#[test]
fn connect_can_be_retried_after_a_digest_error() {
    use zerocopy::IntoBytes;
    let digests = BOTH;
    let mut world = World::new();
    let id = world.initialized(digests);
    let connect = |damage: u8| {
        let data = connect_data(0xffff);
        let mut pdu = capsule(digests, &crate::raw_host::connect_sqe(0, 32), data.as_bytes());
        *pdu.last_mut().unwrap() ^= damage;
        pdu
    };
    for (damage, status) in [(1, Status::TRANSIENT_TRANSPORT_ERROR), (0, Status::SUCCESS)] {
        world.send(id, &connect(damage));
        let [Reply::Done(cqe)] = world.replies(id)[..] else { panic!() };
        assert_eq!(cqe.outcome().code(), status);
    }
    world.end_all();
}
