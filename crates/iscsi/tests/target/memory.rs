//! Bounded memory: commands wait, reception stops, and all go on when there is memory.

use iscsi::wire::bhs::{self, FINAL, R2t};
use iscsi::wire::opcode;

use crate::initiator::{Initiator, NONE, SHORT, read_10, status, write_10};
use crate::world::World;

/// Memory for one buffer of each kind at a time.
fn tight() -> World {
    World::with_pool(1 << 18)
}

/// Case R33.
#[test]
fn r33_reads_wait_for_memory_in_turn() {
    let mut world = tight();
    let mut initiator = Initiator::attached(&mut world);
    world.conn(initiator.id).hold = true;
    let mut bytes = Vec::new();
    for lba in 0..100 {
        let command = initiator.scsi(read_10(lba, 512), FINAL | bhs::READ, 512 * 512);
        bytes.extend(initiator.pdu(&command, &[]));
    }
    world.send(initiator.id, &bytes);
    assert!(world.jobs(initiator.id).len() < 3);
    world.finish_all(initiator.id);
    let pdus = initiator.received(&mut world);
    assert_eq!(pdus.iter().filter(|pdu| pdu.header.flags & bhs::STATUS != 0).count(), 100);
    world.end_all();
}

#[test]
fn immediate_data_without_memory_stops_reception() {
    let mut world = tight();
    let mut initiator = Initiator::attached(&mut world);
    world.conn(initiator.id).hold = true;
    let mut sent = 0;
    for lba in 0..10 {
        let command = initiator.scsi(write_10(lba, 512), FINAL | bhs::WRITE, 512 * 512);
        let bytes = initiator.pdu(&command, &[7; 512 * 512]);
        sent += bytes.len();
        world.send(initiator.id, &bytes);
    }
    assert!(world.waiting(initiator.id) > sent / 2);
    world.finish_all(initiator.id);
    assert_eq!(initiator.received(&mut world).len(), 10);
    assert!(world.disk[..512 * 512] == [7; 512 * 512]);
    world.end_all();
}

/// Two commands with unsolicited data that follows: the second one may not wait for memory, since the
/// data of the first one could be behind it.
#[test]
fn unsolicited_data_without_memory_is_busy() {
    let mut world = tight();
    let mut initiator = Initiator::attached(&mut world);
    let commands: Vec<_> =
        (0..4).map(|lba| initiator.scsi(write_10(lba, 512), bhs::WRITE, 512 * 512)).collect();
    for command in &commands {
        world.send(initiator.id, &initiator.pdu(command, &[]));
    }
    for command in &commands {
        let header = initiator.data_out(command.itt.get(), NONE, 0, 0, true);
        world.send(initiator.id, &initiator.pdu(&header, &[7; 512 * 512]));
    }
    let found: Vec<u8> = initiator
        .received(&mut world)
        .iter()
        .map(|pdu| {
            assert_eq!(pdu.opcode(), opcode::SCSI_RESPONSE);
            bhs::ScsiResponse::of(&pdu.header).status
        })
        .collect();
    assert_eq!((found.len(), found[0]), (4, 0));
    assert!(found.contains(&8), "{found:?}");
    world.end_all();
}

/// Writes of which a part is unsolicited, as those of Windows, and the rest is requested.
#[test]
fn requested_data_does_not_hold_memory_of_the_stream() {
    let mut world = tight();
    let mut keys = SHORT.to_vec();
    keys[6] = ("FirstBurstLength", "65536");
    let mut initiator = Initiator::attached_with(&mut world, &keys);
    let commands: Vec<_> = (0..8)
        .map(|lba| initiator.scsi(write_10(lba * 512, 512), FINAL | bhs::WRITE, 512 * 512))
        .collect();
    for command in &commands {
        world.send(initiator.id, &initiator.pdu(command, &[9; 1 << 16]));
    }
    let mut statuses = Vec::new();
    while statuses.len() < 8 {
        let pdus = initiator.received(&mut world);
        assert!(!pdus.is_empty(), "only {} writes have ended", statuses.len());
        for pdu in pdus {
            if pdu.opcode() != opcode::R2T {
                statuses.push(status(&[pdu]));
                continue;
            }
            let r2t = R2t::of(&pdu.header);
            let header =
                initiator.data_out(r2t.itt.get(), r2t.ttt.get(), 0, r2t.offset.get(), true);
            let data = vec![9; r2t.len.get() as usize];
            world.send(initiator.id, &initiator.pdu(&header, &data));
        }
    }
    assert_eq!(statuses, [0; 8]);
    assert!(world.disk.iter().all(|&byte| byte == 9));
    world.end_all();
}

/// Data is requested only when there is memory for it.
#[test]
fn data_is_requested_when_there_is_memory() {
    let mut world = tight();
    let mut initiator = Initiator::attached(&mut world);
    let commands: Vec<_> = (0..8)
        .map(|lba| initiator.scsi(write_10(lba * 512, 512), FINAL | bhs::WRITE, 512 * 512))
        .collect();
    for command in &commands {
        world.send(initiator.id, &initiator.pdu(command, &[]));
    }
    let mut done = 0;
    loop {
        let pdus = initiator.received(&mut world);
        let requests: Vec<R2t> = pdus
            .iter()
            .filter(|pdu| pdu.opcode() == opcode::R2T)
            .map(|pdu| R2t::of(&pdu.header))
            .collect();
        assert!(requests.len() <= 2, "{}", requests.len());
        done += pdus.len() - requests.len();
        if requests.is_empty() {
            break;
        }
        for r2t in requests {
            let header = initiator.data_out(r2t.itt.get(), r2t.ttt.get(), 0, 0, true);
            world.send(initiator.id, &initiator.pdu(&header, &[9; 512 * 512]));
        }
    }
    assert_eq!(done, 8);
    assert!(world.disk.iter().all(|&byte| byte == 9));
    world.end_all();
}

/// Case R37.
#[test]
fn r37_replies_that_are_not_received_are_bounded() {
    let mut world = World::with_pool(8 << 20);
    let mut initiator = Initiator::attached(&mut world);
    world.conn(initiator.id).not_receiving = true;
    let mut bytes = Vec::new();
    for _ in 0..100 {
        let command = initiator.scsi(read_10(0, 512), FINAL | bhs::READ, 512 * 512);
        bytes.extend(initiator.pdu(&command, &[]));
    }
    world.send(initiator.id, &bytes);
    assert!(world.conn(initiator.id).account.held() <= (4 << 20) + (256 << 10));
    world.receive_all(initiator.id);
    let pdus = initiator.received(&mut world);
    assert_eq!(pdus.iter().filter(|pdu| pdu.header.flags & bhs::STATUS != 0).count(), 100);
    assert_eq!(status(&pdus), 0);
    world.end_all();
}
