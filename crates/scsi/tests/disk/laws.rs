//! Laws: arbitrary CDBs and data.

use export::Fault;
use proptest::prelude::*;
use scsi::{Command, Status};

use crate::world::{Progress, World};

/// Operation codes that are supported, most of the time.
fn opcode() -> impl Strategy<Value = u8> {
    let supported = prop::sample::select(vec![
        0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x23, 0x25, 0x28, 0x2a,
        0x2e, 0x2f, 0x34, 0x35, 0x37, 0x41, 0x42, 0x55, 0x5a, 0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89,
        0x9c, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf,
        0xb7,
    ]);
    prop_oneof![9 => supported, 1 => any::<u8>()]
}

/// Bytes that are small, most of the time.
fn cdb() -> impl Strategy<Value = [u8; 16]> {
    let byte = prop_oneof![6 => Just(0), 2 => 0..32_u8, 1 => any::<u8>()];
    (opcode(), prop::collection::vec(byte, 15)).prop_map(|(opcode, rest)| {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[1..].copy_from_slice(&rest);
        cdb
    })
}

fn check_response(response: &scsi::Response) {
    assert_eq!(response.sense.is_some(), response.status == Status::CheckCondition);
    assert!(response.data.is_empty() || response.is_good());
}

/// Returns the allocation length of a CDB that has one.
fn allocation(cdb: &[u8; 16]) -> Option<u32> {
    let word = |at: usize| u32::from(u16::from_be_bytes([cdb[at], cdb[at + 1]]));
    match cdb[0] {
        0x03 | 0x1a => Some(cdb[4].into()),
        0x12 => Some(word(3)),
        0x5a | 0x5e | 0x23 | 0x37 => Some(word(7)),
        0x84 | 0x9e => Some(word(10) << 16 | word(12)),
        0xa0 | 0xa3 | 0xb7 => Some(word(6) << 16 | word(8)),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// No CDB panics, and none returns more than its allocation length.
    #[test]
    fn arbitrary_commands_end(
        cdbs in prop::collection::vec((cdb(), any::<u8>(), 0..40_u8), 1..20),
        faults in prop::collection::vec(0..40_usize, 0..6),
        large in any::<bool>(),
    ) {
        let geometry = if large { (4096, 4096) } else { (512, 4096) };
        let mut world = World::of(geometry, |export| export.discard_zeroes = true);
        world.add();
        let fault = |number: usize| Fault::ALL.get(number).copied().map_or(Ok(()), Err);
        world.faults.extend(faults.into_iter().map(fault));
        for (cdb, fill, which) in cdbs {
            let who = usize::from(which % 2);
            let lun = if which < 38 { [0; 8] } else { [0, which, 0, 0, 0, 0, 0, 0] };
            match world.begin(who, lun, &cdb) {
                Command::Done(response) => {
                    check_response(&response);
                    let limit = allocation(&cdb).unwrap_or(8);
                    prop_assert!(response.data.len() <= limit as usize, "{:02x?}", cdb);
                }
                Command::Read(transfer) | Command::Write(transfer) => {
                    let end = transfer.lba + u64::from(transfer.blocks);
                    prop_assert!(end <= world.export.blocks());
                }
                Command::Job(job) => {
                    let expected = job.data_out();
                    let data = vec![fill; usize::try_from(expected).unwrap()];
                    let mut left = &data[..];
                    let mut progress = world.advance(who, job, &mut left);
                    loop {
                        match progress {
                            Progress::Done(response) => {
                                check_response(&response);
                                prop_assert!(!response.is_good() || left.is_empty());
                                let limit = allocation(&cdb).unwrap_or(0);
                                prop_assert!(response.data.len() <= limit as usize);
                                break;
                            }
                            Progress::Waiting(_) => prop_assert!(false, "waits: {:02x?}", cdb),
                            Progress::Submitted(job, admitted) => {
                                progress = world.finish(who, job, admitted, &mut left);
                            }
                        }
                    }
                    prop_assert!(!world.export.is_being_written());
                }
            }
        }
    }

    /// Parameter lists of any bytes are refused or accepted.
    #[test]
    fn arbitrary_parameter_lists_end(
        opcode in prop::sample::select(vec![0x15_u8, 0x42, 0x55, 0x5f, 0x83]),
        action in 0..8_u8,
        list in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..64),
    ) {
        let mut world = World::new();
        let len = u8::try_from(list.len()).unwrap();
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        match opcode {
            0x15 => (cdb[1], cdb[4]) = (0x10, len),
            0x55 => (cdb[1], cdb[8]) = (0x10, len),
            0x5f => (cdb[1], cdb[2], cdb[8]) = (action, 1, len),
            0x83 => cdb[13] = len,
            _ => cdb[8] = len,
        }
        check_response(&world.run_out(&cdb, &list));
    }
}
