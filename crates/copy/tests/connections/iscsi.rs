//! Connections to our own iSCSI target.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ::iscsi::host::{Initiator, Options, Step};
use ::iscsi::wire::bhs::{FINAL, TaskRequest, of_target};
use ::iscsi::wire::opcode::{self, IMMEDIATE, function};
use client::{Deadline, Dial, Driver};
use copy::{Endpoint, EndpointError, IscsiEndpoint, Request, RequestError};
use export::Access;
use zerocopy::IntoBytes;

use crate::driver::{Driven, random_requests_match_model};
use crate::machine::{BYTES, Machine, dial};

/// The initiator.
const HOST: &str = "iqn.2026-01.org.example:host";

/// The target of disk 1.
pub(crate) const TARGET: &str = "iqn.2014-08.org.nvmexpress:uuid:1";

pub(crate) fn endpoint(machine: &Machine, target: &str, lun: u8) -> IscsiEndpoint {
    endpoint_by(dial(machine.iscsi), target, lun)
}

pub(crate) fn endpoint_by(dial: Dial, target: &str, lun: u8) -> IscsiEndpoint {
    IscsiEndpoint::new("iscsi://there", HOST, target, lun, dial)
}

fn machine() -> (Machine, Vec<u8>) {
    let mut machine = Machine::new();
    let bytes = machine.export_disk(1);
    (machine, bytes)
}

#[test]
fn iscsi_disk_properties_are_reported() {
    let (machine, _) = machine();
    let (disk, _connection) = endpoint(&machine, TARGET, 0).open().unwrap();
    assert_eq!((disk.bytes, disk.block, disk.writable), (BYTES as u64, 512, true));
    assert_eq!((disk.remote, disk.blank, disk.sector), (true, false, Some(512)));
    // An identifier that is not registered is told apart by the target as well.
    assert!(disk.identity.starts_with(&format!("iscsi {TARGET} 0 naa 3")), "{}", disk.identity);
    assert!(disk.max_transfer >= 256 << 10 && disk.max_connections > 1);
    // This disk does not announce that unmapped blocks read as zeros.
    assert_eq!(disk.max_zero, 0);
}

#[test]
fn iscsi_concurrent_random_requests_match_model() {
    for seed in [1, 77] {
        let (machine, bytes) = machine();
        let (_, connection) = endpoint(&machine, TARGET, 0).open().unwrap();
        random_requests_match_model(connection, bytes, seed);
    }
}

#[test]
fn absent_target_and_unit_are_named() {
    let (machine, _) = machine();
    for (target, lun, expected) in [
        ("iqn.2026-01.org.example:other", 0, TARGET),
        (TARGET, 3, "no disk with this logical unit number"),
    ] {
        match endpoint(&machine, target, lun).open().err() {
            Some(EndpointError::Permanent(sentence)) => {
                assert!(sentence.contains(expected), "{sentence}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn iscsi_write_protected_disk_is_not_written() {
    let mut machine = Machine::new();
    machine.access = Access::ReadOnly;
    let bytes = machine.export_disk(1);
    let (disk, connection) = endpoint(&machine, TARGET, 0).open().unwrap();
    assert!(!disk.writable);
    let mut driven = Driven::new(connection);
    let buffer = driven.buffer(4096);
    driven.submit(Request::Write { offset: 0, buffer, part: 0..4096 });
    let done = driven.wait(1).unwrap();
    assert_eq!(done[0].result, Err(RequestError::ReadOnly));
    assert_eq!(machine.bytes(0), bytes);
}

/// Resets the logical unit in a session of its own.
fn reset(machine: &Machine) {
    let mut socket = TcpStream::connect(machine.iscsi).unwrap();
    let options =
        Options::new("iqn.2026-01.org.example:other", Some(TARGET), [0x80, 0, 0, 0, 0, 1]);
    let transport = Box::new(socket.try_clone().unwrap());
    let mut driver = Driver::new(transport, Initiator::new(options)).unwrap();
    let deadline = Deadline::after(Duration::from_secs(30));
    assert!(matches!(driver.wait_for_step(deadline), Ok(Step::LoggedIn)));
    socket.set_nonblocking(false).unwrap();
    let header = TaskRequest::of(&of_target(opcode::TASK_REQUEST | IMMEDIATE));
    let flags = FINAL | function::LOGICAL_UNIT_RESET;
    let request = TaskRequest { flags, itt: 5.into(), cmd_sn: 1.into(), ..header };
    socket.write_all(request.as_bytes()).unwrap();
    let mut response = [0; 48];
    socket.read_exact(&mut response).unwrap();
    assert_eq!((response[0], response[2]), (opcode::TASK_RESPONSE, 0));
}

/// A disk that was reset may have lost its cache: the copy connects again, and writes again what was
/// not flushed.
#[test]
fn disk_that_was_reset_is_connected_again() {
    let (machine, bytes) = machine();
    let there = endpoint(&machine, TARGET, 0);
    let mut driven = Driven::new(there.open().unwrap().1);
    assert_eq!(driven.read(0, 4096).unwrap(), bytes[..4096]);
    reset(&machine);
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    let lost = driven.wait(1).unwrap_err();
    assert!(lost.to_string().contains("reset"), "{lost}");
    let mut driven = Driven::new(there.open().unwrap().1);
    assert_eq!(driven.read(0, 4096).unwrap(), bytes[..4096]);
}

/// A disk that is unplugged may be plugged in again.
#[test]
fn withdrawn_iscsi_disk_is_waited_for() {
    let (machine, bytes) = machine();
    let there = endpoint(&machine, TARGET, 0);
    let mut driven = Driven::new(there.open().unwrap().1);
    assert_eq!(driven.read(0, 4096).unwrap(), bytes[..4096]);
    let id = "nqn.2014-08.org.nvmexpress:uuid:1".into();
    machine.catalogue.withdraw(&id).unwrap();
    let buffer = driven.buffer(4096);
    driven.submit(Request::Read { offset: 0, buffer });
    let lost = driven.wait(1).unwrap_err();
    assert!(!lost.is_violation() && lost.reason.contains("removed"), "{}", lost.reason);
    let refused = there.open().err();
    assert!(matches!(refused, Some(EndpointError::Temporary(_))), "{refused:?}");
    machine.export_file(1, &machine.files[0]);
    let mut driven = Driven::new(there.open().unwrap().1);
    assert_eq!(driven.read(0, 4096).unwrap(), bytes[..4096]);
}
