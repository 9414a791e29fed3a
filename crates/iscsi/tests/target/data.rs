//! Reads and writes with every way to transfer data.

use iscsi::wire::bhs::{self, DataIn, FINAL, R2t, ScsiResponse};
use iscsi::wire::opcode;

use crate::initiator::{Initiator, NONE, SHORT, data_of, sense, status, write_10};
use crate::world::World;

/// Returns the contents of a read.
fn expected(lba: usize, blocks: usize) -> Vec<u8> {
    (lba..lba + blocks).flat_map(|at| [u8::try_from(at % 199).unwrap(); 512]).collect()
}

#[test]
fn read_is_one_pdu_with_its_status() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let pdus = initiator.read(&mut world, 3, 8);
    assert_eq!((pdus.len(), status(&pdus)), (1, 0));
    assert_eq!(data_of(&pdus), expected(3, 8));
    let header = DataIn::of(&pdus[0].header);
    assert_eq!(header.flags, FINAL | bhs::STATUS);
    assert_eq!(header.numbers.exp_cmd_sn.get(), initiator.cmd_sn);
    assert_eq!(header.numbers.max_cmd_sn.get(), initiator.cmd_sn + 127);
    world.end_all();
}

#[test]
fn long_read_is_sent_in_order() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    world.conn(initiator.id).hold = true;
    // 1.5 MiB: six pieces, four of them in flight.
    let command = initiator.scsi(crate::initiator::read_10(1, 3072), FINAL | bhs::READ, 3072 * 512);
    world.send(initiator.id, &initiator.pdu(&command, &[]));
    assert_eq!(world.jobs(initiator.id).len(), 4);
    while !world.jobs(initiator.id).is_empty() {
        let last = world.jobs(initiator.id).len() - 1;
        world.finish(initiator.id, last, Ok(()));
    }
    let pdus = initiator.received(&mut world);
    assert_eq!(status(&pdus), 0);
    assert!(data_of(&pdus) == expected(1, 3072));
    let finals = pdus.iter().filter(|pdu| pdu.header.flags & FINAL != 0).count();
    assert_eq!((pdus.len(), finals), (6, 6), "MaxBurstLength is 256 KiB by default");
    world.end_all();
}

/// Writes `blocks` blocks of `byte` at `lba` with those keys, as an initiator does that sends as much
/// unsolicited data as it may, in PDUs of `segment` bytes.
fn write(keys: &[(&str, &str)], blocks: u16, segment: usize) -> (Vec<u8>, usize) {
    let mut world = World::new();
    let mut all = SHORT[..3].to_vec();
    all.extend(keys);
    let mut initiator = Initiator::attached_with(&mut world, &all);
    let has = |key: &str, value: &str| keys.contains(&(key, value));
    let len = usize::from(blocks) * 512;
    let first: usize = keys
        .iter()
        .find(|(key, _)| *key == "FirstBurstLength")
        .map_or(65536, |(_, v)| v.parse().unwrap());
    let data: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let immediate = if has("ImmediateData", "No") { 0 } else { segment.min(len).min(first) };
    let unsolicited = if has("InitialR2T", "No") { first.min(len) } else { immediate };
    let last = if unsolicited > immediate { 0 } else { FINAL };
    let command =
        initiator.scsi(write_10(5, blocks), last | bhs::WRITE, u32::try_from(len).unwrap());
    let itt = command.itt.get();
    world.send(initiator.id, &initiator.pdu(&command, &data[..immediate]));
    let send = |world: &mut World, ttt: u32, mut at: usize, end: usize| {
        let mut sn = 0;
        while at < end {
            let next = end.min(at + segment);
            let offset = u32::try_from(at).unwrap();
            let header = initiator.data_out(itt, ttt, sn, offset, next == end);
            world.send(initiator.id, &initiator.pdu(&header, &data[at..next]));
            (at, sn) = (next, sn + 1);
        }
    };
    send(&mut world, NONE, immediate, unsolicited);
    let mut requests = 0;
    loop {
        let pdus = initiator.received(&mut world);
        let pdu = pdus.last().expect("an answer");
        if pdu.opcode() != opcode::R2T {
            assert_eq!(status(&pdus), 0);
            break;
        }
        let r2t = R2t::of(&pdu.header);
        assert_eq!((r2t.r2t_sn.get(), r2t.itt.get()), (u32::try_from(requests).unwrap(), itt));
        requests += 1;
        let at = r2t.offset.get() as usize;
        send(&mut world, r2t.ttt.get(), at, at + r2t.len.get() as usize);
    }
    assert!(world.disk[5 * 512..5 * 512 + len] == data);
    let before = world.disk[..5 * 512].to_vec();
    world.end_all();
    (before, requests)
}

