//! Task management, pings, logout, the end of the program.

use std::sync::Arc;
use std::time::Duration;

use export::{Access, Auth, Host, KeyId, Notice, Policy, Reason, Rule, Secret};
use iscsi::chap::Algorithm;
use iscsi::credential::chap_initiator;
use iscsi::wire::bhs::{
    self, AsyncMessage, FINAL, LogoutRequest, LogoutResponse, NopIn, NopOut, TaskRequest,
    TaskResponse, of_target,
};
use iscsi::wire::login::{FULL_FEATURE, TRANSIT};
use iscsi::wire::opcode::{self, IMMEDIATE, function, function_response};
use iscsi::wire::text;

use crate::initiator::{Initiator, NONE, Pdu, SHORT, sense, status, text_of, write_10};
use crate::world::{World, peer};

/// Sends a task management function.
fn manage(world: &mut World, initiator: &mut Initiator, code: u8, ref_tag: u32) -> Vec<Pdu> {
    let mut request = TaskRequest::of(&of_target(opcode::TASK_REQUEST | IMMEDIATE));
    request.flags = FINAL | code;
    (request.itt, request.ref_tag) = (0x77.into(), ref_tag.into());
    request.cmd_sn = initiator.cmd_sn.into();
    world.send(initiator.id, &initiator.pdu(&request, &[]));
    initiator.received(world)
}

/// Returns the response to a function.
fn response(pdus: &[Pdu]) -> u8 {
    let last = pdus.last().expect("a response");
    assert_eq!(last.opcode(), opcode::TASK_RESPONSE);
    assert_eq!(last.header.itt.get(), 0x77);
    TaskResponse::of(&last.header).response
}

/// Attaches, and holds a write of 512 bytes on the disk. Returns its tag.
fn busy(world: &mut World) -> (Initiator, u32) {
    let mut initiator = Initiator::attached(world);
    world.conn(initiator.id).hold = true;
    let command = initiator.scsi(write_10(0, 1), FINAL | bhs::WRITE, 512);
    world.send(initiator.id, &initiator.pdu(&command, &[1; 512]));
    (initiator, command.itt.get())
}

#[test]
fn functions_are_answered_when_tasks_are_off_the_disk() {
    for code in [
        function::ABORT_TASK,
        function::ABORT_TASK_SET,
        function::LOGICAL_UNIT_RESET,
        function::TARGET_WARM_RESET,
    ] {
        let mut world = World::new();
        let (mut initiator, itt) = busy(&mut world);
        assert_eq!(manage(&mut world, &mut initiator, code, itt), []);
        world.finish(initiator.id, 0, Ok(()));
        let pdus = initiator.received(&mut world);
        assert_eq!((pdus.len(), response(&pdus)), (1, function_response::COMPLETE), "{code}");
        world.conn(initiator.id).hold = false;
        let pdus = initiator.read(&mut world, 0, 1);
        match code {
            function::ABORT_TASK | function::ABORT_TASK_SET => assert_eq!(status(&pdus), 0),
            _ => assert_eq!(sense(&pdus), (6, 0x29, 3)),
        }
        world.end_all();
    }
}

#[test]
fn reset_aborts_the_tasks_of_other_sessions() {
    let mut world = World::new();
    let (other, _) = busy(&mut world);
    let mut initiator = {
        let id = world.open();
        let mut initiator = Initiator::new(id);
        initiator.isid[5] = 9;
        assert_eq!(initiator.login(&mut world, SHORT).login_status(), 0);
        initiator.ready(&mut world);
        initiator
    };
    assert_eq!(manage(&mut world, &mut initiator, function::LOGICAL_UNIT_RESET, 0), []);
    world.finish(other.id, 0, Ok(()));
    let pdus = initiator.received(&mut world);
    assert_eq!(response(&pdus), function_response::COMPLETE);
    // An aborted task has no status: a NOP-In, to which no answer is due, opens the window again.
    let pdus = other.received(&mut world);
    let nop = NopIn::of(&pdus[0].header);
    assert_eq!((pdus.len(), pdus[0].opcode(), nop.itt.get()), (1, opcode::NOP_IN, NONE));
    assert_eq!((nop.ttt.get(), nop.numbers.max_cmd_sn.get()), (NONE, other.cmd_sn + 127));
    world.conn(other.id).hold = false;
    let mut other = other;
    assert_eq!(sense(&other.read(&mut world, 0, 1)), (6, 0x29, 3));
    world.end_all();
}

