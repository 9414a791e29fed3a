//! Discovery sessions and text requests.

use export::{Access, Auth, Peer, Reason};
use iscsi::wire::bhs::{FINAL, LogoutRequest, TextResponse, of_target};
use iscsi::wire::login::CONTINUE;
use iscsi::wire::opcode;

use crate::initiator::{Initiator, NAME, NONE, text_of};
use crate::world::{TARGET, World, disk};

const DISCOVERY: &[(&str, &str)] = &[("InitiatorName", NAME), ("SessionType", "Discovery")];

fn discovering(world: &mut World) -> Initiator {
    let id = world.open();
    let mut initiator = Initiator::new(id);
    let response = initiator.login(world, DISCOVERY);
    assert_eq!(response.login_status(), 0);
    assert_eq!(response.value("TargetPortalGroupTag"), None);
    assert!(world.conn(id).is_established());
    initiator
}

#[test]
fn targets_are_listed_with_the_address_reached() {
    let mut world = World::new();
    world.catalogue.publish(disk("nqn.2026-01.org.example:b", Access::ReadOnly, 512, 512));
    let mut initiator = discovering(&mut world);
    let pdus = initiator.text(&mut world, FINAL, NONE, &text_of(&[("SendTargets", "All")]));
    let address = ("TargetAddress", "192.0.2.1:3260,1");
    let other = ("TargetName", "iqn.2026-01.org.example:b");
    assert_eq!(pdus[0].pairs(), [("TargetName", TARGET), address, other, address]);
    let response = TextResponse::of(&pdus[0].header);
    assert_eq!((response.flags, response.ttt.get()), (FINAL, NONE));
    let one = text_of(&[("SendTargets", other.1), ("X-a", "1")]);
    let pdus = initiator.text(&mut world, FINAL, NONE, &one);
    assert_eq!(pdus[0].pairs(), [other, address, ("X-a", "NotUnderstood")]);
    let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST));
    (logout.flags, logout.cmd_sn) = (FINAL, initiator.cmd_sn.into());
    world.send(initiator.id, &initiator.pdu(&logout, &[]));
    let pdus = initiator.received(&mut world);
    assert_eq!((pdus[0].opcode(), pdus.len()), (opcode::LOGOUT_RESPONSE, 1));
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Peer));
    world.end_all();
}

#[test]
fn long_list_of_targets_is_continued() {
    let mut world = with_long_list();
    let mut initiator = discovering(&mut world);
    let mut text = Vec::new();
    let (mut ttt, mut request) = (NONE, text_of(&[("SendTargets", "All")]));
    loop {
        let pdus = initiator.text(&mut world, FINAL, ttt, &request);
        let response = TextResponse::of(&pdus[0].header);
        assert!(pdus.len() == 1 && pdus[0].data.len() <= 8192);
        text.extend(&pdus[0].data);
        if response.flags & FINAL != 0 {
            break;
        }
        assert_eq!(response.flags, CONTINUE);
        (ttt, request) = (response.ttt.get(), Vec::new());
    }
    assert_eq!(iscsi::wire::text::parse(&text).unwrap().len(), 602);
    world.end_all();
}

#[test]
fn discovery_session_has_no_disk() {
    let mut world = World::new();
    let mut initiator = discovering(&mut world);
    let pdus = initiator.command(&mut world, [0; 16], 0, 0, &[]);
    assert_eq!(pdus[0].opcode(), opcode::REJECT);
    assert!(world.conn(initiator.id).is_open());
    world.end_all();
}

#[test]
fn normal_session_lists_only_its_own_target() {
    let mut world = World::new();
    world.catalogue.publish(disk("nqn.2026-01.org.example:b", Access::ReadOnly, 512, 512));
    let mut initiator = Initiator::attached(&mut world);
    let mut ask = |value: &str| {
        let text = text_of(&[("SendTargets", value)]);
        let pdus = initiator.text(&mut world, FINAL, NONE, &text);
        pdus[0].data.clone()
    };
    let own = text_of(&[("TargetName", TARGET), ("TargetAddress", "192.0.2.1:3260,1")]);
    assert_eq!(ask(""), own);
    assert_eq!(ask(TARGET), own);
    assert_eq!(ask("iqn.2026-01.org.example:b"), []);
    assert_eq!(ask("All"), text_of(&[("SendTargets", "Reject")]));
    world.end_all();
}