/// Every combination of InitialR2T and ImmediateData, with lengths around the bursts.
#[test]
fn writes_arrive_in_every_combination_of_keys() {
    for (initial, immediate) in [("Yes", "Yes"), ("Yes", "No"), ("No", "Yes"), ("No", "No")] {
        for (first, burst) in [("65536", "262144"), ("512", "1024"), ("8192", "16384")] {
            for (blocks, segment) in [(1, 512), (1, 8192), (16, 4096), (300, 8192), (2000, 65536)] {
                let keys = [
                    ("InitialR2T", initial),
                    ("ImmediateData", immediate),
                    ("FirstBurstLength", first),
                    ("MaxBurstLength", burst),
                ];
                let (before, requests) = write(&keys, blocks, segment);
                assert!(before == expected(0, 5));
                if initial == "No" && usize::from(blocks) * 512 <= first.parse().unwrap() {
                    assert_eq!(requests, 0, "{keys:?} {blocks} {segment}");
                }
            }
        }
    }
}

#[test]
fn write_without_data_follows_by_r2t() {
    let (_, requests) = write(&[("InitialR2T", "Yes"), ("ImmediateData", "No")], 2000, 65536);
    assert_eq!(requests, 4, "one for each piece of 256 KiB");
}

#[test]
fn residuals_are_exact() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let read = crate::initiator::read_10(1, 1);
    let pdus = initiator.command(&mut world, read, bhs::READ, 10000, &[]);
    let header = DataIn::of(&pdus[0].header);
    assert_eq!((header.flags & 6, header.residual.get()), (bhs::UNDERFLOW, 9488));
    assert_eq!(pdus[0].data.len(), 512);
    let pdus = initiator.command(&mut world, read, bhs::READ, 200, &[]);
    let header = DataIn::of(&pdus[0].header);
    assert_eq!((header.flags & 6, header.residual.get()), (bhs::OVERFLOW, 312));
    assert_eq!(pdus[0].data, [1; 200]);
    let pdus = initiator.command(&mut world, write_10(1, 1), bhs::WRITE, 1024, &[9; 1024]);
    let header = ScsiResponse::of(&pdus[0].header);
    assert_eq!((header.flags & 6, header.residual.get()), (bhs::UNDERFLOW, 512));
    assert!(world.disk[512..1024] == [9; 512] && world.disk[1024..1536] == [2; 512]);
    let pdus = initiator.command(&mut world, write_10(3, 2), bhs::WRITE, 512, &[8; 512]);
    let header = ScsiResponse::of(&pdus[0].header);
    assert_eq!((header.flags & 6, header.residual.get()), (bhs::OVERFLOW, 512));
    assert!(world.disk[1536..2048] == [8; 512] && world.disk[2048..2560] == [4; 512]);
    world.end_all();
}

