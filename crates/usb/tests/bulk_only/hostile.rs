//! Arbitrary transfers: no panic, memory is freed, and the disk changes only by whole commands.

use export::Session as _;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::world::{World, disk, transfer_10};

#[derive(Debug, Clone)]
enum Act {
    Bytes(Vec<u8>),
    Command { cdb: Vec<u8>, to_host: bool, length: u32, lun: u8, data: usize },
    Complete(usize),
    Reset,
    Fail,
}

fn act() -> impl Strategy<Value = Act> {
    let opcode = prop::sample::select(vec![
        0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x23, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x35, 0x41, 0x42,
        0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8b, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa,
    ]);
    let cdb = (opcode, prop::collection::vec(prop_oneof![Just(0u8), 0..4u8, any::<u8>()], 0..16))
        .prop_map(|(opcode, rest)| [&[opcode][..], &rest].concat());
    let cdb = prop_oneof![
        cdb,
        (any::<bool>(), 0..2100u32, 0..900u16).prop_map(|(read, lba, blocks)| {
            transfer_10(if read { 0x28 } else { 0x2a }, lba, blocks).to_vec()
        })
    ];
    let length = prop_oneof![0..4096u32, (0..900u32).prop_map(|blocks| blocks * 512), any::<u32>()];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Act::Bytes),
        6 => (cdb, any::<bool>(), length, 0..3u8, 0..600_000usize).prop_map(
            |(cdb, to_host, length, lun, data)| Act::Command { cdb, to_host, length, lun, data }
        ),
        2 => (0..3usize).prop_map(Act::Complete),
        1 => Just(Act::Reset),
        1 => Just(Act::Fail),
    ]
}

fn run(acts: Vec<Act>, hold: bool) {
    let mut world =
        World::new(&[disk("a", export::Access::Writable), disk("b", export::Access::ReadOnly)]);
    world.hold = hold;
    for act in acts {
        if world.closed.is_some() {
            world.reset();
        }
        match act {
            Act::Bytes(bytes) => {
                world.offer(&bytes);
            }
            Act::Command { cdb, to_host, length, lun, data } => {
                let cbw = world.cbw(lun, &cdb, to_host, length);
                if world.session().can_receive() {
                    world.send(cbw.as_bytes());
                }
                let data = vec![7; data.min(length as usize)];
                for piece in data.chunks(64 << 10) {
                    world.offer(piece);
                }
            }
            Act::Complete(at) if at < world.held.len() => world.complete(at),
            Act::Reset => world.reset(),
            Act::Fail => world.fault = Some(export::Fault::Io),
            Act::Complete(_) => {}
        }
        // Freed as if it had been sent.
        world.sent.clear();
    }
    world.reset();
    assert!(world.account.held() == 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// X39: a hostile host can neither crash the device nor leak its memory.
    #[test]
    fn x39_arbitrary_transfers_are_survived(
        acts in prop::collection::vec(act(), 1..30), hold in any::<bool>()
    ) {
        run(acts, hold);
    }
}
