//! The connection to an NBD server, with our own at its end.

use copy::{Endpoint, EndpointError, NbdEndpoint, Request, RequestError};
use export::Extent;
use std::os::unix::fs::FileExt;

use crate::driver::{Driven, pattern, random_works_equal_a_vec};
use crate::machine::{BYTES, Machine, dial, eventually};

fn place(machine: &Machine, export: &str) -> NbdEndpoint {
    NbdEndpoint::new(&format!("nbd://{}/{export}", machine.nbd), export, dial(machine.nbd))
}

fn machine() -> (Machine, Vec<u8>) {
    let mut machine = Machine::new();
    let bytes = machine.lend(1);
    (machine, bytes)
}

#[test]
fn a_disk_tells_what_it_is() {
    let (machine, _) = machine();
    let (disk, _lane) = place(&machine, "disk1").open().unwrap();
    assert_eq!((disk.bytes, disk.block, disk.writable), (BYTES as u64, 512, true));
    assert_eq!((disk.reports_extents, disk.remote, disk.blank), (true, true, false));
    let identity = format!("nbd uuid {}", "01".repeat(16));
    assert_eq!((disk.max_transfer, disk.identity.as_str()), (1 << 20, identity.as_str()));
    assert!(disk.max_zero >= 1 << 30 && disk.max_connections > 1);
    // By no name it is the same disk.
    assert_eq!(place(&machine, "").open().unwrap().0.identity, identity);
}

#[test]
fn random_works_in_any_number_at_once_equal_a_vec() {
    for seed in [1, 77] {
        let (machine, bytes) = machine();
        let (_, connection) = place(&machine, "").open().unwrap();
        random_works_equal_a_vec(connection, bytes, seed);
    }
}

#[test]
fn what_is_data_and_what_is_not_is_told() {
    let (machine, _) = machine();
    let quarter = BYTES as u64 / 4;
    machine.files[0].set_len(0).unwrap();
    machine.files[0].set_len(BYTES as u64).unwrap();
    machine.files[0].write_all_at(&pattern(3, BYTES / 4), quarter).unwrap();
    let mut driven = Driven::new(place(&machine, "").open().unwrap().1);
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
fn what_is_no_whole_blocks_or_not_there_is_refused() {
    let (machine, _) = machine();
    let mut driven = Driven::new(place(&machine, "").open().unwrap().1);
    assert_eq!(driven.read(1, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.read(BYTES as u64, 512), Err(RequestError::OutOfRange));
    assert_eq!(driven.write(100, &[1; 512]), Err(RequestError::OutOfRange));
    assert_eq!(driven.zero(0, 100), Err(RequestError::Unsupported));
    assert_eq!(driven.read(0, 512).map(|bytes| bytes.len()), Ok(512));
}

#[test]
fn a_disk_that_is_not_there_is_refused_with_the_names_of_those_that_are() {
    let (mut machine, _) = machine();
    machine.lend(2);
    for wanted in ["disk3", ""] {
        match place(&machine, wanted).open().err() {
            Some(EndpointError::Refused(sentence)) => {
                assert!(sentence.contains("name one of disk1, disk2"), "{sentence}");
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

/// R23, R24: whatever becomes of the server, the connection is lost and another one opened, with the same disk at its end.
#[test]
fn r23_a_connection_that_is_lost_is_opened_again() {
    let (mut machine, bytes) = machine();
    let place = place(&machine, "");
    let (before, connection) = place.open().unwrap();
    let mut driven = Driven::new(connection);
    for _ in 0..3 {
        assert!(driven.read(4096, 65536).unwrap() == bytes[4096..4096 + 65536]);
        machine.stop();
        let buffer = driven.buffer(512);
        driven.submit(Request::Read { offset: 0, buffer });
        assert!(driven.wait(1).is_err());
        assert!(matches!(place.open().err(), Some(EndpointError::Unreachable(_))));
        machine.start();
        let (after, connection) = eventually(|| place.open().ok());
        assert_eq!(after, before);
        driven = Driven::new(connection);
    }
}

/// A disk that is taken away and lent again is waited for.
#[test]
fn a_disk_that_is_taken_away_is_waited_for() {
    let (machine, _) = machine();
    let place = place(&machine, "disk1");
    let mut driven = Driven::new(place.open().unwrap().1);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:1";
    assert!(machine.catalogue.withdraw(nqn).is_some());
    let buffer = driven.buffer(512);
    driven.submit(Request::Read { offset: 0, buffer });
    assert!(driven.wait(1).is_err());
    assert!(matches!(place.open().err(), Some(EndpointError::Unreachable(_))));
}
