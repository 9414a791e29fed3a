//! Connection initialization (NVMe/TCP 1.0 §3.5, §3.6.2.2).

use std::time::Duration;

use export::Reason;
use nvme::command::AdminCommand;
use nvme::tcp::pdu::kind;
use nvme::wire::Sgl;
use zerocopy::IntoBytes;

use crate::raw_host::{
    BOTH, Digests, PLAIN, capsule, configure, connect_data, connect_sqe, frame, h2c, ic_req, read,
};
use crate::world::{Reply, World};

/// Sends `bytes` on a new connection. Checks that it ends with that FES and FEI, and that another
/// host is still served.
fn assert_terminates(bytes: &[u8], fes: u16, fei: u32) {
    let mut world = World::new();
    let other_host = world.other_host();
    let id = world.open();
    world.send(id, bytes);
    world.terminated(id, fes, fei);
    world.assert_still_served(other_host);
    world.end_all();
}

/// Returns an ICReq with one byte changed.
fn ic_req_with(at: usize, value: u8) -> Vec<u8> {
    let mut request = ic_req(PLAIN);
    request[at] = value;
    request
}

#[test]
fn first_pdu_must_be_ic_req() {
    assert_terminates(&capsule(PLAIN, &connect_sqe(0, 32), connect_data(0xffff).as_bytes()), 2, 0);
    assert_terminates(&h2c(PLAIN, 0, 0, 0, &[0; 512], true), 2, 0);
}

#[test]
fn tls_client_hello_is_refused() {
    assert_terminates(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03], 1, 0);
}

#[test]
fn other_protocols_are_refused() {
    assert_terminates(b"GET / HTTP/1.1\r\n\r\n", 1, 0);
    assert_terminates(&[0xff; 128], 1, 0);
}

#[test]
fn ic_req_with_wrong_length_or_version_is_refused() {
    assert_terminates(&ic_req_with(2, 127), 1, 2);
    assert_terminates(&ic_req_with(2, 24), 1, 2);
    assert_terminates(&ic_req_with(4, 129), 1, 4);
    assert_terminates(&ic_req_with(4, 127), 1, 4);
    assert_terminates(&ic_req_with(4, 0), 1, 4);
    assert_terminates(&ic_req_with(7, 0xff), 1, 4);
    assert_terminates(&ic_req_with(8, 1), 6, 8);
    assert_terminates(&ic_req_with(9, 1), 6, 8);
}

#[test]
fn hpda_above_31_is_refused() {
    assert_terminates(&ic_req_with(10, 32), 1, 10);
    assert_terminates(&ic_req_with(10, 255), 1, 10);
}

#[test]
fn reserved_fields_and_maxr2t_are_ignored() {
    let mut world = World::new();
    let id = world.open();
    let mut request = ic_req(PLAIN);
    request[11] = 0b1111_1100;
    request[12..16].fill(0xff);
    request[16..].fill(0xff);
    world.send(id, &request);
    let [Reply::Accepted(response)] = world.replies(id)[..] else { panic!() };
    assert_eq!((response.dgst, response.cpda, response.pfv.get()), (0, 0, 0));
    assert!(response.maxh2cdata.get() >= 4096 && response.maxh2cdata.get() % 4 == 0);
    world.end_all();
}

#[test]
fn requested_digests_are_enabled() {
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = World::new();
        let id = world.open();
        world.send(id, &ic_req(Digests { header, data }));
        let [Reply::Accepted(response)] = world.replies(id)[..] else { panic!() };
        assert_eq!(response.dgst, u8::from(header) | u8::from(data) << 1);
        world.end_all();
    }
}

#[test]
fn x27_second_ic_req_ends_the_connection() {
    for digests in [PLAIN, BOTH] {
        for connected in [false, true] {
            let mut world = World::new();
            let other_host = world.other_host();
            let id = match connected {
                true => world.admin_of(&connect_data(0xffff), digests).0,
                false => world.initialized(digests),
            };
            world.send(id, &ic_req(PLAIN));
            world.terminated(id, 2, 0);
            world.assert_still_served(other_host);
            world.end_all();
        }
    }
}

#[test]
fn overlong_second_ic_req_ends_the_connection() {
    let mut world = World::new();
    let id = world.initialized(BOTH);
    let mut request = ic_req(PLAIN);
    request[4..8].copy_from_slice(&0x1000_u32.to_le_bytes());
    request.resize(0x1000, 0);
    world.send(id, &request);
    world.terminated(id, 1, 4);
    world.end_all();
}

