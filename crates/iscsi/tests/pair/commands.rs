//! Commands by every combination of what can be negotiated.

use iscsi::host::disk;
use iscsi::host::{Offer, Options};
use testkit::Chunks;

use crate::world::{BLOCK, HOST, SIZE, TARGET, World, options};

/// Every combination of the keys that change how data is sent.
fn offers() -> impl Iterator<Item = Offer> {
    let flags = |bits: u8| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
    let sizes = [
        (512, 512, 512),
        (4096, 1024, 2048),
        (8192, 65536, 65536),
        (256 << 10, 256 << 10, 1 << 20),
    ];
    (0..8).map(flags).flat_map(move |(digests, initial_r2t, immediate_data)| {
        sizes.map(|(max_recv, first_burst, max_burst)| Offer {
            digests,
            initial_r2t,
            immediate_data,
            max_recv,
            first_burst,
            max_burst,
        })
    })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / BLOCK).to_le_bytes()[0]).collect()
}

#[test]
fn data_arrives_by_every_negotiated_way() {
    for offer in offers() {
        for (direct, chunks) in [(false, Chunks::Random), (true, Chunks::UpTo(1 << 16))] {
            let mut world = World::new(Options { offer, ..options() });
            (world.direct, world.chunks) = (direct, chunks);
            assert!(world.events.logged_in, "{offer:?}");
            for blocks in [1, 9, 600] {
                let bytes = pattern(blocks * BLOCK);
                let done = world.write(3, &bytes);
                assert_eq!((done.status, done.len), (0, bytes.len()), "{offer:?}");
                assert!(world.disk[3 * BLOCK..][..bytes.len()] == bytes, "{offer:?}");
                assert!(world.read(3, blocks) == bytes, "{offer:?}");
            }
            let untouched = world.read(SIZE / BLOCK - 1, 1);
            assert_eq!(untouched, world.disk[SIZE - BLOCK..]);
        }
    }
}

#[test]
fn many_commands_complete_in_any_order() {
    for offer in offers().filter(|offer| offer.max_recv != 512) {
        let mut world = World::new(Options { offer, ..options() });
        let mut model = world.disk.clone();
        for tag in 0..64_u32 {
            let at = tag as usize * 32;
            if tag % 2 == 0 {
                let bytes = pattern(20 * BLOCK);
                model[at * BLOCK..][..bytes.len()].copy_from_slice(&bytes);
                let data = world.data_out(&bytes);
                world.submit(disk::write(at as u64, 20), data, tag);
            } else {
                let data = world.data_in(20 * BLOCK);
                world.submit(disk::read(at as u64, 20), data, tag);
            }
        }
        assert_eq!(world.initiator.free_slots(), 0);
        world.run();
        assert_eq!((world.events.done.len(), world.initiator.in_flight()), (64, 0));
        for done in std::mem::take(&mut world.events.done) {
            assert_eq!((done.status, done.len), (0, 20 * BLOCK));
            let at = done.tag as usize * 32 * BLOCK;
            if let Some(buffer) = done.buffer {
                assert!(buffer.bytes() == &model[at..at + 20 * BLOCK]);
            }
        }
        assert!(world.disk == model);
    }
}

#[test]
fn zeroed_and_flushed_blocks_read_as_zeros() {
    let mut world = World::new(options());
    let zeros = world.data_out(&[0; BLOCK]);
    assert_eq!(world.complete(disk::zero(8, 100), zeros).status, 0);
    assert_eq!(world.complete(disk::flush(), iscsi::host::Data::None).status, 0);
    assert!(world.read(8, 100).iter().all(|byte| *byte == 0));
    assert_eq!(world.read(7, 1), [7; BLOCK]);
    assert_eq!(world.read(108, 1), [108; BLOCK]);
}

#[test]
fn probe_finds_the_properties_of_the_disk() {
    let mut world = World::new(options());
    let info = world.probe().unwrap();
    assert_eq!((info.block as usize, info.bytes), (BLOCK, SIZE as u64));
    assert!(info.identity.starts_with("naa ") && !info.write_protected, "{info:?}");
}

#[test]
fn discovery_lists_the_target() {
    let mut world = World::new(Options { target: None, ..options() });
    let targets = world.events.targets.take().unwrap();
    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, [TARGET]);
    assert_eq!(targets[0].addresses, ["192.0.2.1:3260,1"]);
    world.initiator.disconnect();
    world.run();
    assert!(world.events.closed.is_some(), "{HOST} has logged out");
}

#[test]
fn command_beyond_the_end_fails_with_sense_data() {
    let mut world = World::new(options());
    let data = world.data_in(BLOCK);
    let done = world.complete(disk::read((SIZE / BLOCK) as u64, 1), data);
    // ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE.
    assert_eq!((done.status, done.sense.key, done.sense.code), (2, 5, (0x21, 0)));
    assert_eq!(done.len, 0);
}

/// A connection that is cut after every byte of either direction: no command completes by halves, and
/// the next session finds what was written.
#[test]
fn connection_that_is_cut_anywhere_is_resumed() {
    let bytes = pattern(9 * BLOCK);
    let offer = Offer { max_recv: 4096, first_burst: 1024, ..Offer::default() };
    let options = Options { offer, ..options() };
    for direction in [0, 1] {
        let mut cut = 0;
        loop {
            let mut quota = [usize::MAX; 2];
            quota[direction] = cut;
            let mut world = World::with(options.clone(), Vec::new(), quota);
            world.events.done.clear();
            let (out, into) = (world.data_out(&bytes), world.data_in(bytes.len()));
            let submitted = world.try_submit(disk::write(3, 9), out, 1)
                && world.try_submit(disk::read(100, 9), into, 2);
            world.run();
            let done = std::mem::take(&mut world.events.done);
            assert!(submitted || done.is_empty());
            assert!(done.iter().all(|done| (done.status, done.len) == (0, bytes.len())));
            let is_whole = |tag| done.iter().any(|done| done.tag == tag);
            let uncut = world.quota[direction] != 0;
            if is_whole(1) {
                assert!(world.disk[3 * BLOCK..][..bytes.len()] == bytes);
            }
            world.reconnect(options.clone());
            assert!(world.events.logged_in && world.probe().is_some(), "{direction} {cut}");
            assert_eq!(world.write(3, &bytes).len, bytes.len());
            assert!(world.read(3, 9) == bytes);
            if uncut {
                assert!(is_whole(1) && is_whole(2) && cut > 9 * BLOCK);
                break;
            }
            // Inside of data, each of the bytes is like the next one.
            cut += if cut < 3000 { 1 } else { 7 };
        }
    }
}
