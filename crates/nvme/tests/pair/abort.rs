//! Abort: commands that were not submitted to the disk are aborted, others complete.

use nvme::command::AdminCommand;
use nvme::host::Payload;
use nvme::status::Status;

use crate::client::{pattern, read, write};
use crate::world::{Chunks, World};

// Tags of commands.
const EVENT: u32 = 1;
const ABORTED: u32 = 1;
const ABORT: u32 = 2;
const SECOND_WRITE: u32 = 3;

/// Identifier of the I/O queue.
const IO_SQID: u16 = 1;

/// Sends an Abort. Returns whether the command was aborted.
fn abort(world: &mut World, admin: usize, sqid: u16, cid: u16) -> bool {
    let done = world.send_dataless(admin, AdminCommand::Abort { sqid, cid }.emit());
    assert!(done.status.is_success());
    done.result & 1 == 0
}

#[test]
fn async_event_request_can_be_aborted() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    let event = AdminCommand::AsyncEventRequest.emit();
    let cid = world.submit(client.admin, event, Payload::None, EVENT);
    world.run();
    assert!(abort(&mut world, client.admin, 0, cid));
    assert_eq!(world.status(client.admin, EVENT), Status::ABORT_REQUESTED);
}

#[test]
fn submitted_command_is_not_aborted() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.disk().held = true;
    let buffer = world.buffer(512);
    let cid = world.submit(io, read(0, 1), Payload::Receive(buffer), ABORTED);
    world.run();
    assert!(!abort(&mut world, client.admin, IO_SQID, cid));
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(io, ABORTED), Status::SUCCESS);
}

#[test]
fn unknown_command_is_not_aborted() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    for sqid in [0, 1, 2, 99] {
        assert!(!abort(&mut world, client.admin, sqid, 0x7777));
    }
}

#[test]
fn aborted_write_discards_incoming_data() {
    let mut world = World::new();
    world.chunks = Chunks::Fixed(64);
    let (client, io) = world.attach_default();
    let before = world.disk().bytes.clone();
    let data = world.host_buffer(&pattern(1, 65_536));
    let cid = world.submit(io, write(0, 128), Payload::SendByR2t(data), ABORTED);
    while world.sent_by_host(io).len() < 65_536 {
        world.run_turns(1);
    }
    world.run_turns(50);
    world.submit(
        client.admin,
        AdminCommand::Abort { sqid: IO_SQID, cid }.emit(),
        Payload::None,
        ABORT,
    );
    world.run();
    assert_eq!(world.completion(client.admin, ABORT).unwrap().result & 1, 0);
    assert_eq!(world.status(io, ABORTED), Status::ABORT_REQUESTED);
    assert_eq!(world.disk().bytes, before);
    // The slot and the stream are usable again.
    assert_eq!(world.write(io, 0, &pattern(2, 65_536)), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..65_536], pattern(2, 65_536));
}

#[test]
fn data_requested_before_an_abort_is_discarded() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.chunks = Chunks::Fixed(64);
    let before = world.disk().bytes.clone();
    let data = world.host_buffer(&pattern(1, 65_536));
    let cid = world.submit(io, write(0, 128), Payload::SendByR2t(data), ABORTED);
    // The second write is sent before the R2T of the first arrives; its capsule precedes the data of
    // the first in the stream.
    let data = world.host_buffer(&pattern(3, 16_384));
    world.submit(io, write(1000, 32), Payload::Send(data), SECOND_WRITE);
    world.run_turns(10);
    world.submit(
        client.admin,
        AdminCommand::Abort { sqid: IO_SQID, cid }.emit(),
        Payload::None,
        ABORT,
    );
    world.run_turns(100);
    assert_eq!(world.completion(client.admin, ABORT).unwrap().result & 1, 0);
    assert_eq!(world.status(io, ABORTED), Status::ABORT_REQUESTED);
    assert!(world.unconsumed(io) > 65_536, "the data is received already");
    world.run();
    assert_eq!(world.status(io, SECOND_WRITE), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..65_536], before[..65_536]);
    assert_eq!(world.write(io, 0, &pattern(2, 65_536)), Status::SUCCESS);
}

#[test]
fn command_waiting_for_a_buffer_can_be_aborted() {
    let mut world = World::with_memory(1 << 18);
    let (client, io) = world.attach_default();
    world.disk().held = true;
    let cids: Vec<u16> = (0..3)
        .map(|tag| {
            let buffer = world.buffer(1 << 20);
            world.submit(io, read(0, 2048), Payload::Receive(buffer), tag)
        })
        .collect();
    world.run();
    assert_eq!(world.disk().requests.len(), 1, "only one fits");
    assert!(abort(&mut world, client.admin, IO_SQID, cids[1]));
    assert_eq!(world.status(io, 1), Status::ABORT_REQUESTED);
    world.disk().held = false;
    world.run();
    assert_eq!((world.status(io, 0), world.status(io, 2)), (Status::SUCCESS, Status::SUCCESS));
}

#[test]
fn aborts_beyond_the_abort_command_limit_are_refused() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    for tag in 0..8 {
        let abort = AdminCommand::Abort { sqid: IO_SQID, cid: tag as u16 }.emit();
        world.submit(client.admin, abort, Payload::None, tag);
    }
    world.run();
    let codes: Vec<_> = (0..8).map(|tag| world.status(client.admin, tag).code()).collect();
    let count = |wanted: Status| codes.iter().filter(|code| **code == wanted.code()).count();
    assert_eq!(count(Status::SUCCESS), 4, "{codes:?}");
    assert_eq!(count(Status::ABORT_LIMIT_EXCEEDED), 4, "{codes:?}");
}
