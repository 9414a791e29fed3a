//! Connections to our own iSCSI target.

use copy::{Endpoint, EndpointError, IscsiEndpoint, Request, RequestError};
use export::Access;

use crate::driver::{Driven, random_requests_match_model};
use crate::machine::{BYTES, Machine, dial};

/// The initiator.
const HOST: &str = "iqn.2026-01.org.example:host";

/// The target of disk 1.
pub(crate) const TARGET: &str = "iqn.2014-08.org.nvmexpress:uuid:1";

pub(crate) fn endpoint(machine: &Machine, target: &str, lun: u8) -> IscsiEndpoint {
    IscsiEndpoint::new("iscsi://there", HOST, target, lun, dial(machine.iscsi))
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
    assert!(disk.identity.starts_with("iscsi naa "), "{}", disk.identity);
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
