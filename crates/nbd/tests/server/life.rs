//! Disconnects, shutdown, removed and changed disks, changed access rules.

use std::sync::Arc;

use export::{Access, Auth, Fault, Host, KeyId, Notice, Policy, Reason, Rule, Secret};
use nbd::credential::tls_psk;
use nbd::server::Start;
use nbd::wire::errno;
use nbd::wire::option;
use nbd::wire::request::{self, DISC};

use crate::messages::{
    MODES, Mode, RequestHeader, attach, data_of, error_of, flags, go, read, replies, write,
};
use crate::world::{DISK, SIZE, World, disk, peer};

const MODE: Mode = Mode::Simple;

#[test]
fn requests_before_disc_complete() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        world.send(id, &write(mode, 1, 0, &[1; 512]));
        world.send(id, &read(2, 512, 512).bytes(mode));
        let disc = [RequestHeader::new(DISC, 3, 0, 0).bytes(mode), b"whatever".to_vec()].concat();
        world.send(id, &disc);
        assert_eq!(world.conn(id).closed, None);
        world.finish_all(id);
        assert_eq!(replies(&world.received(id), |n| if n == 2 { 512 } else { 0 }).len(), 2);
        assert_eq!(world.conn(id).closed, Some(Reason::Peer));
        let reported = world.conn(id).reported();
        assert_eq!(reported, ["attached ", "detached (disconnected) 512 512"]);
        world.end_all();
    }
}

/// Case R31.
#[test]
fn r31_shutdown_completes_submitted_requests_only() {
    for mode in MODES {
        let mut world = World::new();
        let (idle, busy, in_options) =
            (attach(&mut world, mode), attach(&mut world, mode), world.open());
        world.conn(busy).hold = true;
        world.send(busy, &write(mode, 1, 0, &[1; 512]));
        // A write with an incomplete payload.
        let half = write(mode, 2, 4096, &[2; 4096]);
        world.send(busy, &half[..half.len() - 2048]);
        world.notify(Notice::Stopping);
        assert_eq!(world.conn(idle).closed, Some(Reason::Stopping));
        assert_eq!(world.conn(in_options).closed, Some(Reason::Stopping));
        assert_eq!(world.conn(busy).closed, None);
        world.send(busy, &[2; 2048]);
        world.send(busy, &read(3, 0, 512).bytes(mode));
        let received = replies(&world.received(busy), |_| 512);
        let errors: Vec<_> = received.iter().map(|reply| (reply.cookie, reply.error)).collect();
        assert_eq!(errors, [(2, errno::ESHUTDOWN), (3, errno::ESHUTDOWN)]);
        world.finish(busy, 0, Ok(()));
        assert_eq!(error_of(&world.received(busy)), 0);
        assert_eq!(world.conn(busy).closed, Some(Reason::Stopping));
        assert_eq!((world.disk[0], world.disk[4096]), (1, 8));
        world.end_all();
    }
}

#[test]
fn r31_shutdown_ends_long_reads_with_an_error() {
    for mode in MODES {
        let mut world = World::with_pool(256 << 10);
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        for cookie in 0..3 {
            world.send(id, &read(cookie, 0, SIZE as u64).bytes(mode));
        }
        world.notify(Notice::Stopping);
        world.finish_all(id);
        assert_eq!(world.conn(id).closed, Some(Reason::Stopping));
        let received = replies(&world.received(id), |_| panic!("no read is complete"));
        let ended = received.iter().filter(|reply| reply.done).all(|reply| reply.error != 0);
        assert!(ended && received.iter().filter(|reply| reply.done).count() == 3);
        world.end_all();
    }
}

#[test]
fn withdrawn_disk_fails_requests_with_eshutdown() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        world.send(id, &read(1, 512, 4).bytes(mode));
        world.catalogue.withdraw(&DISK.into());
        world.notify(Notice::StateChanged);
        world.finish(id, 0, Ok(()));
        assert_eq!(data_of(&world.received(id), 512, 4).unwrap(), [1; 4]);
        for bytes in [
            read(2, 0, 4).bytes(mode),
            write(mode, 2, 0, &[1; 512]),
            RequestHeader::new(request::FLUSH, 2, 0, 0).bytes(mode),
            RequestHeader::new(request::TRIM, 2, 0, 512).bytes(mode),
        ] {
            assert_eq!(error_of(&world.exchange(id, &bytes)), errno::ESHUTDOWN);
        }
        let reported = world.conn(id).reported();
        assert_eq!(reported.last().unwrap(), "detached (association ended) 0 0");
        world.end_all();
    }
}

/// Case R22.
#[test]
fn r22_requests_follow_the_current_disk_size() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let last = SIZE as u64 - 512;
        assert!(data_of(&world.exchange(id, &read(1, last, 512).bytes(mode)), last, 512).is_ok());
        world.export().resize(SIZE as u64 / 2);
        world.notify(Notice::StateChanged);
        let received = world.exchange(id, &read(1, last, 512).bytes(mode));
        assert_eq!(data_of(&received, last, 512), Err(errno::EINVAL));
        let received = world.exchange(id, &write(mode, 1, last, &[1; 512]));
        assert_eq!(error_of(&received), errno::ENOSPC);
        world.export().resize(SIZE as u64);
        assert!(data_of(&world.exchange(id, &read(1, last, 512).bytes(mode)), last, 512).is_ok());
        world.end_all();
    }
}

