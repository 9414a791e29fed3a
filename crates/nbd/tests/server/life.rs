//! What happens around a connection: it ends, the program stops, a disk goes, the owner changes his mind.

use std::sync::Arc;

use export::{Access, Auth, Fault, Host, KeyId, Notice, Policy, Reason, Rule, Secret};
use nbd::server::Start;
use nbd::wire::errno;
use nbd::wire::request::{self, DISC};

use crate::says::{MODES, Mode, Say, attach, data_of, error_of, flags, go, read, replies, write};
use crate::world::{DISK, SIZE, World, disk, peer};

const MODE: Mode = Mode::Simple;

#[test]
fn a_client_that_says_it_is_done_gets_its_answers_first() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        world.send(id, &write(mode, 1, 0, &[1; 512]));
        world.send(id, &read(2, 512, 512).bytes(mode));
        let disc = [Say::new(DISC, 3, 0, 0).bytes(mode), b"whatever".to_vec()].concat();
        world.send(id, &disc);
        assert_eq!(world.conn(id).closed, None);
        world.finish_all(id);
        assert_eq!(replies(&world.heard(id), |n| if n == 2 { 512 } else { 0 }).len(), 2);
        assert_eq!(world.conn(id).closed, Some(Reason::Peer));
        let told = world.conn(id).told();
        assert_eq!(told, ["attached ", "detached (disconnected) 512 512"]);
        world.end_all();
    }
}

/// Case R31.
#[test]
fn r31_when_the_program_stops_what_the_disk_has_is_answered_and_the_rest_refused() {
    for mode in MODES {
        let mut world = World::new();
        let (idle, busy, haggling) =
            (attach(&mut world, mode), attach(&mut world, mode), world.open());
        world.conn(busy).hold = true;
        world.send(busy, &write(mode, 1, 0, &[1; 512]));
        // One whose payload is only half there.
        let half = write(mode, 2, 4096, &[2; 4096]);
        world.send(busy, &half[..half.len() - 2048]);
        world.notify(Notice::Stopping);
        assert_eq!(world.conn(idle).closed, Some(Reason::Stopping));
        assert_eq!(world.conn(haggling).closed, Some(Reason::Stopping));
        assert_eq!(world.conn(busy).closed, None);
        world.send(busy, &[2; 2048]);
        world.send(busy, &read(3, 0, 512).bytes(mode));
        let heard = replies(&world.heard(busy), |_| 512);
        let errors: Vec<_> = heard.iter().map(|reply| (reply.cookie, reply.error)).collect();
        assert_eq!(errors, [(2, errno::ESHUTDOWN), (3, errno::ESHUTDOWN)]);
        world.finish(busy, 0, Ok(()));
        assert_eq!(error_of(&world.heard(busy)), 0);
        assert_eq!(world.conn(busy).closed, Some(Reason::Stopping));
        assert_eq!((world.disk[0], world.disk[4096]), (1, 8));
        world.end_all();
    }
}

#[test]
fn r31_long_reads_are_cut_short_when_the_program_stops() {
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
        let heard = replies(&world.heard(id), |_| panic!("none is whole"));
        let ended = heard.iter().filter(|reply| reply.done).all(|reply| reply.error != 0);
        assert!(ended && heard.iter().filter(|reply| reply.done).count() == 3);
        world.end_all();
    }
}

#[test]
fn a_disk_that_is_gone_answers_with_eshutdown() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        world.send(id, &read(1, 512, 4).bytes(mode));
        world.catalogue.withdraw(DISK);
        world.notify(Notice::StateChanged);
        world.finish(id, 0, Ok(()));
        assert_eq!(data_of(&world.heard(id), 512, 4).unwrap(), [1; 4]);
        for bytes in [
            read(2, 0, 4).bytes(mode),
            write(mode, 2, 0, &[1; 512]),
            Say::new(request::FLUSH, 2, 0, 0).bytes(mode),
            Say::new(request::TRIM, 2, 0, 512).bytes(mode),
        ] {
            assert_eq!(error_of(&world.ask(id, &bytes)), errno::ESHUTDOWN);
        }
        let told = world.conn(id).told();
        assert_eq!(told.last().unwrap(), "detached (association ended) 0 0");
        world.end_all();
    }
}

