//! Connections to our own NBD server.

use copy::{Endpoint, EndpointError, NbdEndpoint, Request, RequestError};
use export::Extent;
use std::os::unix::fs::FileExt;

use crate::driver::{Driven, pattern, random_requests_match_model};
use crate::machine::{BYTES, Machine, dial, eventually};

fn endpoint(machine: &Machine, export: &str) -> NbdEndpoint {
    NbdEndpoint::new(&format!("nbd://{}/{export}", machine.nbd), export, dial(machine.nbd))
}

fn machine() -> (Machine, Vec<u8>) {
    let mut machine = Machine::new();
    let bytes = machine.export_disk(1);
    (machine, bytes)
}

#[test]
fn disk_properties_are_reported() {
    let (machine, _) = machine();
    let (disk, _lane) = endpoint(&machine, "disk1").open().unwrap();
    assert_eq!((disk.bytes, disk.block, disk.writable), (BYTES as u64, 512, true));
    assert_eq!((disk.reports_extents, disk.remote, disk.blank), (true, true, false));
    let identity = format!("nbd uuid {}", "01".repeat(16));
    assert_eq!((disk.max_transfer, disk.identity.as_str()), (1 << 20, identity.as_str()));
    assert!(disk.max_zero >= 1 << 30 && disk.max_connections > 1);
    // The default export is the same disk.
    assert_eq!(endpoint(&machine, "").open().unwrap().0.identity, identity);
}

#[test]
fn concurrent_random_requests_match_model() {
    for seed in [1, 77] {
        let (machine, bytes) = machine();
        let (_, connection) = endpoint(&machine, "").open().unwrap();
        random_requests_match_model(connection, bytes, seed);
    }
}

#[test]
fn extents_are_reported() {
    let (machine, _) = machine();
    let quarter = BYTES as u64 / 4;
    machine.files[0].set_len(0).unwrap();
    machine.files[0].set_len(BYTES as u64).unwrap();
    machine.files[0].write_all_at(&pattern(3, BYTES / 4), quarter).unwrap();
    let mut driven = Driven::new(endpoint(&machine, "").open().unwrap().1);
    let (mut told, mut at) = (Vec::new(), 0);
    while at < BYTES as u64 {
        let extents = driven.extents(at, BYTES as u64 - at).unwrap();
        at += extents.iter().map(|extent| extent.len).sum::<u64>();
        told.extend(extents);
    }
    let expected = [Extent::hole(quarter), Extent::data(quarter), Extent::hole(2 * quarter)];
    assert_eq!(told, expected);
}

#[test]
fn unaligned_or_out_of_range_request_fails() {
    let (machine, _) = machine();
    let mut driven = Driven::new(endpoint(&machine, "").open().unwrap().1);
    assert_eq!(driven.read(1, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.read(BYTES as u64, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.write(100, &[1; 512]), Err(RequestError::OutOfRange));
    assert_eq!(driven.zero(0, 100), Err(RequestError::Unsupported));
    assert_eq!(driven.read(0, 512).map(|bytes| bytes.len()), Ok(512));
}

#[test]
fn missing_export_is_refused_with_existing_names() {
    let (mut machine, _) = machine();
    machine.export_disk(2);
    for wanted in ["disk3", ""] {
        match endpoint(&machine, wanted).open().err() {
            Some(EndpointError::Permanent(sentence)) => {
                assert!(sentence.contains("its disks: disk1, disk2"), "{sentence}");
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

/// R23, R24: after any loss, a new connection leads to the same disk.
#[test]
fn r23_lost_connection_is_reopened() {
    let (mut machine, bytes) = machine();
    let endpoint = endpoint(&machine, "");
    let (before, connection) = endpoint.open().unwrap();
    let mut driven = Driven::new(connection);
    for _ in 0..3 {
        assert!(driven.read(4096, 65536).unwrap() == bytes[4096..4096 + 65536]);
        machine.stop();
        let buffer = driven.buffer(512);
        driven.submit(Request::Read { offset: 0, buffer });
        assert!(driven.wait(1).is_err());
        assert!(matches!(endpoint.open().err(), Some(EndpointError::Temporary(_))));
        machine.start();
        let (after, connection) = eventually(|| endpoint.open().ok());
        assert_eq!(after, before);
        driven = Driven::new(connection);
    }
}

/// A withdrawn export is a temporary error.
#[test]
fn withdrawn_disk_is_waited_for() {
    let (machine, _) = machine();
    let endpoint = endpoint(&machine, "disk1");
    let mut driven = Driven::new(endpoint.open().unwrap().1);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:1";
    assert!(machine.catalogue.withdraw(&nqn.into()).is_some());
    let buffer = driven.buffer(512);
    driven.submit(Request::Read { offset: 0, buffer });
    assert!(driven.wait(1).is_err());
    assert!(matches!(endpoint.open().err(), Some(EndpointError::Temporary(_))));
}
