//! Block status: what the disk knows, cut to what was asked.

use nbd::wire::errno;
use nbd::wire::meta::{BASE_ALLOCATION, MetaRequest};
use nbd::wire::option;
use nbd::wire::reply::{BLOCK_STATUS, BLOCK_STATUS_EXT};
use nbd::wire::request::{self, REQ_ONE};

use crate::says::{Mode, Say, attach, error_of, flags, go, option, replies};
use crate::world::{SIZE, World};

/// The extents of an answer: length, and whether they are holes that read as zeros.
fn extents(heard: &[u8], mode: Mode) -> Vec<(u64, bool)> {
    let all = replies(heard, |_| 0);
    assert_eq!((all.len(), all[0].done), (1, true));
    let data = &all[0].data;
    assert_eq!(data[..4], [0, 0, 0, 1], "the number of the context");
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

fn status(offset: u64, len: u64) -> Say {
    Say::new(request::BLOCK_STATUS, 1, offset, len)
}

#[test]
fn data_and_holes_are_told_and_cut_to_the_range() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut world = World::new();
        world.disk[8192..65536].fill(0);
        let id = attach(&mut world, mode);
        let heard = world.ask(id, &status(4096, 100_000).bytes(mode));
        let all = extents(&heard, mode);
        assert_eq!(all[..2], [(4096, false), (65536 - 8192, true)]);
        assert_eq!(all.iter().map(|(len, _)| len).sum::<u64>(), 100_000);
        let heard = world.ask(id, &status(9000, 1000).bytes(mode));
        assert_eq!(extents(&heard, mode), [(1000, true)]);
        let heard = world.ask(id, &status(8000, 100_000).flags(REQ_ONE).bytes(mode));
        assert_eq!(extents(&heard, mode), [(192, false)]);
        world.end_all();
    }
}

#[test]
fn a_disk_that_does_not_know_is_all_data() {
    let mut world = World::new();
    world.knows_extents = false;
    let id = attach(&mut world, Mode::Extended);
    let heard = world.ask(id, &status(0, SIZE as u64).bytes(Mode::Extended));
    assert_eq!(extents(&heard, Mode::Extended), [(SIZE as u64, false)]);
    assert_eq!(world.conn(id).told(), ["attached "]);
    world.end_all();
}

/// Case X26: what is asked may be long, the answer is not.
#[test]
fn x26_a_huge_block_status_is_one_bounded_answer() {
    let mut world = World::new();
    for block in (0..SIZE / 512).step_by(2) {
        world.disk[block * 512..block * 512 + 512].fill(0);
    }
    let id = attach(&mut world, Mode::Structured);
    let heard = world.ask(id, &status(0, SIZE as u64).bytes(Mode::Structured));
    assert!(heard.len() < 4200);
    assert_eq!(extents(&heard, Mode::Structured).len(), 256);
    let heard = world.ask(id, &status(0, 0xffff_ffff).bytes(Mode::Structured));
    assert_eq!(error_of(&heard), errno::EINVAL);
    let heard = world.ask(id, &status(0, 0).bytes(Mode::Structured));
    assert_eq!(error_of(&heard), errno::EINVAL);
    world.end_all();
}

#[test]
fn without_a_context_for_that_export_there_is_no_block_status() {
    let contexts = |name: &str, queries: &[&str]| {
        option(option::SET_META_CONTEXT, &MetaRequest::emit(name, queries))
    };
    let chosen = contexts("sda", &[BASE_ALLOCATION]);
    let replaced = [chosen.clone(), contexts("sda", &["other:context"])].concat();
    let failed = [chosen.clone(), contexts("nothing", &[BASE_ALLOCATION])].concat();
    for (said, error) in [
        (Vec::new(), errno::EINVAL),
        (chosen.clone(), 0),
        (contexts("", &[BASE_ALLOCATION]), 0),
        (replaced, errno::EINVAL),
        (failed, errno::EINVAL),
    ] {
        let mut world = World::new();
        let id = world.open();
        let before =
            [flags().to_vec(), option(option::STRUCTURED_REPLY, &[]), said, go("sda")].concat();
        world.ask(id, &before);
        let heard = world.ask(id, &status(0, 512).bytes(Mode::Structured));
        assert_eq!(error_of(&heard), error);
    }
}
