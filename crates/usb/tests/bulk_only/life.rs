//! Disks that are read-only, ejected, withdrawn or failing; several disks; resets.

use std::sync::Arc;

use export::{Access, Event, Export, Fault, Notice, Reason, Session as _};
use zerocopy::IntoBytes;

use crate::world::{World, disk, transfer_10};

fn two() -> (World, [Arc<Export>; 2]) {
    let disks = [disk("a", Access::ReadOnly), disk("b", Access::Writable)];
    let world = World::new(&disks).attended();
    (world, disks)
}

#[test]
fn write_to_a_read_only_disk_is_refused_after_its_data() {
    let (mut world, _) = two();
    let before = world.disk.clone();
    let answer = world.write(0, &transfer_10(0x2a, 0, 2000), &vec![7; 2000 * 512]);
    assert_eq!(answer, (vec![], false, 2000 * 512, 1));
    assert_eq!(world.sense(0), (7, 0x27, 0));
    assert!(world.disk == before, "the disk");
    let (data, ..) = world.read(0, &[0x1a, 0, 0x3f, 0, 192, 0], 192);
    assert_eq!(data[2] & 0x80, 0x80, "write protected");
}

#[test]
fn each_disk_is_a_logical_unit() {
    let (mut world, _) = two();
    assert_eq!(world.server.units(&export::Peer::usb()), 2);
    // Its own unit attention condition.
    assert_eq!(world.read(1, &[0; 6], 0).3, 1);
    assert_eq!(world.write(1, &transfer_10(0x2a, 3, 1), &[9; 512]).3, 0);
    assert_eq!(world.disk[3 * 512], 9);
    let many: Vec<_> = (0..20).map(|at| disk(&format!("d{at}"), Access::ReadOnly)).collect();
    let mut world = World::new(&many);
    assert_eq!(world.server.units(&export::Peer::usb()), 8);
    assert_eq!(world.read(7, &[0x12, 0, 0, 0, 36, 0], 36).3, 0);
    world.send(&[0; 31]);
    assert_eq!(world.closed, Some(Reason::Violation));
}

#[test]
fn failed_read_ends_with_a_halt_and_the_block() {
    let (mut world, _) = two();
    world.fault = Some(Fault::Io);
    assert_eq!(world.read(0, &transfer_10(0x28, 5, 8), 4096), (vec![], true, 4096, 1));
    assert_eq!(world.sense(0), (3, 0x11, 0));
    assert!(matches!(world.events.last(), Some(Event::Fault { offset: 2560, len: 4096, .. })));
}

#[test]
fn sense_data_is_kept_only_until_the_next_command() {
    let mut world = World::writable().attended();
    assert_eq!(world.read(0, &[0xc1, 0, 0, 0, 0, 0], 0).3, 1);
    assert_eq!(world.sense(0), (5, 0x20, 0));
    assert_eq!(world.read(0, &[0xc1, 0, 0, 0, 0, 0], 0).3, 1);
    assert_eq!(world.read(0, &transfer_10(0x28, 0, 1), 512).3, 0);
    assert_eq!(world.sense(0), (0, 0, 0));
}

#[test]
fn ejected_disk_is_flushed_and_not_present() {
    let (mut world, _) = two();
    assert!(matches!(world.events.last(), Some(Event::Attached { .. })));
    assert_eq!(world.read(0, &[0x1b, 0, 0, 0, 2, 0], 0).3, 0);
    assert!(matches!(world.events.last(), Some(Event::Detached { reason: Reason::Ejected, .. })));
    assert_eq!(world.read(0, &[0; 6], 0).3, 1);
    assert_eq!(world.sense(0), (2, 0x3a, 0));
    assert_eq!(world.read(0, &[0x1b, 0, 0, 0, 3, 0], 0).3, 0);
    assert_eq!(world.read(0, &[0; 6], 0).3, 0);
    assert!(matches!(world.events.last(), Some(Event::Attached { .. })));
}

#[test]
fn withdrawn_disk_is_not_present_and_others_are() {
    let (mut world, [a, _]) = two();
    world.catalogue.withdraw(&a.id);
    world.session().notify(std::time::Instant::now(), &Notice::StateChanged);
    world.drain();
    assert!(matches!(world.events.last(), Some(Event::Detached { .. })));
    assert_eq!(world.read(0, &[0; 6], 0).3, 1);
    assert_eq!(world.sense(0), (2, 0x3a, 0));
    world.read(1, &[0; 6], 0);
    assert_eq!(world.read(1, &[0; 6], 0).3, 0);
    // It returns.
    world.catalogue.publish(disk("a", Access::ReadOnly));
    assert_eq!(world.read(0, &[0; 6], 0).3, 1);
    assert_eq!(world.read(0, &[0; 6], 0).3, 0);
}

/// X39: a reset in the middle of data leaves no trace.
#[test]
fn x39_reset_in_mid_data_ends_the_command() {
    let mut world = World::writable().attended();
    let cbw = world.cbw(0, &transfer_10(0x2a, 0, 1600), false, 1600 * 512);
    world.send(cbw.as_bytes());
    world.send(&vec![1; 256 << 10]);
    world.reset();
    let mut world = world.attended();
    assert_eq!(world.read(0, &transfer_10(0x28, 600, 1), 512).3, 0);
    world.hold = true;
    let cbw = world.cbw(0, &transfer_10(0x28, 0, 1600), true, 1600 * 512);
    world.send(cbw.as_bytes());
    assert!(!world.held.is_empty());
    world.reset();
    world.hold = false;
    let mut world = world.attended();
    assert_eq!(world.read(0, &[0; 6], 0), (vec![], false, 0, 0));
}