/// Its scope is known to the initiator only, which uses the address of the discovery instead.
#[test]
fn link_local_address_is_not_listed() {
    let mut world = World::new();
    let address = |text: &str| text.parse().unwrap();
    let (remote, local) = (address("[fe80::2%3]:1024"), address("[fe80::1%3]:3260"));
    let id = world.open_as(Peer::ip(remote, local, Auth::None));
    let mut initiator = Initiator::new(id);
    assert_eq!(initiator.login(&mut world, DISCOVERY).login_status(), 0);
    let pdus = initiator.text(&mut world, FINAL, NONE, &text_of(&[("SendTargets", "All")]));
    assert_eq!(pdus[0].pairs(), [("TargetName", TARGET)]);
    world.end_all();
}

/// Publishes so many disks that their list does not fit into one response.
fn with_long_list() -> World {
    let world = World::new();
    for n in 0..300 {
        let id = format!("nqn.2026-01.org.example:{n}");
        world.catalogue.publish(disk(&id, Access::ReadOnly, 512, 512));
    }
    world
}

#[test]
fn keys_behind_an_unsent_response_are_rejected() {
    let mut world = with_long_list();
    let mut initiator = discovering(&mut world);
    let all = text_of(&[("SendTargets", "All")]);
    let pdus = initiator.text(&mut world, FINAL, NONE, &all);
    let ttt = TextResponse::of(&pdus[0].header).ttt.get();
    for text in [&all[..], &text_of(&[("X-a", "1")])] {
        let pdus = initiator.text(&mut world, FINAL, ttt, text);
        assert_eq!(pdus[0].opcode(), opcode::REJECT);
    }
    let pdus = initiator.text(&mut world, FINAL, ttt, &[]);
    assert_eq!(pdus[0].opcode(), opcode::TEXT_RESPONSE);
    world.end_all();
}

#[test]
fn targets_are_listed_once_in_an_exchange() {
    let mut world = World::new();
    let twice = text_of(&[("SendTargets", "All"), ("SendTargets", "All")]);
    let mut initiator = discovering(&mut world);
    initiator.text(&mut world, FINAL, NONE, &twice);
    assert_eq!(world.conn(initiator.id).reported(), ["violation KeyInvalid"]);
    let mut initiator = discovering(&mut world);
    let all = text_of(&[("SendTargets", "All")]);
    let pdus = initiator.text(&mut world, 0, NONE, &all);
    let ttt = TextResponse::of(&pdus[0].header).ttt.get();
    initiator.text(&mut world, 0, ttt, &all);
    assert_eq!(world.conn(initiator.id).reported(), ["violation KeyInvalid"]);
    world.end_all();
}

/// Case X34: texts in full feature phase that never end.
#[test]
fn x34_endless_text_is_dropped() {
    let mut world = World::new();
    let mut initiator = discovering(&mut world);
    let mut ttt = NONE;
    for _ in 0..4 {
        let pdus = initiator.text(&mut world, CONTINUE, ttt, &[b'a'; 5000]);
        match pdus.first().map(|pdu| pdu.opcode()) {
            Some(opcode::TEXT_RESPONSE) => ttt = TextResponse::of(&pdus[0].header).ttt.get(),
            _ => break,
        }
    }
    assert_eq!(world.conn(initiator.id).reported(), ["violation TextTooLong"]);
    let mut initiator = discovering(&mut world);
    let pdus = initiator.text(&mut world, FINAL, 77, &[]);
    assert_eq!(pdus[0].opcode(), opcode::REJECT);
    world.end_all();
}
