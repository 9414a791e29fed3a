//! Option negotiation: exports opened, listed and refused.

use export::{Access, Notice, Reason};
use nbd::client::{Client, End, Headers, Options, Purpose, Start, Step};
use nbd::server::{Next, greet};
use nbd::wire::option::INFO;

use crate::world::{SIZE, World, export};

#[test]
fn all_extensions_are_negotiated() {
    let world = World::new(Options::new("sda"));
    let opened = world.events.opened.unwrap();
    assert_eq!((opened.headers, opened.extents), (Headers::Extended, true));
    assert_eq!((opened.bytes, opened.minimum, opened.preferred), (SIZE as u64, 512, 4096));
    assert_eq!((opened.name.as_str(), opened.is_writable()), ("sda", true));
    assert_eq!(opened.maximum, 32 << 20);
}

#[test]
fn older_reply_forms_are_negotiated() {
    for (extended, structured, headers) in
        [(false, true, Headers::Structured), (false, false, Headers::Simple)]
    {
        let mut world = World::new(Options { extended, structured, ..Options::new("sda") });
        let opened = world.events.opened.take().unwrap();
        assert_eq!((opened.headers, opened.extents), (headers, headers != Headers::Simple));
        assert_eq!(world.read(512, 1024).unwrap(), world.disk[512..1536]);
    }
}

#[test]
fn empty_name_opens_the_only_disk() {
    let world = World::new(Options::new(""));
    assert_eq!(world.events.opened.unwrap().name, "sda");
}

#[test]
fn read_only_disk_is_advertised() {
    let world = World::read_only();
    assert!(!world.events.opened.unwrap().is_writable());
}

#[test]
fn exports_are_listed_and_queried() {
    let mut world = World::new(Options::list());
    let listed = world.events.listed.take().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "sda");
    assert_eq!(world.events.end, Some(End::Finished));
    world.reconnect(Options { purpose: Purpose::Info, ..Options::new("sda") });
    assert_eq!(world.events.opened.take().unwrap().bytes, SIZE as u64, "{INFO}");
    assert_eq!(world.events.end, Some(End::Finished));
}

#[test]
fn unknown_export_is_refused_and_closed() {
    let world = World::new(Options::new("sdb"));
    assert!(world.events.opened.is_none());
    assert!(world.events.refused.unwrap().to_string().contains("no such export"));
    assert_eq!(world.events.end, Some(End::Finished));
    assert!(world.events.closed.is_some());
}

#[test]
fn client_disconnect_closes_the_session() {
    let mut world = World::new(Options::new("sda"));
    world.client.disconnect();
    world.run();
    assert_eq!(world.events.end, Some(End::Finished));
    assert_eq!(world.events.closed, Some(Reason::Peer));
}

/// STARTTLS in the clear, everything else inside TLS.
#[test]
fn x02_only_starttls_is_negotiated_in_the_clear() {
    for tls_required in [true, false] {
        let mut greeter = greet(tls_required, true);
        let mut client = Client::new(Options { start: Start::StartTls, ..Options::new("sda") });
        let (mut to_server, mut secured) = (Vec::new(), false);
        for _ in 0..10 {
            let output = greeter.receive(&to_server);
            to_server.drain(..output.consumed);
            assert_eq!(client.receive(&output.reply), output.reply.len());
            if output.next != Next::Wait {
                assert_eq!(output.next, Next::StartTls { no_zeroes: true });
                secured = true;
            }
            while let Some(step) = client.poll() {
                match step {
                    Step::Send(segment) => to_server.extend(segment.parts().concat()),
                    Step::StartTls => assert!(secured),
                    other => panic!("{other:?}"),
                }
            }
            if secured {
                break;
            }
        }
        assert!(secured && to_server.is_empty());
    }
    let world = World::tls_established(Options { start: Start::InTls, ..Options::new("sda") });
    assert_eq!(world.events.opened.unwrap().headers, Headers::Extended);
}

#[test]
fn client_requiring_tls_refuses_a_server_without() {
    let world = World::new(Options { start: Start::StartTls, ..Options::new("sda") });
    assert!(!world.events.secure);
    assert!(world.events.refused.unwrap().to_string().contains("does not offer TLS"));
}

#[test]
fn republished_export_has_its_new_size() {
    let mut world = World::new(Options::new("sda"));
    let mut smaller = export(Access::Writable);
    smaller.resize(SIZE as u64 / 2);
    world.catalogue.withdraw(&"nqn.x:sda".into());
    smaller.access = Access::ReadOnly;
    world.catalogue.publish(std::sync::Arc::new(smaller));
    world.notify(Notice::StateChanged);
    world.reconnect(Options::new("sda"));
    let opened = world.events.opened.unwrap();
    assert_eq!((opened.bytes, opened.is_writable()), (SIZE as u64 / 2, false));
}