#[test]
fn short_data_from_the_host_is_a_phase_error() {
    let mut world = World::writable().attended();
    let cbw = world.cbw(0, &transfer_10(0x2a, 0, 8), false, 4096);
    world.send(cbw.as_bytes());
    world.send(&[1; 100]);
    assert_eq!(world.answer(), (vec![], false, 4096, 2));
    assert_eq!(world.read(0, &[0; 6], 0).3, 0);
}

#[test]
fn write_waits_for_exclusive_access_of_another() {
    let export = disk("a", Access::Writable);
    let mut world = World::new(std::slice::from_ref(&export)).attended();
    let right = export::Exclusive::claim(&export).unwrap();
    let cbw = world.cbw(0, &transfer_10(0x2a, 0, 1), false, 512);
    world.send(cbw.as_bytes());
    world.send(&[1; 512]);
    assert!(world.sent.is_empty() && world.disk[0] == 0);
    drop(right);
    world.session().notify(std::time::Instant::now(), &Notice::StateChanged);
    world.drain();
    assert_eq!(world.answer(), (vec![], false, 0, 0));
    assert_eq!(world.disk[0], 1);
}

#[test]
fn disk_keeps_its_unit_number_after_another_is_withdrawn() {
    let (mut world, [a, _]) = two();
    assert_eq!(world.server.units(&export::Peer::usb()), 2);
    world.catalogue.withdraw(&a.id);
    world.reset();
    world.catalogue.publish(disk("c", Access::Writable));
    let before = world.disk.clone();
    assert_eq!(world.read(0, &[0x12, 0, 0, 0, 36, 0], 36).0[0], 0);
    for _ in 0..2 {
        assert_eq!(world.write(0, &transfer_10(0x2a, 3, 1), &[9; 512]), (vec![], false, 512, 1));
        assert_eq!(world.sense(0), (2, 0x3a, 0));
    }
    assert!(world.disk == before, "the disk");
    assert_eq!(world.server.units(&export::Peer::usb()), 3);
    world.reset();
    // It returns, in another place of the catalogue.
    world.catalogue.publish(disk("a", Access::ReadOnly));
    for lun in 0..3 {
        world.read(lun, &[0; 6], 0);
        assert_eq!(world.read(lun, &[0; 6], 0).3, 0);
    }
    let names = world.events.iter().filter_map(|event| match event {
        Event::Attached { export, .. } => Some(export.short.as_str()),
        _ => None,
    });
    assert_eq!(names.collect::<Vec<_>>()[1..], ["a", "b", "c"]);
}

#[test]
fn device_without_a_disk_has_an_empty_unit() {
    let mut world = World::new(&[]);
    let (data, halted, residue, status) = world.read(0, &[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!((data[0], data.len(), halted, residue, status), (0x20, 36, false, 0, 0));
    assert_eq!(world.read(0, &[0; 6], 0), (vec![], false, 0, 1));
    assert_eq!(world.sense(0), (2, 0x3a, 0));
    assert_eq!(world.closed, None);
    world.catalogue.publish(disk("a", Access::ReadOnly));
    world.reset();
    let mut world = world.attended();
    assert_eq!(world.read(0, &[0; 6], 0).3, 0);
}

/// Begins a write of two pieces to the first of two disks, whose second piece is cut short.
fn cut_short(world: &mut World) {
    let cbw = world.cbw(0, &transfer_10(0x2a, 0, 1024), false, 512 << 10);
    world.send(cbw.as_bytes());
    world.send(&[1; 256 << 10]);
    world.send(&[1; 100]);
}

#[test]
fn write_that_waits_is_dropped_with_its_command() {
    let disks = [disk("a", Access::Writable), disk("b", Access::Writable)];
    let mut world = World::new(&disks).attended();
    world.read(1, &[0; 6], 0);
    let before = world.disk.clone();
    let right = export::Exclusive::claim(&disks[0]).unwrap();
    cut_short(&mut world);
    assert_eq!(world.answer().3, 2);
    drop(right);
    let cbw = world.cbw(1, &transfer_10(0x2a, 1024, 1), false, 512);
    world.send(cbw.as_bytes());
    world.session().notify(std::time::Instant::now(), &Notice::StateChanged);
    world.drain();
    assert!(world.disk == before, "the disk");
    world.send(&[2; 512]);
    assert_eq!(world.answer().3, 0);
}

#[test]
fn command_ends_after_its_disk_requests() {
    let mut world = World::writable().attended();
    world.hold = true;
    cut_short(&mut world);
    assert_eq!((world.sent.len(), world.held.len()), (0, 1));
    assert!(!world.session().can_receive());
    world.complete(0);
    assert_eq!(world.answer().3, 2);
}

#[test]
fn disk_is_ejected_only_if_its_flush_succeeds() {
    let is_ejected = |event: &Event| matches!(event, Event::Detached { .. });
    for flags in [2, 6] {
        let mut world = World::writable().attended();
        world.fault = Some(Fault::Io);
        assert_eq!(world.read(0, &[0x1b, 0, 0, 0, flags, 0], 0).3, 1);
        assert_eq!(world.read(0, &[0; 6], 0).3, 0);
        assert!(!world.events.iter().any(is_ejected));
    }
    let mut world = World::writable().attended();
    assert_eq!(world.read(0, &[0x1b, 0, 0, 0, 2, 0], 0).3, 0);
    assert!(world.events.iter().any(is_ejected));
    assert_eq!(world.read(0, &[0; 6], 0).3, 1);
    // Another disk in its place is not ejected.
    world.catalogue.publish(disk("a", Access::Writable));
    world.read(0, &[0; 6], 0);
    assert_eq!(world.read(0, &[0; 6], 0).3, 0);
}
