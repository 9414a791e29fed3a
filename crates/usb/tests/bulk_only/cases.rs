//! The thirteen cases of agreement between host and device (BOT §6.7).

use crate::world::{World, transfer_10};

const PASSED: u8 = 0;
const PHASE_ERROR: u8 = 2;

const TEST_UNIT_READY: &[u8] = &[0; 6];

/// What the host announces: direction and length.
#[derive(Debug, Clone, Copy)]
enum Host {
    Hn,
    Hi(u32),
    Ho(u32),
}

use Host::{Hi, Hn, Ho};

/// Case, host, CDB; length of the data, whether the pipe is halted, residue, status.
type Case<'a> = (u8, Host, &'a [u8], (usize, bool, u32, u8));

#[test]
fn x39_hosts_and_device_may_disagree_in_thirteen_ways() {
    let read = transfer_10(0x28, 1, 2);
    let write = transfer_10(0x2a, 1, 2);
    let table: [Case<'_>; 17] = [
        (1, Hn, TEST_UNIT_READY, (0, false, 0, PASSED)),
        (2, Hn, &read, (0, false, 0, PHASE_ERROR)),
        (2, Hn, &[0x12, 0, 0, 0, 36, 0], (0, false, 0, PHASE_ERROR)),
        (3, Hn, &write, (0, false, 0, PHASE_ERROR)),
        (4, Hi(64), TEST_UNIT_READY, (0, true, 64, PASSED)),
        // A short packet ends the data, else a halt.
        (5, Hi(64), &[0x12, 0, 0, 0, 36, 0], (36, false, 28, PASSED)),
        (5, Hi(2048), &read, (1024, true, 1024, PASSED)),
        (6, Hi(1024), &read, (1024, false, 0, PASSED)),
        (6, Hi(8), &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], (8, false, 0, PASSED)),
        (7, Hi(512), &read, (0, true, 512, PHASE_ERROR)),
        (7, Hi(10), &[0x12, 0, 0, 0, 36, 0], (10, false, 0, PHASE_ERROR)),
        (8, Hi(1024), &write, (0, true, 1024, PHASE_ERROR)),
        (9, Ho(700), TEST_UNIT_READY, (0, false, 700, PASSED)),
        (10, Ho(1024), &read, (0, false, 1024, PHASE_ERROR)),
        (11, Ho(2000), &write, (0, false, 976, PASSED)),
        (12, Ho(1024), &write, (0, false, 0, PASSED)),
        (13, Ho(512), &write, (0, false, 512, PHASE_ERROR)),
    ];
    for (case, host, cdb, expected) in table {
        let mut world = World::writable().attended();
        let before = world.disk.clone();
        let (data, halted, residue, status) = match host {
            Hn => world.read(0, cdb, 0),
            Hi(length) => world.read(0, cdb, length),
            Ho(length) => world.write(0, cdb, &vec![7; length as usize]),
        };
        assert_eq!((data.len(), halted, residue, status), expected, "case {case}: {host:?}");
        assert_eq!(world.disk != before, matches!(case, 11 | 12), "case {case}: the disk");
        // The next command finds the endpoints in order.
        assert_eq!(world.read(0, TEST_UNIT_READY, 0), (vec![], false, 0, PASSED));
    }
}

#[test]
fn reads_and_writes_in_pieces_are_exact() {
    let mut world = World::writable().attended();
    let (data, halted, residue, status) = world.read(0, &transfer_10(0x28, 8, 1600), 1600 * 512);
    assert_eq!((halted, residue, status), (false, 0, PASSED));
    assert!(data == world.disk[8 * 512..1608 * 512], "the data");
    let data: Vec<u8> = (0..1600 * 512).map(|at| u8::try_from(at % 241).unwrap()).collect();
    assert_eq!(world.write(0, &transfer_10(0x2a, 16, 1600), &data), (vec![], false, 0, PASSED));
    assert!(world.disk[16 * 512..1616 * 512] == data, "the disk");
}

#[test]
fn pieces_that_are_read_out_of_order_are_sent_in_order() {
    let mut world = World::writable().attended();
    world.hold = true;
    let cbw = world.cbw(0, &transfer_10(0x28, 0, 1600), true, 1600 * 512);
    world.send(zerocopy::IntoBytes::as_bytes(&cbw));
    while !world.held.is_empty() {
        let last = world.held.len() - 1;
        world.complete(last);
    }
    let (data, ..) = world.answer();
    assert!(data == world.disk[..1600 * 512], "the data");
}
