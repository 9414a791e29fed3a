//! Reads whose simple reply takes several pieces.

use export::{Fault, Reason};
use nbd::wire::errno;

use crate::says::{Mode, Say, attach, data_of, error_of, read, replies};
use crate::world::{SIZE, World};

const MODE: Mode = Mode::Simple;

#[test]
fn pieces_that_come_in_any_order_are_sent_in_order() {
    for order in [[0, 0, 0, 0], [3, 2, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0]] {
        let mut world = World::new();
        let id = attach(&mut world, MODE);
        world.conn(id).hold = true;
        world.send(id, &read(1, 700, 1 << 20).bytes(MODE));
        for which in order {
            world.finish(id, which, Ok(()));
        }
        world.finish_all(id);
        let heard = world.heard(id);
        assert_eq!(data_of(&heard, 700, 1 << 20).unwrap(), world.disk[700..700 + (1 << 20)]);
        world.end_all();
    }
}

#[test]
fn nothing_comes_between_and_what_waited_comes_after() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.conn(id).hold = true;
    world.send(id, &read(1, 0, 600 << 10).bytes(MODE));
    world.send(id, &read(2, 0, 512).bytes(MODE));
    world.send(id, &read(3, 0, 600 << 10).bytes(MODE));
    world.send(id, &Say::new(nbd::wire::request::FLUSH, 4, 0, 0).bytes(MODE));
    assert_eq!(world.conn(id).jobs.len(), 5, "the second long read waits");
    world.finish(id, 3, Ok(()));
    assert_eq!(replies(&world.heard(id), |_| 512).len(), 1, "nothing has begun yet");
    world.finish(id, 0, Ok(()));
    world.finish(id, 2, Ok(()));
    assert_eq!(world.heard(id).len(), 16 + (256 << 10), "the flush's reply waits");
    world.finish_all(id);
    let heard = world.heard(id);
    let (first, rest) = heard.split_at(344 << 10);
    assert!(first == &world.disk[256 << 10..600 << 10]);
    let lens = |cookie| if cookie == 3 { 600 << 10 } else { 0 };
    let rest = replies(rest, lens);
    assert_eq!(rest.iter().map(|reply| reply.cookie).collect::<Vec<_>>(), [4, 3]);
    assert!(rest[1].data == world.disk[..600 << 10]);
    world.end_all();
}

/// NBD, Simple reply: an error after the header has no other way to be said.
#[test]
fn a_piece_that_fails_is_an_error_before_the_header_and_the_end_after_it() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.conn(id).hold = true;
    world.send(id, &read(1, 0, SIZE as u64).bytes(MODE));
    world.finish(id, 1, Err(Fault::Io));
    world.finish_all(id);
    assert_eq!(error_of(&world.heard(id)), errno::EIO);
    world.send(id, &read(2, 0, SIZE as u64).bytes(MODE));
    world.finish(id, 0, Ok(()));
    world.finish(id, 0, Err(Fault::Io));
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}

#[test]
fn it_takes_little_memory_however_long_it_is() {
    let mut world = World::with_pool(1 << 20);
    let id = attach(&mut world, MODE);
    world.conn(id).deaf = true;
    world.send(id, &read(1, 0, SIZE as u64).bytes(MODE));
    assert!(world.conn(id).wire.len() <= 16 + (1 << 20), "the peer reads nothing");
    while world.conn(id).wire.len() < 16 + SIZE {
        world.listen(id);
        world.conn(id).deaf = true;
        world.run();
    }
    let heard = world.heard(id);
    assert_eq!(data_of(&heard, 0, SIZE).unwrap(), world.disk);
    world.end_all();
}