/// Case R22.
#[test]
fn r22_a_disk_that_grows_or_shrinks_is_as_long_as_it_is() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let last = SIZE as u64 - 512;
        assert!(data_of(&world.ask(id, &read(1, last, 512).bytes(mode)), last, 512).is_ok());
        world.export().resize(SIZE as u64 / 2);
        world.notify(Notice::StateChanged);
        let heard = world.ask(id, &read(1, last, 512).bytes(mode));
        assert_eq!(data_of(&heard, last, 512), Err(errno::EINVAL));
        let heard = world.ask(id, &write(mode, 1, last, &[1; 512]));
        assert_eq!(error_of(&heard), errno::ENOSPC);
        world.export().resize(SIZE as u64);
        assert!(data_of(&world.ask(id, &read(1, last, 512).bytes(mode)), last, 512).is_ok());
        world.end_all();
    }
}

#[test]
fn a_disk_that_is_lent_in_another_way_must_be_looked_at_anew() {
    let mut world = World::new();
    let id = attach(&mut world, MODE);
    world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
}

/// Case R25: what a connection that is gone wrote last has landed before another one can write.
#[test]
fn r25_nobody_attaches_while_writes_of_an_ended_connection_are_on_their_way() {
    let mut world = World::new();
    let old = attach(&mut world, MODE);
    world.conn(old).hold = true;
    world.send(old, &write(MODE, 1, 0, &[1; 512]));
    world.send(old, &read(2, 0, 512).bytes(MODE));
    world.disconnect(old);
    let new = world.open();
    world.send(new, &[&flags()[..], &go("sda"), &write(MODE, 1, 0, &[2; 512])].concat());
    world.heard(new);
    assert_eq!(world.conn(new).told(), [""; 0]);
    world.notify(Notice::StateChanged);
    assert_eq!(world.disk[0], 0);
    world.finish(old, 0, Ok(()));
    assert_eq!(world.conn(new).told(), ["attached "], "the read need not be waited for");
    assert_eq!(world.disk[..512], [2; 512], "the newest data win");
    world.end_all();
}

#[test]
fn r25_who_waits_for_that_is_given_up_in_time() {
    let mut world = World::new();
    let old = attach(&mut world, MODE);
    world.conn(old).hold = true;
    world.send(old, &write(MODE, 1, 0, &[1; 512]));
    world.disconnect(old);
    let new = world.open();
    world.send(new, &[&flags()[..], &go("sda")].concat());
    world.pass(std::time::Duration::from_secs(10));
    assert_eq!(world.conn(new).closed, Some(Reason::Timeout));
    world.end_all();
}

fn policy(access: Access, key: u64) -> Policy {
    let host = Host {
        nqn: "nqn.host".to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(key),
        tls: Some(Secret::new(vec![1])),
        tls_compat: false,
        chap: None,
        chap_controller: None,
        rules: vec![Rule { disk: None, access }],
    };
    Policy { hosts: vec![Arc::new(host)] }
}

/// Case X16.
#[test]
fn x16_who_is_taken_off_the_list_is_cut_off_and_who_may_only_read_now_writes_no_more() {
    let mut world = World::new();
    world.catalogue.set_policy(policy(Access::Writable, 7));
    let id = world.open_as(peer(Auth::Required, Some(7)), Start::InTls { no_zeroes: true });
    world.send(id, &go("sda"));
    world.heard(id);
    assert_eq!(error_of(&world.ask(id, &write(MODE, 1, 0, &[1; 512]))), 0);
    world.catalogue.set_policy(policy(Access::ReadOnly, 7));
    world.notify(Notice::StateChanged);
    assert_eq!(error_of(&world.ask(id, &write(MODE, 1, 0, &[1; 512]))), errno::EPERM);
    world.conn(id).hold = true;
    world.send(id, &read(2, 0, 512).bytes(MODE));
    world.catalogue.set_policy(policy(Access::Writable, 8));
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
    assert_eq!(
        world.conn(id).told(),
        ["attached nqn.host", "refused sda", "detached (refused) 0 512"]
    );
    world.end_all();
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_anything_leaves_nothing() {
    for mode in MODES {
        let whole = [read(1, 3, 1 << 20).bytes(mode), write(mode, 2, 0, &[1; 4096])].concat();
        for cut in (0..whole.len()).step_by(if mode == Mode::Extended { 97 } else { 331 }) {
            let mut world = World::small(2 << 20, 512);
            let id = attach(&mut world, mode);
            world.conn(id).hold = cut % 2 == 0;
            world.conn(id).deaf = cut % 3 == 0;
            world.send(id, &whole[..cut]);
            if cut % 5 == 0 && !world.conn(id).jobs.is_empty() {
                world.finish(id, 0, Err(Fault::Io));
            }
            world.end_all();
        }
    }
}
