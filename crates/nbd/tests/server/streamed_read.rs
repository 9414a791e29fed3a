//! Reads whose simple reply is sent in several pieces.

use export::{Fault, Notice, Reason};
use nbd::wire::errno;

use crate::messages::{Mode, RequestHeader, attach, data_of, error_of, read, replies};
use crate::world::{SIZE, World};

const MODE: Mode = Mode::Simple;

#[test]
fn pieces_completed_in_any_order_are_sent_in_order() {
    for order in [[0, 0, 0, 0], [3, 2, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0]] {
        let mut world = World::new();
        let id = attach(&mut world, MODE);
        world.conn(id).hold = true;
        world.send(id, &read(1, 700, 1 << 20).bytes(MODE));
        for index in order {
            world.finish(id, index, Ok(()));
        }
        world.finish_all(id);
        let received = world.received(id);
        assert_eq!(data_of(&received, 700, 1 << 20).unwrap(), world.disk[700..700 + (1 << 20)]);
        world.end_all();
    }
}

#[test]
fn other_replies_wait_for_a_streamed_read() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.conn(id).hold = true;
    world.send(id, &read(1, 0, 600 << 10).bytes(MODE));
    world.send(id, &read(2, 0, 512).bytes(MODE));
    world.send(id, &read(3, 0, 600 << 10).bytes(MODE));
    world.send(id, &RequestHeader::new(nbd::wire::request::FLUSH, 4, 0, 0).bytes(MODE));
    assert_eq!(world.jobs(id).len(), 5, "the second long read waits");
    world.finish(id, 3, Ok(()));
    assert_eq!(replies(&world.received(id), |_| 512).len(), 1, "no streamed reply has begun");
    world.finish(id, 0, Ok(()));
    world.finish(id, 2, Ok(()));
    assert_eq!(world.received(id).len(), 16 + (256 << 10), "the flush's reply waits");
    world.finish_all(id);
    let received = world.received(id);
    let (first, rest) = received.split_at(344 << 10);
    assert!(first == &world.disk[256 << 10..600 << 10]);
    let lens = |cookie| if cookie == 3 { 600 << 10 } else { 0 };
    let rest = replies(rest, lens);
    assert_eq!(rest.iter().map(|reply| reply.cookie).collect::<Vec<_>>(), [4, 3]);
    assert!(rest[1].data == world.disk[..600 << 10]);
    world.end_all();
}

/// NBD, Simple reply: after the header an error can only be signalled by closing.
#[test]
fn read_error_is_replied_or_closes_after_the_header() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.conn(id).hold = true;
    world.send(id, &read(1, 0, SIZE as u64).bytes(MODE));
    world.finish(id, 1, Err(Fault::Io));
    world.finish_all(id);
    assert_eq!(error_of(&world.received(id)), errno::EIO);
    world.send(id, &read(2, 0, SIZE as u64).bytes(MODE));
    world.finish(id, 0, Ok(()));
    world.finish(id, 0, Err(Fault::Io));
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}

#[test]
fn streamed_read_memory_is_bounded() {
    let mut world = World::with_pool(1 << 20);
    let id = attach(&mut world, MODE);
    world.conn(id).not_receiving = true;
    world.send(id, &read(1, 0, SIZE as u64).bytes(MODE));
    assert!(world.conn(id).wire.len() <= 16 + (1 << 20), "the peer does not receive");
    while world.conn(id).wire.len() < 16 + SIZE {
        world.receive_all(id);
        world.conn(id).not_receiving = true;
        world.run();
    }
    let received = world.received(id);
    assert_eq!(data_of(&received, 0, SIZE).unwrap(), world.disk);
    world.end_all();
}

#[test]
fn nothing_is_sent_after_a_truncated_streamed_reply() {
    let mut world = World::with_pool(1 << 20);
    let id = attach(&mut world, MODE);
    world.conn(id).not_receiving = true;
    world.send(id, &read(1, 0, SIZE as u64).bytes(MODE));
    world.send(id, &read(2, 0, 200 << 10).bytes(MODE));
    world.send(id, &read(3, 0, 200 << 10).bytes(MODE));
    assert_eq!(world.waiting(id), 0, "the last read waits for memory");
    world.notify(Notice::Stopping);
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}