#[test]
fn reset_waits_for_writes_of_sessions_that_have_ended() {
    for ends_before in [false, true] {
        let mut world = World::new();
        let mut initiator = Initiator::attached(&mut world);
        let other = {
            let id = world.open();
            let mut other = Initiator::new(id);
            other.isid[5] = 9;
            assert_eq!(other.login(&mut world, SHORT).login_status(), 0);
            other.ready(&mut world);
            world.conn(id).hold = true;
            other.command(&mut world, write_10(0, 1), bhs::WRITE, 512, &[1; 512]);
            other
        };
        if ends_before {
            world.disconnect(other.id);
        }
        assert_eq!(manage(&mut world, &mut initiator, function::LOGICAL_UNIT_RESET, 0), []);
        if !ends_before {
            world.disconnect(other.id);
        }
        assert_eq!(initiator.received(&mut world), []);
        world.finish(other.id, 0, Ok(()));
        let pdus = initiator.received(&mut world);
        assert_eq!(response(&pdus), function_response::COMPLETE);
        world.end_all();
    }
}

#[test]
fn functions_without_a_task_are_answered_at_once() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    for (code, expected) in [
        (function::ABORT_TASK, function_response::NO_TASK),
        (function::ABORT_TASK_SET, function_response::COMPLETE),
        (function::CLEAR_ACA, function_response::NOT_SUPPORTED),
        (function::TASK_REASSIGN, function_response::NOT_SUPPORTED),
        (0x7f, function_response::NOT_SUPPORTED),
    ] {
        assert_eq!(response(&manage(&mut world, &mut initiator, code, 1)), expected, "{code}");
    }
    world.end_all();
}

/// RFC 7143 §11.5.1 has the target end the sessions of all initiators.
#[test]
fn cold_reset_ends_the_only_session() {
    let mut world = World::new();
    let (mut initiator, _) = busy(&mut world);
    assert_eq!(manage(&mut world, &mut initiator, function::TARGET_COLD_RESET, 0), []);
    assert!(world.conn(initiator.id).is_open());
    world.finish(initiator.id, 0, Ok(()));
    assert_eq!(response(&initiator.received(&mut world)), function_response::COMPLETE);
    assert!(!world.conn(initiator.id).is_open());
    world.end_all();
}

/// A command that follows it must not be on the disk when the session has ended.
#[test]
fn cold_reset_accepts_no_further_command() {
    let mut world = World::new();
    let (mut initiator, _) = busy(&mut world);
    assert_eq!(manage(&mut world, &mut initiator, function::TARGET_COLD_RESET, 0), []);
    // TEST UNIT READY gets the unit attention of the reset.
    let command = initiator.scsi([0; 16], FINAL, 0);
    world.send(initiator.id, &initiator.pdu(&command, &[]));
    let command = initiator.scsi(write_10(8, 1), FINAL | bhs::WRITE, 512);
    world.send(initiator.id, &initiator.pdu(&command, &[2; 512]));
    assert_eq!(world.jobs(initiator.id).len(), 1, "only the write before it");
    world.finish(initiator.id, 0, Ok(()));
    assert_eq!(response(&initiator.received(&mut world)), function_response::COMPLETE);
    assert!(!world.conn(initiator.id).is_open());
    let export = world.catalogue.find(&crate::world::DISK.into()).unwrap();
    assert!(!export.has_orphans(), "a write is in flight");
    world.end_all();
}

/// Hosts with overlays of their own use other data, and are another logical unit to each other.
#[test]
fn reset_does_not_concern_hosts_with_data_of_their_own() {
    let mut world = World::with_private_overlay();
    let (other, _) = busy(&mut world);
    let mut initiator = {
        let id = world.open();
        let mut initiator = Initiator::new(id);
        let keys = [&[("InitiatorName", "iqn.2026-01.org.example:another")], &SHORT[1..]].concat();
        assert_eq!(initiator.login(&mut world, &keys).login_status(), 0);
        initiator.ready(&mut world);
        initiator
    };
    for code in [function::LOGICAL_UNIT_RESET, function::TARGET_WARM_RESET] {
        let code = response(&manage(&mut world, &mut initiator, code, 0));
        assert_eq!(code, function_response::COMPLETE);
        // The unit attention of the reset.
        assert_eq!(sense(&initiator.read(&mut world, 0, 1)), (6, 0x29, 3));
    }
    assert_eq!(other.received(&mut world), []);
    world.finish(other.id, 0, Ok(()));
    let pdus = other.received(&mut world);
    assert_eq!((pdus.len(), status(&pdus)), (1, 0), "its write was aborted");
    let code = response(&manage(&mut world, &mut initiator, function::TARGET_COLD_RESET, 0));
    assert_eq!(code, function_response::COMPLETE);
    assert!(world.conn(other.id).is_open());
    world.end_all();
}

const READER: &str = "iqn.2026-01.org.example:reader";