#[test]
fn silent_connection_times_out_after_ten_seconds() {
    let mut world = World::new();
    let other_host = world.other_host();
    let silent = world.open();
    let initialized = world.initialized(PLAIN);
    world.advance(Duration::from_millis(9_999));
    assert_eq!((world.conn(silent).closed, world.conn(initialized).closed), (None, None));
    world.advance(Duration::from_millis(1));
    assert_eq!(world.conn(silent).closed, Some(Reason::Timeout));
    assert_eq!(world.conn(initialized).closed, Some(Reason::Timeout));
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn slow_bytes_do_not_extend_the_handshake_timeout() {
    let mut world = World::new();
    let id = world.open();
    let mut sent = 0;
    for byte in ic_req(PLAIN) {
        if world.conn(id).closed.is_none() {
            world.send(id, &[byte]);
            sent += 1;
        }
        world.advance(Duration::from_secs(1));
    }
    assert_eq!((world.conn(id).closed, sent), (Some(Reason::Timeout), 10));
    world.end_all();
}

#[test]
fn half_open_connections_use_no_payload_memory() {
    let mut world = World::new();
    let other_host = world.other_host();
    let ids: Vec<_> = (0..300).map(|_| world.open()).collect();
    for &id in &ids {
        world.send(id, &ic_req(PLAIN)[..100]);
    }
    world.assert_still_served(other_host);
    world.advance(Duration::from_secs(10));
    assert!(ids.iter().all(|&id| world.conn(id).closed == Some(Reason::Timeout)));
    world.end_all();
}

#[test]
fn bytes_can_arrive_one_by_one() {
    for digests in [PLAIN, BOTH] {
        let mut world = World::new();
        let id = world.open();
        let each = |world: &mut World, bytes: &[u8]| {
            bytes.iter().for_each(|&byte| world.send(id, &[byte]));
        };
        each(&mut world, &ic_req(digests));
        assert!(matches!(world.replies(id)[..], [Reply::Accepted(_)]));
        each(&mut world, &capsule(digests, &connect_sqe(0, 32), connect_data(0xffff).as_bytes()));
        let [Reply::Done(cqe)] = world.replies(id)[..] else { panic!() };
        assert!(cqe.outcome().is_success());
        each(&mut world, &capsule(digests, &configure(crate::raw_host::ENABLE).with_cid(1), &[]));
        let [Reply::Done(cqe)] = world.replies(id)[..] else { panic!() };
        assert!(cqe.outcome().is_success());
        world.end_all();
    }
}

#[test]
fn many_pdus_can_arrive_at_once() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let many: Vec<u8> = (0..100_u16)
        .flat_map(|cid| capsule(PLAIN, &read(cid.into(), 1).with_cid(cid), &[]))
        .collect();
    world.send(io, &many);
    let replies = world.replies(io);
    for cid in 0..100_u16 {
        let start = usize::from(cid) * 512;
        assert_eq!(crate::raw_host::data_of(&replies, cid), world.disk[start..start + 512]);
    }
    world.end_all();
}

#[test]
fn pending_output_is_bounded() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let len = 1 << 20;
    let page = AdminCommand::log_page(0x02, 0, len).emit().with_data(Sgl::transport(1 << 20));
    let many: Vec<u8> =
        (0..60_u16).flat_map(|cid| capsule(PLAIN, &page.with_cid(cid), &[])).collect();
    world.send(admin, &many);
    assert!(world.conn(admin).burst < 2 << 20, "{} bytes at once", world.conn(admin).burst);
    let replies = world.replies(admin);
    assert_eq!(replies.iter().filter(|reply| matches!(reply, Reply::Done(_))).count(), 60);
    world.end_all();
}

#[test]
fn controller_pdus_from_a_host_end_the_connection() {
    let mut world = World::new();
    for (pdu_type, hlen) in [
        (kind::IC_RESP, 128),
        (kind::C2H_TERM_REQ, 24),
        (kind::CAPSULE_RESP, 24),
        (kind::C2H_DATA, 24),
        (kind::R2T, 24),
    ] {
        for connected in [false, true] {
            let id = if connected { world.initialized(PLAIN) } else { world.open() };
            world.send(id, &frame(PLAIN, pdu_type, 0, &vec![0; hlen - 8], &[]));
            world.terminated(id, 1, 0);
        }
    }
    world.end_all();
}