#[test]
fn republished_export_closes_the_connection() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
}

/// Case R25: the writes of a lost connection complete before another one can write.
#[test]
fn r25_attach_waits_for_writes_of_lost_connections() {
    let mut world = World::new();
    let old = attach(&mut world, MODE);
    world.conn(old).hold = true;
    world.send(old, &write(MODE, 1, 0, &[1; 512]));
    world.send(old, &read(2, 0, 512).bytes(MODE));
    world.disconnect(old);
    let new = world.open();
    world.send(new, &[&flags()[..], &go("sda"), &write(MODE, 1, 0, &[2; 512])].concat());
    world.received(new);
    assert_eq!(world.conn(new).reported(), [""; 0]);
    world.notify(Notice::StateChanged);
    assert_eq!(world.disk[0], 0);
    world.finish(old, 0, Ok(()));
    assert_eq!(world.conn(new).reported(), ["attached "], "reads do not delay the attach");
    assert_eq!(world.disk[..512], [2; 512], "newest data");
    world.end_all();
}

#[test]
fn r25_waiting_attach_times_out() {
    let mut world = World::new();
    let old = attach(&mut world, MODE);
    world.conn(old).hold = true;
    world.send(old, &write(MODE, 1, 0, &[1; 512]));
    world.disconnect(old);
    let new = world.open();
    world.send(new, &[&flags()[..], &go("sda")].concat());
    world.advance(std::time::Duration::from_secs(10));
    assert_eq!(world.conn(new).closed, Some(Reason::Timeout));
    world.end_all();
}

fn policy(access: Access, key: u64) -> Policy {
    let host = Host {
        id: "nqn.host".to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(key),
        credentials: vec![tls_psk(Secret::new(vec![1]))],
        rules: vec![Rule { disk: None, access }],
    };
    Policy { hosts: vec![Arc::new(host)] }
}

/// Case X16.
#[test]
fn x16_policy_change_revokes_access() {
    let mut world = World::new();
    world.catalogue.set_policy(policy(Access::Writable, 7));
    let id = world.open_as(peer(Auth::Required, Some(7)), Start::InTls { no_zeroes: true });
    world.send(id, &go("sda"));
    world.received(id);
    assert_eq!(error_of(&world.exchange(id, &write(MODE, 1, 0, &[1; 512]))), 0);
    world.catalogue.set_policy(policy(Access::ReadOnly, 7));
    world.notify(Notice::StateChanged);
    assert_eq!(error_of(&world.exchange(id, &write(MODE, 1, 0, &[1; 512]))), errno::EPERM);
    world.conn(id).hold = true;
    world.send(id, &read(2, 0, 512).bytes(MODE));
    world.catalogue.set_policy(policy(Access::Writable, 8));
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
    assert_eq!(
        world.conn(id).reported(),
        ["attached nqn.host", "refused sda", "detached (refused) 0 512"]
    );
    world.end_all();
}

#[test]
fn disconnect_at_any_byte_leaks_nothing() {
    for mode in MODES {
        let whole = [read(1, 3, 1 << 20).bytes(mode), write(mode, 2, 0, &[1; 4096])].concat();
        for cut in (0..whole.len()).step_by(if mode == Mode::Extended { 97 } else { 331 }) {
            let mut world = World::small(2 << 20, 512);
            let id = attach(&mut world, mode);
            world.conn(id).hold = cut % 2 == 0;
            world.conn(id).not_receiving = cut % 3 == 0;
            world.send(id, &whole[..cut]);
            if cut % 5 == 0 && !world.jobs(id).is_empty() {
                world.finish(id, 0, Err(Fault::Io));
            }
            world.end_all();
        }
    }
}

/// A home directory is used by one host at a time.
#[test]
fn home_is_refused_by_policy_to_a_second_host() {
    let mut world = World::small(1 << 20, 512);
    let mut home = Arc::into_inner(disk(Access::Writable, 512, 1 << 20)).unwrap();
    home.home = Some(export::Home { user: "alice".to_owned(), signing_key: None });
    world.catalogue.publish(Arc::new(home));
    let hosts = [(7, "nqn.first"), (8, "nqn.second")].map(|(key, id)| {
        let host = Arc::unwrap_or_clone(policy(Access::Writable, key).hosts.remove(0));
        Arc::new(Host { id: id.to_owned(), name: id.to_owned(), ..host })
    });
    world.catalogue.set_policy(Policy { hosts: hosts.into() });
    let open = |world: &mut World, key| {
        let id = world.open_as(peer(Auth::Required, Some(key)), Start::InTls { no_zeroes: true });
        let answer = world.exchange(id, &go("sda"));
        (id, u32::from_be_bytes(answer[12..16].try_into().unwrap()))
    };
    let (first, granted) = open(&mut world, 7);
    assert_ne!(granted, option::ERR_POLICY);
    assert_eq!(error_of(&world.exchange(first, &write(MODE, 1, 0, &[1; 512]))), 0);
    assert_eq!(open(&mut world, 8).1, option::ERR_POLICY);
    world.send(first, &RequestHeader::new(DISC, 2, 0, 0).bytes(MODE));
    assert_ne!(open(&mut world, 8).1, option::ERR_POLICY);
    world.end_all();
}