#[test]
fn digests_protect_both_directions() {
    let mut keys = SHORT.to_vec();
    keys.extend([("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]);
    let mut world = World::new();
    let mut initiator = Initiator::attached_with(&mut world, &keys);
    assert!(initiator.header_digest && initiator.data_digest);
    assert_eq!(data_of(&initiator.read(&mut world, 7, 9)), expected(7, 9));
    let pdus = initiator.command(&mut world, write_10(0, 2), bhs::WRITE, 1024, &[3; 1024]);
    assert_eq!(status(&pdus), 0);
    let command = initiator.scsi(write_10(0, 2), FINAL | bhs::WRITE, 1024);
    let mut bytes = initiator.pdu(&command, &[4; 1024]);
    bytes[100] ^= 1;
    world.send(initiator.id, &bytes);
    assert_eq!(world.conn(initiator.id).reported()[1], "violation DataDigestWrong");
    assert!(world.disk[..1024] == [3; 1024], "damaged data is not written");
    world.end_all();
}

/// The initiator sends more than the command writes: the digest covers all of it.
#[test]
fn digest_is_checked_of_data_longer_than_its_command() {
    let mut keys = SHORT.to_vec();
    keys.push(("DataDigest", "CRC32C"));
    let (header, len) = (48, 1024);
    for damaged in [None, Some(header + 100), Some(header + len - 1)] {
        for chunk in [1, 100, usize::MAX] {
            let mut world = World::small(1 << 16, 512);
            let mut initiator = Initiator::attached_with(&mut world, &keys);
            let command = initiator.scsi(write_10(0, 1), FINAL | bhs::WRITE, 1024);
            let mut bytes = initiator.pdu(&command, &vec![4; len]);
            if let Some(at) = damaged {
                bytes[at] ^= 1;
            }
            bytes.chunks(chunk).for_each(|part| world.send(initiator.id, part));
            let reported = world.conn(initiator.id).reported();
            match damaged {
                Some(_) => assert_eq!(reported[1], "violation DataDigestWrong"),
                None => assert_eq!(status(&initiator.received(&mut world)), 0),
            }
            let written = if damaged.is_some() { 0 } else { 4 };
            assert!(world.disk[..512] == [written; 512]);
            world.end_all();
        }
    }
}

#[test]
fn inquiry_has_its_residual_and_padding() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let mut cdb = [0; 16];
    (cdb[0], cdb[4]) = (0x12, 255);
    let pdus = initiator.command(&mut world, cdb, bhs::READ, 255, &[]);
    let header = DataIn::of(&pdus[0].header);
    let len = u32::try_from(pdus[0].data.len()).unwrap();
    assert_eq!((header.flags & 6, header.residual.get()), (bhs::UNDERFLOW, 255 - len));
    cdb[4] = 5;
    let pdus = initiator.command(&mut world, cdb, bhs::READ, 5, &[]);
    assert_eq!((pdus[0].data.len(), status(&pdus)), (5, 0));
    world.end_all();
}

#[test]
fn fault_is_answered_with_sense_data() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    world.faults.push_back(Err(export::Fault::Io));
    let pdus = initiator.read(&mut world, 3, 1);
    assert_eq!(sense(&pdus), (3, 0x11, 0));
    assert_eq!(world.conn(initiator.id).reported()[1], "fault read 1536 512");
    world.faults.push_back(Err(export::Fault::Io));
    let pdus = initiator.command(&mut world, write_10(3, 1), bhs::WRITE, 512, &[0; 512]);
    assert_eq!(sense(&pdus).0, 3);
    assert_eq!(status(&initiator.read(&mut world, 3, 1)), 0);
    let pdus = initiator.read(&mut world, 4096, 1);
    assert_eq!(sense(&pdus), (5, 0x21, 0));
    world.end_all();
}

/// The driver receives data into the buffer of a write, and nothing follows it.
#[test]
fn direct_receive_completes_a_write() {
    for digest in ["None", "CRC32C"] {
        let mut world = World::new();
        let keys: Vec<_> = SHORT.iter().copied().chain([("DataDigest", digest)]).collect();
        let mut initiator = Initiator::attached_with(&mut world, &keys);
        world.direct = true;
        for blocks in [15, 16, 17, 512] {
            let data: Vec<u8> = (0..=250).cycle().take(usize::from(blocks) * 512).collect();
            let len = u32::from(blocks) * 512;
            let command = initiator.scsi(write_10(1, blocks), FINAL | bhs::WRITE, len);
            let bytes = initiator.pdu(&command, &data);
            let (header, rest) = bytes.split_at(48);
            world.send(initiator.id, header);
            world.send(initiator.id, rest);
            assert_eq!(status(&initiator.received(&mut world)), 0, "{blocks}");
            assert!(world.disk[512..512 + data.len()] == data);
        }
        world.end_all();
    }
}

#[test]
fn write_and_verify_has_residuals_as_a_write() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let cdb = |blocks: u16| [&[0x2e][..], &write_10(1, blocks)[1..]].concat().try_into().unwrap();
    for (blocks, len, flag, residual) in
        [(1, 1024, bhs::UNDERFLOW, 512), (2, 512, bhs::OVERFLOW, 512), (1, 200, bhs::OVERFLOW, 312)]
    {
        let data = vec![u8::try_from(blocks).unwrap(); len as usize];
        let pdus = initiator.command(&mut world, cdb(blocks), bhs::WRITE, len, &data);
        let header = ScsiResponse::of(&pdus[0].header);
        assert_eq!((header.status, header.flags & 6, header.residual.get()), (0, flag, residual));
    }
    assert!(world.disk[512..1024] == [2; 512] && world.disk[1024..1536] == [2; 512]);
    world.end_all();
}

#[test]
fn other_commands_must_have_their_exact_length() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let same = [&[0x41][..], &write_10(1, 1)[1..]].concat().try_into().unwrap();
    for (len, expected) in [(256, 2), (1024, 2), (512, 0)] {
        let data = vec![7; len as usize];
        assert_eq!(status(&initiator.command(&mut world, same, bhs::WRITE, len, &data)), expected);
    }
    world.end_all();
}
