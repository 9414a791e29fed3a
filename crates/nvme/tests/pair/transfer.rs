//! Reads and writes of all sizes, by all kinds of transfer.

use nvme::host::Payload;
use nvme::status::Status;
use nvme::tcp::{Deframer, Pdu, Piece, Side, pdu};

use crate::client::{AttachParams, pattern, read, write};
use crate::world::{BYTES, Chunks, Order, World};

/// 512 bytes to 1 MiB, around all limits.
const SIZES: [usize; 14] = [
    512,
    1024,
    4096,
    4608,
    8192,
    15_872,
    16_384,
    16_896,
    32_768,
    65_536,
    131_072,
    131_584,
    524_288,
    1 << 20,
];

fn write_and_read_back(world: &mut World, io: usize, len: usize, lba: u64) {
    let data = pattern(len as u64, len);
    assert_eq!(world.write(io, lba, &data), Status::SUCCESS);
    let start = lba as usize * 512;
    assert_eq!(world.disk().bytes[start..start + len], data, "{len} written");
    assert_eq!(world.read(io, lba, (len / 512) as u32).unwrap(), data, "{len} read");
}

#[test]
fn transfers_of_every_size_are_complete() {
    for in_place in [false, true] {
        let mut world = World::new();
        world.in_place = in_place;
        let (_, io) = world.attach_default();
        for len in SIZES {
            write_and_read_back(&mut world, io, len, 3);
        }
        let last = (BYTES / 512 - 1) as u64;
        write_and_read_back(&mut world, io, 512, last);
    }
}

#[test]
fn all_connection_options_transfer_data() {
    for digests in 0..4 {
        for hpda in [0, 1, 2, 7, 31] {
            for flow_control in [false, true] {
                let mut world = World::new();
                world.in_place = hpda == 1;
                let (header_digest, data_digest) = (digests & 1 != 0, digests & 2 != 0);
                let params = AttachParams {
                    header_digest,
                    data_digest,
                    hpda,
                    flow_control,
                    ..AttachParams::default()
                };
                let client = world.attach(&params);
                for len in [512, 16_384, 131_072] {
                    write_and_read_back(&mut world, client.io[0], len, 8);
                }
            }
        }
    }
}

#[test]
fn all_alignments_are_respected() {
    for hpda in 0..=31 {
        let mut world = World::new();
        let client =
            world.attach(&AttachParams { hpda, header_digest: true, ..AttachParams::default() });
        let before = world.sent_by_target(client.io[0]).len();
        world.read(client.io[0], 0, 8).unwrap();
        let pdu = &world.sent_by_target(client.io[0])[before..];
        assert_eq!(pdu[0], pdu::kind::C2H_DATA);
        assert_eq!(usize::from(pdu[3]) % ((usize::from(hpda) + 1) * 4), 0, "HPDA {hpda}");
    }
}

#[test]
fn any_chunk_size_is_received() {
    for chunk in [1, 2, 3, 7, 16, 77, 4096] {
        for in_place in [false, true] {
            let mut world = World::new();
            (world.chunks, world.in_place) = (Chunks::Fixed(chunk), in_place);
            let params =
                AttachParams { header_digest: true, data_digest: true, ..AttachParams::default() };
            let client = world.attach(&params);
            for len in [512, 20_480] {
                write_and_read_back(&mut world, client.io[0], len, 1);
            }
        }
    }
}

/// Returns the PDUs that the target sent on a connection from that byte on.
fn pdus(world: &World, conn: usize, from: usize) -> Vec<Pdu> {
    let (mut reader, mut bytes, mut found) =
        (Deframer::new(Side::Host, 0), &world.sent_by_target(conn)[from..], Vec::new());
    loop {
        match reader.next(bytes).unwrap() {
            Piece::Incomplete => return found,
            Piece::Header(n, pdu) => {
                found.push(pdu);
                bytes = &bytes[n..];
            }
            Piece::Payload(data) => bytes = &bytes[data.len()..],
            Piece::Padding(n) | Piece::PayloadEnd(n, _) => bytes = &bytes[n..],
        }
    }
}