/// Attaches a host that may only read, which proves that by CHAP.
fn reader(world: &mut World) -> Initiator {
    let secret = Secret::new(b"secretsecret".to_vec());
    let rules = vec![Rule { disk: None, access: Access::ReadOnly }];
    let (id, name, key) = (READER.to_owned(), "reader".to_owned(), KeyId::new(7));
    let credentials = vec![chap_initiator(secret.clone(), false)];
    let host = Host { id, name, key, credentials, rules };
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host)] });
    let mut reader = Initiator::new(world.open_as(peer(Auth::Required)));
    let names = [&[("InitiatorName", READER)], &SHORT[1..3], &[("AuthMethod", "CHAP")]].concat();
    let mut ask = |flags: u8, keys: &[(&str, &str)]| {
        world.send(reader.id, &reader.login_bytes(flags, &text_of(keys)));
        let response = reader.received(world).remove(0);
        assert_eq!(response.login_status(), 0, "{keys:?}");
        response
    };
    ask(1, &names);
    let challenge = ask(1, &[("CHAP_A", "7")]);
    let value = |key| challenge.value(key).unwrap();
    let bytes = text::binary(value("CHAP_C")).unwrap();
    let proof = Algorithm::Sha256.response(value("CHAP_I").parse().unwrap(), &secret, &bytes);
    let proof = text::to_hex(proof.bytes());
    ask(TRANSIT | FULL_FEATURE, &[("CHAP_N", READER), ("CHAP_R", &proof)]);
    reader.ready(world);
    reader
}

#[test]
fn reset_by_a_reader_does_not_abort_the_writes_of_others() {
    for code in [function::LOGICAL_UNIT_RESET, function::TARGET_WARM_RESET] {
        let mut world = World::new();
        let (other, _) = busy(&mut world);
        let mut reader = reader(&mut world);
        let pdus = manage(&mut world, &mut reader, code, 0);
        assert_eq!(response(&pdus), function_response::COMPLETE);
        assert_eq!(sense(&reader.read(&mut world, 0, 1)), (6, 0x29, 3));
        world.finish(other.id, 0, Ok(()));
        let pdus = other.received(&mut world);
        assert_eq!((pdus.len(), status(&pdus)), (1, 0), "its write was aborted");
        world.end_all();
    }
}

#[test]
fn cold_reset_does_not_cut_other_initiators_off() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let mut other = {
        let id = world.open();
        let mut other = Initiator::new(id);
        other.isid[5] = 9;
        assert_eq!(other.login(&mut world, SHORT).login_status(), 0);
        other.ready(&mut world);
        other
    };
    let code = response(&manage(&mut world, &mut initiator, function::TARGET_COLD_RESET, 0));
    assert_eq!(code, function_response::NOT_AUTHORIZED);
    for initiator in [&mut initiator, &mut other] {
        assert_eq!(status(&initiator.read(&mut world, 0, 1)), 0);
    }
    world.end_all();
}

/// Case X28: data of an aborted write is skipped, and other data is not.
#[test]
fn x28_data_of_an_aborted_write_is_skipped() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let pdus = initiator.command(&mut world, write_10(0, 8), bhs::WRITE, 4096, &[]);
    let r2t = bhs::R2t::of(&pdus[0].header);
    let itt = r2t.itt.get();
    let pdus = manage(&mut world, &mut initiator, function::ABORT_TASK, itt);
    assert_eq!(response(&pdus), function_response::COMPLETE);
    let data = initiator.data_out(itt, r2t.ttt.get(), 0, 0, true);
    world.send(initiator.id, &initiator.pdu(&data, &[9; 4096]));
    assert!(world.conn(initiator.id).is_open());
    assert!(world.disk[..512] == [0; 512]);
    assert_eq!(status(&initiator.read(&mut world, 0, 1)), 0);
    world.end_all();
}

#[test]
fn pings_are_answered_with_their_data() {
    let mut world = World::new();
    let initiator = Initiator::attached(&mut world);
    let mut nop = NopOut::of(&of_target(opcode::NOP_OUT | IMMEDIATE));
    (nop.itt, nop.ttt, nop.cmd_sn) = (5.into(), NONE.into(), initiator.cmd_sn.into());
    world.send(initiator.id, &initiator.pdu(&nop, b"hello"));
    let pdus = initiator.received(&mut world);
    assert_eq!((pdus[0].opcode(), pdus[0].header.itt.get()), (opcode::NOP_IN, 5));
    assert_eq!(pdus[0].data, b"hello");
    world.end_all();
}

#[test]
fn window_of_a_ping_and_of_a_reject_counts_all_commands() {
    let mut world = World::new();
    let (initiator, _) = busy(&mut world);
    world.advance(Duration::from_secs(10));
    let snack = of_target(opcode::SNACK);
    world.send(initiator.id, &initiator.pdu(&snack, &[]));
    let pdus = initiator.received(&mut world);
    let codes: Vec<u8> = pdus.iter().map(Pdu::opcode).collect();
    assert_eq!(codes, [opcode::NOP_IN, opcode::REJECT]);
    for pdu in pdus {
        let numbers = NopIn::of(&pdu.header).numbers;
        assert_eq!(numbers.max_cmd_sn.get(), initiator.cmd_sn + 126);
    }
    world.finish_all(initiator.id);
    world.end_all();
}

