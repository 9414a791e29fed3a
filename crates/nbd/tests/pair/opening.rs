//! How a connection begins, and how it does not.

use export::{Access, Notice, Reason};
use nbd::client::{Client, End, Headers, Options, Purpose, Start, Step};
use nbd::server::{Next, greet};
use nbd::wire::option::INFO;

use crate::world::{SIZE, World, export};

#[test]
fn all_that_can_be_agreed_on_is() {
    let world = World::new(Options::new("sda"));
    let opened = world.heard.opened.unwrap();
    assert_eq!((opened.headers, opened.extents), (Headers::Extended, true));
    assert_eq!((opened.bytes, opened.minimum, opened.preferred), (SIZE as u64, 512, 4096));
    assert_eq!((opened.name.as_str(), opened.is_writable()), ("sda", true));
    assert_eq!(opened.largest, 32 << 20);
}

#[test]
fn each_of_the_older_ways_works_too() {
    for (extended, structured, headers) in
        [(false, true, Headers::Structured), (false, false, Headers::Simple)]
    {
        let mut world = World::new(Options { extended, structured, ..Options::new("sda") });
        let opened = world.heard.opened.take().unwrap();
        assert_eq!((opened.headers, opened.extents), (headers, headers != Headers::Simple));
        assert_eq!(world.read(512, 1024).unwrap(), world.disk[512..1536]);
    }
}

#[test]
fn the_empty_name_is_the_only_disk() {
    let world = World::new(Options::new(""));
    assert_eq!(world.heard.opened.unwrap().name, "sda");
}

#[test]
fn a_read_only_disk_says_so() {
    let world = World::read_only();
    assert!(!world.heard.opened.unwrap().is_writable());
}

#[test]
fn what_is_lent_is_listed_and_looked_at() {
    let mut world = World::new(Options::list());
    let listed = world.heard.listed.take().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "sda");
    assert_eq!(world.heard.end, Some(End::Finished));
    world.reconnect(Options { purpose: Purpose::Look, ..Options::new("sda") });
    assert_eq!(world.heard.opened.take().unwrap().bytes, SIZE as u64, "{INFO}");
    assert_eq!(world.heard.end, Some(End::Finished));
}

#[test]
fn a_disk_that_is_not_lent_is_refused_and_both_leave() {
    let world = World::new(Options::new("sdb"));
    assert!(world.heard.opened.is_none());
    assert!(world.heard.refused.unwrap().to_string().contains("no such export"));
    assert_eq!(world.heard.end, Some(End::Finished));
    assert!(world.heard.closed.is_some());
}

#[test]
fn a_client_that_leaves_is_let_go() {
    let mut world = World::new(Options::new("sda"));
    world.client.disconnect();
    world.run();
    assert_eq!(world.heard.end, Some(End::Finished));
    assert_eq!(world.heard.closed, Some(Reason::Peer));
}

/// The prelude in the clear, and what follows it in a secured channel.
#[test]
fn x02_tls_is_agreed_on_in_the_clear_and_all_else_behind_it() {
    for secured_only in [true, false] {
        let mut greeter = greet(secured_only, true);
        let mut client = Client::new(Options { start: Start::Secure, ..Options::new("sda") });
        let (mut to_server, mut secured) = (Vec::new(), false);
        for _ in 0..10 {
            let reaction = greeter.receive(&to_server);
            to_server.drain(..reaction.take);
            assert_eq!(client.receive(&reaction.say), reaction.say.len());
            if reaction.then != Next::Wait {
                assert_eq!(reaction.then, Next::Secure { no_zeroes: true });
                secured = true;
            }
            while let Some(step) = client.poll() {
                match step {
                    Step::Send(segment) => to_server.extend(segment.parts().concat()),
                    Step::Secure => assert!(secured),
                    other => panic!("{other:?}"),
                }
            }
            if secured {
                break;
            }
        }
        assert!(secured && to_server.is_empty());
    }
    let world = World::secured(Options { start: Start::Secured, ..Options::new("sda") });
    assert_eq!(world.heard.opened.unwrap().headers, Headers::Extended);
}

#[test]
fn a_server_that_knows_no_tls_lets_nobody_in_who_wants_it() {
    let world = World::new(Options { start: Start::Secure, ..Options::new("sda") });
    assert!(!world.heard.secure);
    assert!(world.heard.refused.unwrap().to_string().contains("no TLS"));
}

#[test]
fn a_disk_that_is_lent_again_is_another_size() {
    let mut world = World::new(Options::new("sda"));
    let mut smaller = export(Access::Writable);
    smaller.resize(SIZE as u64 / 2);
    world.catalogue.withdraw("nqn.x:sda");
    smaller.access = Access::ReadOnly;
    world.catalogue.publish(std::sync::Arc::new(smaller));
    world.notify(&Notice::StateChanged);
    world.reconnect(Options::new("sda"));
    let opened = world.heard.opened.unwrap();
    assert_eq!((opened.bytes, opened.is_writable()), (SIZE as u64 / 2, false));
}