#[test]
fn success_flag_replaces_the_response_capsule() {
    for flow_control in [false, true] {
        let mut world = World::new();
        let client = world.attach(&AttachParams { flow_control, ..AttachParams::default() });
        let before = world.sent_by_target(client.io[0]).len();
        world.read(client.io[0], 0, 1).unwrap();
        let sent = pdus(&world, client.io[0], before);
        match &sent[..] {
            [Pdu::Data { last: true, success: true, .. }] => assert!(!flow_control),
            [Pdu::Data { last: true, success: false, .. }, Pdu::Response(_)] => {
                assert!(flow_control)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sqhd_wraps_around() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { entries: 5, ..AttachParams::default() });
    let io = client.io[0];
    let before = world.sent_by_target(io).len();
    for _ in 0..12 {
        world.write(io, 0, &[1; 512]);
    }
    let heads: Vec<u16> = pdus(&world, io, before)
        .into_iter()
        .filter_map(|pdu| if let Pdu::Response(cqe) = pdu { Some(cqe.sqhd.get()) } else { None })
        .collect();
    // Connect used entry 0.
    assert_eq!(heads, [2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3]);
}

#[test]
fn small_writes_are_in_capsule_and_large_ones_by_r2t() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for (len, asked) in [(16_384, false), (16_896, true)] {
        let before = world.sent_by_target(io).len();
        world.write(io, 0, &vec![1; len]);
        let is_r2t = |pdu: &Pdu| matches!(pdu, Pdu::R2t { .. });
        assert_eq!(pdus(&world, io, before).iter().any(is_r2t), asked, "{len}");
    }
}

#[test]
fn full_queue_completes_every_command_once() {
    for order in [Order::First, Order::Last, Order::Random] {
        for flow_control in [false, true] {
            let mut world = World::new();
            world.order = order;
            let client = world.attach(&AttachParams {
                entries: 64,
                flow_control,
                ..AttachParams::default()
            });
            let io = client.io[0];
            let mut tag = 0;
            while world.connections[io].host.can_submit() {
                let buffer = world.buffer(4096);
                world.submit(io, read(u64::from(tag) * 8, 8), Payload::Receive(buffer), tag);
                tag += 1;
            }
            assert_eq!(tag, 63);
            let refused = world.connections[io].host.submit(read(0, 1), Payload::None, 99);
            assert!(matches!(refused, Err(nvme::host::SubmitError::Full(_))));
            world.run();
            for tag in 0..63 {
                let done = world.completion(io, tag).unwrap();
                let start = tag as usize * 4096;
                let expected = world.disk().bytes[start..start + 4096].to_vec();
                assert_eq!(done.buffer.unwrap().bytes(), expected, "{order:?} {tag}");
            }
            assert!(world.connections[io].done.is_empty());
        }
    }
}

#[test]
fn excessive_transfers_are_refused() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let end = (BYTES / 512) as u64;
    assert_eq!(world.read(io, end, 1).unwrap_err(), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(world.read(io, end - 1, 2).unwrap_err(), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(world.read(io, u64::MAX, 2).unwrap_err(), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(world.write(io, end, &[0; 512]), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(world.write(io, end, &vec![0; 65_536]), Status::LBA_OUT_OF_RANGE.dnr());
    // No host buffer fits a read of 1 MiB and a block; 512 bytes are invalid, too.
    let buffer = world.buffer(512);
    let done = world.command(io, read(0, 2049), Payload::Receive(buffer));
    assert_eq!(done.status, Status::INVALID_FIELD.dnr());
    // The connection stays open.
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn sgl_length_mismatch_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for len in [512, 2048] {
        let buffer = world.buffer(len);
        let done = world.command(io, read(0, 2), Payload::Receive(buffer));
        assert_eq!(done.status, Status::DATA_SGL_LENGTH_INVALID.dnr());
        for payload in [
            Payload::Send(world.host_buffer(&vec![1; len])),
            Payload::SendByR2t(world.host_buffer(&vec![1; len])),
        ] {
            let done = world.command(io, write(0, 2), payload);
            assert_eq!(done.status, Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
    }
    assert!(world.disk().changes().is_empty());
}

#[test]
fn invalid_namespace_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for nsid in [0, 2, 0xffff_ffff] {
        let mut sqe = read(0, 1);
        sqe.nsid.set(nsid);
        let buffer = world.buffer(512);
        let done = world.command(io, sqe, Payload::Receive(buffer));
        assert_eq!(done.status, Status::INVALID_NAMESPACE.dnr(), "{nsid}");
    }
}