/// Case R27.
#[test]
fn r27_silent_initiator_is_pinged_and_dropped() {
    let mut world = World::new();
    let initiator = Initiator::attached(&mut world);
    world.advance(Duration::from_secs(10));
    let pdus = initiator.received(&mut world);
    let ping = NopIn::of(&pdus[0].header);
    assert_eq!((ping.itt.get(), pdus.len()), (NONE, 1));
    assert_ne!(ping.ttt.get(), NONE);
    // It answers, and is pinged again.
    let mut answer = NopOut::of(&of_target(opcode::NOP_OUT | IMMEDIATE));
    (answer.ttt, answer.cmd_sn) = (ping.ttt, initiator.cmd_sn.into());
    world.send(initiator.id, &initiator.pdu(&answer, &[]));
    assert_eq!(initiator.received(&mut world), []);
    world.advance(Duration::from_secs(10));
    assert_eq!(initiator.received(&mut world).len(), 1);
    world.advance(Duration::from_millis(4999));
    assert!(world.conn(initiator.id).is_open());
    world.advance(Duration::from_millis(1));
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Timeout));
    world.end_all();
}

/// A store that never stores.
#[derive(Debug)]
struct HungStore;

impl export::ReservationStore for HungStore {
    fn save(&self, _: u64, _: Option<export::SavedReservations>) {}
}

#[test]
fn logout_does_not_wait_for_the_store_of_reservations() {
    let mut world = World::new();
    let export = world.catalogue.find(&crate::world::DISK.into()).unwrap();
    export.set_reservation_store(Arc::new(HungStore), None);
    let mut initiator = Initiator::attached(&mut world);
    // REGISTER with key 1 and APTPL.
    let (mut cdb, mut list) = ([0; 16], [0; 24]);
    (cdb[0], cdb[8], list[15], list[20]) = (0x5f, 24, 1, 1);
    assert_eq!(initiator.command(&mut world, cdb, bhs::WRITE, 24, &list), []);
    let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST | IMMEDIATE));
    (logout.itt, logout.cmd_sn) = (9.into(), initiator.cmd_sn.into());
    logout.flags = FINAL | opcode::logout::CLOSE_SESSION;
    world.send(initiator.id, &initiator.pdu(&logout, &[]));
    let pdus = initiator.received(&mut world);
    assert_eq!(pdus[0].opcode(), opcode::LOGOUT_RESPONSE);
    assert!(!world.conn(initiator.id).is_open());
    world.end_all();
}

#[test]
fn logout_waits_for_the_disk() {
    let mut world = World::new();
    let (initiator, _) = busy(&mut world);
    let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST | IMMEDIATE));
    (logout.itt, logout.cmd_sn) = (9.into(), initiator.cmd_sn.into());
    logout.flags = FINAL | 2;
    world.send(initiator.id, &initiator.pdu(&logout, &[]));
    let pdus = initiator.received(&mut world);
    assert_eq!(LogoutResponse::of(&pdus[0].header).response, opcode::logout::NO_RECOVERY);
    logout.flags = FINAL | opcode::logout::CLOSE_SESSION;
    world.send(initiator.id, &initiator.pdu(&logout, &[]));
    assert_eq!(initiator.received(&mut world), []);
    world.finish(initiator.id, 0, Ok(()));
    let pdus = initiator.received(&mut world);
    assert_eq!(LogoutResponse::of(&pdus[0].header).response, opcode::logout::CLOSED);
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Peer));
    world.end_all();
}

/// Case R31.
#[test]
fn r31_stop_announces_the_end_and_finishes_writes() {
    let mut world = World::new();
    let (initiator, itt) = busy(&mut world);
    world.notify(Notice::Stopping);
    let pdus = initiator.received(&mut world);
    assert_eq!(AsyncMessage::of(&pdus[0].header).event, opcode::event::DROP_SESSION);
    assert!(world.conn(initiator.id).is_open());
    world.finish(initiator.id, 0, Ok(()));
    let pdus = initiator.received(&mut world);
    assert_eq!((status(&pdus), pdus[0].header.itt.get()), (0, itt));
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Stopping));
    assert!(world.disk[..512] == [1; 512]);
    world.end_all();
}

#[test]
fn withdrawn_disk_ends_its_commands() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    world.catalogue.withdraw(&crate::world::DISK.into());
    world.notify(Notice::StateChanged);
    let pdus = initiator.read(&mut world, 0, 1);
    assert_eq!(sense(&pdus), (2, 0x3a, 0));
    assert_eq!(world.conn(initiator.id).reported()[1], "detached (association ended) 0 0");
    world.end_all();
}
