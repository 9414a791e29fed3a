//! Block status: the extents of the disk, clipped to the requested range.

use nbd::wire::errno;
use nbd::wire::meta::{BASE_ALLOCATION, MetaRequest};
use nbd::wire::option;
use nbd::wire::reply::{BLOCK_STATUS, BLOCK_STATUS_EXT};
use nbd::wire::request::{self, REQ_ONE};

use crate::messages::{Mode, RequestHeader, attach, error_of, flags, go, option, replies};
use crate::world::{SIZE, World};

/// Parses the extents of a reply: length, and whether it is a hole that reads as zeros.
fn extents(received: &[u8], mode: Mode) -> Vec<(u64, bool)> {
    let all = replies(received, |_| 0);
    assert_eq!((all.len(), all[0].done), (1, true));
    let data = &all[0].data;
    assert_eq!(data[..4], [0, 0, 0, 1], "context id");
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, &byte| n << 8 | u64::from(byte));
    let (kind, from, half) =
        if mode == Mode::Extended { (BLOCK_STATUS_EXT, 8, 8) } else { (BLOCK_STATUS, 4, 4) };
    assert_eq!(all[0].kind, kind);
    let each = data[from..].chunks_exact(2 * half).map(|one| {
        let (len, flags) = (number(&one[..half]), number(&one[half..]));
        assert!(flags == 0 || flags == 3);
        (len, flags != 0)
    });
    let each: Vec<_> = each.collect();
    if mode == Mode::Extended {
        assert_eq!(number(&data[4..8]), each.len() as u64);
    }
    each
}

fn status(offset: u64, len: u64) -> RequestHeader {
    RequestHeader::new(request::BLOCK_STATUS, 1, offset, len)
}

#[test]
fn extents_are_clipped_to_the_range() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut world = World::new();
        world.disk[8192..65536].fill(0);
        let id = attach(&mut world, mode);
        let received = world.exchange(id, &status(4096, 100_000).bytes(mode));
        let all = extents(&received, mode);
        assert_eq!(all[..2], [(4096, false), (65536 - 8192, true)]);
        assert_eq!(all.iter().map(|(len, _)| len).sum::<u64>(), 100_000);
        let received = world.exchange(id, &status(9000, 1000).bytes(mode));
        assert_eq!(extents(&received, mode), [(1000, true)]);
        let received = world.exchange(id, &status(8000, 100_000).flags(REQ_ONE).bytes(mode));
        assert_eq!(extents(&received, mode), [(192, false)]);
        world.end_all();
    }
}

#[test]
fn disk_without_extents_is_all_data() {
    let mut world = World::new();
    world.reports_extents = false;
    let id = attach(&mut world, Mode::Extended);
    let received = world.exchange(id, &status(0, SIZE as u64).bytes(Mode::Extended));
    assert_eq!(extents(&received, Mode::Extended), [(SIZE as u64, false)]);
    assert_eq!(world.conn(id).reported(), ["attached "]);
    world.end_all();
}

/// Case X26: the reply to a large range is bounded.
#[test]
fn x26_block_status_reply_is_bounded() {
    let mut world = World::new();
    for block in (0..SIZE / 512).step_by(2) {
        world.disk[block * 512..block * 512 + 512].fill(0);
    }
    let id = attach(&mut world, Mode::Structured);
    let received = world.exchange(id, &status(0, SIZE as u64).bytes(Mode::Structured));
    assert!(received.len() < 4200);
    assert_eq!(extents(&received, Mode::Structured).len(), 256);
    let received = world.exchange(id, &status(0, 0xffff_ffff).bytes(Mode::Structured));
    assert_eq!(error_of(&received), errno::EINVAL);
    let received = world.exchange(id, &status(0, 0).bytes(Mode::Structured));
    assert_eq!(error_of(&received), errno::EINVAL);
    world.end_all();
}

#[test]
fn block_status_needs_a_context_for_the_export() {
    let contexts = |name: &str, queries: &[&str]| {
        option(option::SET_META_CONTEXT, &MetaRequest::emit(name, queries))
    };
    let chosen = contexts("sda", &[BASE_ALLOCATION]);
    let replaced = [chosen.clone(), contexts("sda", &["other:context"])].concat();
    let failed = [chosen.clone(), contexts("nothing", &[BASE_ALLOCATION])].concat();
    for (sent, error) in [
        (Vec::new(), errno::EINVAL),
        (chosen.clone(), 0),
        (contexts("", &[BASE_ALLOCATION]), 0),
        (replaced, errno::EINVAL),
        (failed, errno::EINVAL),
    ] {
        let mut world = World::new();
        let id = world.open();
        let before =
            [flags().to_vec(), option(option::STRUCTURED_REPLY, &[]), sent, go("sda")].concat();
        world.exchange(id, &before);
        let received = world.exchange(id, &status(0, 512).bytes(Mode::Structured));
        assert_eq!(error_of(&received), error);
    }
}
