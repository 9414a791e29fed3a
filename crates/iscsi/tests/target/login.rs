//! The login phase: stages, keys, names, the exchanges of known initiators.

use std::time::Duration;

use export::Reason;
use iscsi::wire::bhs::{self, LoginResponse};
use iscsi::wire::login::{CONTINUE, TRANSIT};
use iscsi::wire::opcode;

use crate::initiator::{Initiator, NAME, Pdu, SHORT, data_of, parse, status, text_of};
use crate::world::{TARGET, World};

/// Flags of a request from stage 0 to 1, from 1 to 3, and in stages 0 and 1.
const SECURITY_TO_OPERATIONAL: u8 = TRANSIT | 1;
const OPERATIONAL_TO_FULL: u8 = TRANSIT | 1 << 2 | 3;

/// Sends a login request. Returns the response.
fn ask(world: &mut World, initiator: &Initiator, flags: u8, keys: &[(&str, &str)]) -> Pdu {
    world.send(initiator.id, &initiator.login_bytes(flags, &text_of(keys)));
    initiator.received(world).remove(0)
}

fn open() -> (World, Initiator) {
    let mut world = World::new();
    let id = world.open();
    (world, Initiator::new(id))
}

/// Sends one login request. Returns the status and why the connection was closed.
fn refused(flags: u8, text: &[u8]) -> (u16, Option<Reason>) {
    let (mut world, initiator) = open();
    world.send(initiator.id, &initiator.login_bytes(flags, text));
    let pdus = initiator.received(&mut world);
    let closed = world.conn(initiator.id).closed;
    world.end_all();
    (pdus.last().map_or(0, Pdu::login_status), closed)
}

/// libiscsi 1.19: one request, without a security stage.
#[test]
fn golden_login_of_libiscsi() {
    let (mut world, mut initiator) = open();
    initiator.cmd_sn = 1_364_716_654;
    let keys: &[(&str, &str)] = &[
        ("InitiatorName", "iqn.2008-11.org.linux-kvm:host"),
        ("TargetName", TARGET),
        ("SessionType", "Normal"),
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None,CRC32C"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("MaxConnections", "1"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
    ];
    let response = initiator.login(&mut world, keys);
    let header = LoginResponse::of(&response.header);
    assert_eq!((header.flags, header.status), (0x87, [0, 0]));
    assert_ne!(header.tsih.get(), 0);
    assert_eq!((header.isid, header.itt.get()), (initiator.isid, 1));
    let numbers = header.numbers;
    assert_eq!(numbers.exp_cmd_sn.get(), 1_364_716_654);
    assert_eq!(numbers.max_cmd_sn.get(), 1_364_716_654 + 127);
    #[rustfmt::skip]
    let answers = [
        ("MaxBurstLength", "262144"), ("HeaderDigest", "None"), ("DataDigest", "None"),
        ("InitialR2T", "No"), ("ImmediateData", "Yes"), ("FirstBurstLength", "262144"),
        ("DefaultTime2Wait", "2"), ("DefaultTime2Retain", "0"), ("MaxOutstandingR2T", "1"),
        ("ErrorRecoveryLevel", "0"), ("IFMarker", "No"), ("OFMarker", "No"), ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"), ("DataSequenceInOrder", "Yes"), ("TargetPortalGroupTag", "1"),
        ("MaxRecvDataSegmentLength", "262144"),
    ];
    assert_eq!(response.pairs(), answers);
    initiator.ready(&mut world);
    let pdus = initiator.read(&mut world, 1, 2);
    assert_eq!(data_of(&pdus), [[1; 512], [2; 512]].concat());
    assert_eq!(world.conn(initiator.id).reported(), ["attached iqn.2008-11.org.linux-kvm:host"]);
    world.end_all();
}

/// iPXE 1.21.1: the security stage first, then small segments and solicited data only.
#[test]
fn golden_login_of_ipxe() {
    let (mut world, mut initiator) = open();
    (initiator.isid, initiator.cmd_sn) = ([0x40, 0, 0x27, 1, 2, 3], 0);
    let names = [
        ("InitiatorName", "iqn.2010-04.org.ipxe:host"),
        ("TargetName", TARGET),
        ("SessionType", "Normal"),
        ("AuthMethod", "None"),
    ];
    let response = ask(&mut world, &initiator, SECURITY_TO_OPERATIONAL, &names);
    let header = LoginResponse::of(&response.header);
    assert_eq!((header.flags, header.tsih.get()), (0x81, 0));
    assert_eq!(response.pairs(), [("TargetPortalGroupTag", "1"), ("AuthMethod", "None")]);
    let keys: &[(&str, &str)] = &[
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("MaxConnections", "1"),
        ("InitialR2T", "Yes"),
        ("ImmediateData", "No"),
        ("MaxRecvDataSegmentLength", "8192"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "0"),
        ("MaxOutstandingR2T", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("ErrorRecoveryLevel", "0"),
    ];
    let response = initiator.login(&mut world, keys);
    let header = LoginResponse::of(&response.header);
    assert_eq!((header.flags, header.status), (0x87, [0, 0]));
    assert_ne!(header.tsih.get(), 0);
    assert_eq!(response.value("InitialR2T"), Some("Yes"));
    assert_eq!(response.value("ImmediateData"), Some("No"));
    initiator.ready(&mut world);
    // 64 KiB come as eight PDUs.
    let pdus = initiator.read(&mut world, 0, 128);
    assert_eq!((pdus.len(), data_of(&pdus).len()), (8, 65536));
    world.end_all();
}

/// Windows: from a public capture. CID 1, CmdSN 1, the name in upper case.
#[test]
fn golden_login_of_windows() {
    let (mut world, mut initiator) = open();
    initiator.isid = [0x40, 0, 1, 0x37, 0, 0];
    let names = [
        ("InitiatorName", "iqn.1991-05.com.microsoft:HOST"),
        ("SessionType", "Normal"),
        ("TargetName", TARGET),
        ("AuthMethod", "None"),
    ];
    let response = ask(&mut world, &initiator, SECURITY_TO_OPERATIONAL, &names);
    assert_eq!(response.login_status(), 0);
    assert_eq!(response.value("TargetPortalGroupTag"), Some("1"));
    let keys: &[(&str, &str)] = &[
        ("HeaderDigest", "None,CRC32C"),
        ("DataDigest", "None,CRC32C"),
        ("ErrorRecoveryLevel", "2"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxRecvDataSegmentLength", "65536"),
        ("MaxBurstLength", "262144"),
        ("FirstBurstLength", "65536"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("DefaultTime2Wait", "0"),
        ("DefaultTime2Retain", "60"),
        ("MaxOutstandingR2T", "16"),
    ];
    let response = initiator.login(&mut world, keys);
    assert_eq!(response.login_status(), 0);
    assert_eq!(response.value("ErrorRecoveryLevel"), Some("0"));
    assert_eq!(response.value("DefaultTime2Retain"), Some("0"));
    assert_eq!(world.conn(initiator.id).reported(), ["attached iqn.1991-05.com.microsoft:host"]);
    initiator.ready(&mut world);
    world.end_all();
}

/// open-iscsi: one request, large bursts.
#[test]
fn golden_login_of_open_iscsi() {
    let (mut world, mut initiator) = open();
    (initiator.isid, initiator.cmd_sn) = ([0, 2, 0x3d, 0, 0, 1], 0);
    let keys: &[(&str, &str)] = &[
        ("InitiatorName", NAME),
        ("InitiatorAlias", "(none)"),
        ("TargetName", TARGET),
        ("SessionType", "Normal"),
        ("HeaderDigest", "None"),
        ("DataDigest", "None"),
        ("DefaultTime2Wait", "2"),
        ("DefaultTime2Retain", "0"),
        ("IFMarker", "No"),
        ("OFMarker", "No"),
        ("ErrorRecoveryLevel", "0"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "262144"),
        ("MaxOutstandingR2T", "1"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("MaxRecvDataSegmentLength", "262144"),
    ];
    let response = initiator.login(&mut world, keys);
    assert_eq!(response.login_status(), 0);
    assert_eq!(response.value("MaxBurstLength"), Some("1048576"));
    assert_eq!(response.value("FirstBurstLength"), Some("262144"));
    initiator.ready(&mut world);
    assert_eq!(status(&initiator.read(&mut world, 0, 8)), 0);
    world.end_all();
}

#[test]
fn login_without_required_names_is_refused() {
    let names: [&[(&str, &str)]; 3] =
        [&[], &[("InitiatorName", NAME)], &[("TargetName", TARGET), ("SessionType", "Normal")]];
    for keys in names {
        let expected = (0x0207, Some(Reason::Refused));
        assert_eq!(refused(OPERATIONAL_TO_FULL, &text_of(keys)), expected, "{keys:?}");
    }
    let unknown = [("InitiatorName", NAME), ("TargetName", "iqn.2026-01.org.example:other")];
    let found = refused(OPERATIONAL_TO_FULL, &text_of(&unknown));
    assert_eq!(found, (0x0203, Some(Reason::Refused)));
}

#[test]
fn stages_must_advance() {
    let names = text_of(SHORT);
    for flags in [TRANSIT | 2, TRANSIT | 1 << 2 | 1, TRANSIT | 1 << 2, 2 << 2, 3 << 2, 0xff] {
        let violation = (0x020b, Some(Reason::Violation));
        assert_eq!(refused(flags, &names), violation, "{flags:x}");
    }
    assert_eq!(refused(TRANSIT | CONTINUE | 1 << 2 | 3, &names).0, 0x020b);
    // From security to full feature at once.
    assert_eq!(refused(TRANSIT | 3, &names), (0, None));
}

#[test]
fn fields_must_stay_the_same() {
    let (mut world, mut initiator) = open();
    ask(&mut world, &initiator, 1 << 2, SHORT);
    initiator.isid = [9; 6];
    let response = ask(&mut world, &initiator, OPERATIONAL_TO_FULL, &[]);
    assert_eq!(response.login_status(), 0x0200);
    assert_eq!(world.conn(initiator.id).reported(), ["violation LoginFieldsChanged"]);
    world.end_all();
}

#[test]
fn continued_text_is_joined() {
    let (mut world, initiator) = open();
    let text = text_of(SHORT);
    let (one, other) = text.split_at(30);
    world.send(initiator.id, &initiator.login_bytes(CONTINUE | 1 << 2, one));
    let response = initiator.received(&mut world).remove(0);
    assert_eq!((response.header.flags, response.data.len()), (1 << 2, 0));
    world.send(initiator.id, &initiator.login_bytes(OPERATIONAL_TO_FULL, other));
    assert_eq!(initiator.received(&mut world).remove(0).login_status(), 0);
    world.end_all();
}

/// Case X34: texts without an end, of the longest length, with very many keys.
#[test]
fn x34_login_texts_at_their_limits_are_refused() {
    let violation = (0x0200, Some(Reason::Violation));
    for len in [8189, 8190, 8191, 8192] {
        assert_eq!(refused(OPERATIONAL_TO_FULL, &vec![b'a'; len]), violation, "{len}");
    }
    let many: Vec<String> = (0..1000).map(|n| format!("k{n}")).collect();
    let mut keys = SHORT.to_vec();
    keys.extend(many.iter().map(|key| (key.as_str(), "")));
    assert_eq!(refused(OPERATIONAL_TO_FULL, &text_of(&keys)), violation);
    // Above the limit the data is not even received.
    let (status, closed) = refused(OPERATIONAL_TO_FULL, &vec![b'a'; 8196]);
    assert_eq!((status, closed), (0, Some(Reason::Violation)));
    for keys in [
        [("InitiatorName", NAME), ("InitiatorName", "iqn.other")],
        [("InitiatorName", NAME), ("HeaderDigest", "None")],
        [("InitiatorName", "a b"), ("SessionType", "Normal")],
        [("InitiatorName", NAME), ("SessionType", "Other")],
    ] {
        let mut text = text_of(&keys);
        text.extend(text_of(&[("HeaderDigest", "None")]));
        assert_eq!(refused(OPERATIONAL_TO_FULL, &text), violation, "{keys:?}");
    }
}

/// Case X34: a text that continues for ever, also without data.
#[test]
fn x34_endless_login_is_dropped() {
    for data in [&b""[..], b"k=v\0", &[b'a'; 1000]] {
        let (mut world, initiator) = open();
        let request = initiator.login_bytes(CONTINUE | 1 << 2, data);
        for _ in 0..100 {
            world.send(initiator.id, &request);
        }
        assert_eq!(world.conn(initiator.id).closed, Some(Reason::Violation));
        let sent = initiator.received(&mut world).len();
        assert!(sent <= 33, "{sent}");
        world.end_all();
    }
}

#[test]
fn only_a_login_begins_a_connection() {
    for first in
        [b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n".to_vec(), vec![0; 48]]
    {
        let (mut world, initiator) = open();
        world.send(initiator.id, &first);
        assert_eq!(world.conn(initiator.id).closed, Some(Reason::Violation));
        assert_eq!(world.received(initiator.id), []);
        world.end_all();
    }
}

#[test]
fn login_must_end_in_time() {
    let (mut world, initiator) = open();
    ask(&mut world, &initiator, 1 << 2, SHORT);
    world.advance(Duration::from_millis(9999));
    assert!(world.conn(initiator.id).is_open());
    world.advance(Duration::from_millis(1));
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Timeout));
    world.end_all();
}

#[test]
fn later_login_with_the_same_name_replaces_the_session() {
    let mut world = World::new();
    let first = Initiator::attached(&mut world);
    let other = {
        let id = world.open();
        let mut other = Initiator::new(id);
        other.isid = [1; 6];
        assert_eq!(other.login(&mut world, SHORT).login_status(), 0);
        other
    };
    assert!(world.conn(first.id).is_open());
    let again = Initiator::attached(&mut world);
    assert_eq!(world.conn(first.id).closed, Some(Reason::Ended));
    assert!(world.conn(other.id).is_open() && world.conn(again.id).is_open());
    world.end_all();
}

/// Case R55: the new session is answered when the writes of the old one are off the disk.
#[test]
fn r55_reinstatement_waits_for_old_writes() {
    let mut world = World::new();
    let mut first = Initiator::attached(&mut world);
    world.conn(first.id).hold = true;
    let cdb = crate::initiator::write_10(0, 1);
    first.command(&mut world, cdb, bhs::WRITE, 512, &[1; 512]);
    let id = world.open();
    let again = Initiator::new(id);
    world.send(id, &again.login_bytes(OPERATIONAL_TO_FULL, &text_of(SHORT)));
    assert_eq!(world.received(id), []);
    assert_eq!(world.conn(first.id).closed, Some(Reason::Ended));
    world.finish(first.id, 0, Ok(()));
    let response = parse(&world.received(id), false, false).remove(0);
    assert_eq!((response.opcode(), response.login_status()), (opcode::LOGIN_RESPONSE, 0));
    world.end_all();
}

#[test]
fn login_that_waits_for_a_hung_disk_is_told_to_retry() {
    let mut world = World::new();
    let mut first = Initiator::attached(&mut world);
    world.conn(first.id).hold = true;
    let cdb = crate::initiator::write_10(0, 1);
    first.command(&mut world, cdb, bhs::WRITE, 512, &[1; 512]);
    world.disconnect(first.id);
    let id = world.open();
    let again = Initiator::new(id);
    world.send(id, &again.login_bytes(OPERATIONAL_TO_FULL, &text_of(SHORT)));
    world.advance(Duration::from_secs(10));
    assert_eq!(again.received(&mut world).remove(0).login_status(), 0x0301);
    assert_eq!(world.conn(id).reported(), [format!("refused {TARGET}")]);
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

#[test]
fn continuing_a_session_is_refused() {
    let (mut world, initiator) = open();
    let mut bytes = initiator.login_bytes(OPERATIONAL_TO_FULL, &text_of(SHORT));
    bytes[15] = 9;
    world.send(initiator.id, &bytes);
    assert_eq!(initiator.received(&mut world).remove(0).login_status(), 0x020a);
    world.end_all();
}
