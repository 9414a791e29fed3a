//! Malicious initiators: each PDU in each state, false lengths, numbers and tags.

use export::Reason;
use iscsi::wire::bhs::{self, Bhs, FINAL, of_target};
use iscsi::wire::login::TRANSIT;
use iscsi::wire::opcode::{self, IMMEDIATE};
use zerocopy::IntoBytes;

use crate::initiator::{Initiator, NONE, SHORT, pdu, read_10, status, text_of, write_10};
use crate::world::{Id, World};

type Setup = fn(&mut World) -> Id;

/// Connections in each state, by name.
fn states() -> [(&'static str, Setup); 6] {
    [
        ("login", World::open),
        ("negotiating", |world| {
            let id = world.open();
            let initiator = Initiator::new(id);
            world.send(id, &initiator.login_bytes(1 << 2, &text_of(SHORT)));
            id
        }),
        ("discovery", |world| {
            let id = world.open();
            let names = [("InitiatorName", "iqn.x:a"), ("SessionType", "Discovery")];
            Initiator::new(id).login(world, &names);
            id
        }),
        ("attached", |world| Initiator::attached(world).id),
        ("data", |world| {
            let mut initiator = Initiator::attached(world);
            let command = initiator.scsi(write_10(0, 16), FINAL | bhs::WRITE, 8192);
            let whole = initiator.pdu(&command, &[1; 8192]);
            world.send(initiator.id, &whole[..100]);
            initiator.id
        }),
        ("solicited", |world| {
            let mut initiator = Initiator::attached(world);
            world.conn(initiator.id).hold = true;
            initiator.read(world, 0, 8);
            initiator.command(world, write_10(0, 16), bhs::WRITE, 8192, &[]);
            initiator.id
        }),
    ]
}

/// Every PDU, and some invalid ones.
fn messages() -> Vec<Vec<u8>> {
    let mut all = vec![vec![0xff; 48], vec![0; 48], b"GET / HTTP/1.1".to_vec()];
    for code in (0..=0x3f).flat_map(|code| [code, code | IMMEDIATE]) {
        for flags in [0, FINAL, 0xff, FINAL | 1 << 2 | 3, FINAL | bhs::READ, bhs::WRITE] {
            for data in [&[][..], &[0; 5], b"SendTargets=All\0"] {
                let mut header = of_target(code);
                (header.flags, header.itt) = (flags, 0x102.into());
                header.rest[4..8].copy_from_slice(&2_u32.to_be_bytes());
                header.rest[8..24].fill(flags);
                all.push(pdu(&header, data, false, false));
            }
        }
    }
    all
}

/// Case X25.
#[test]
fn x25_any_pdu_in_any_state_leaks_nothing() {
    for (name, setup) in states() {
        for message in messages() {
            let mut world = World::small(1 << 16, 512);
            let id = setup(&mut world);
            world.send(id, &message.repeat(2));
            if let Some(reason) = world.conn(id).closed {
                let known = matches!(reason, Reason::Violation | Reason::Peer | Reason::Refused);
                assert!(known, "{name}: {reason}");
            }
            world.end_all();
        }
    }
}

/// Sends a PDU of an attached initiator. Returns what was reported, and the opcodes received.
fn answer(
    make: impl FnOnce(&mut Initiator, &mut World) -> Vec<u8>,
) -> (Vec<String>, Vec<u8>, Option<Reason>) {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let bytes = make(&mut initiator, &mut world);
    world.received(initiator.id);
    world.send(initiator.id, &bytes);
    let codes = initiator.received(&mut world).iter().map(|pdu| pdu.opcode()).collect();
    let conn = world.conn(initiator.id);
    let found = (conn.reported().split_off(1), codes, conn.closed);
    world.end_all();
    found
}

#[track_caller]
fn violates(rule: &str, make: impl FnOnce(&mut Initiator, &mut World) -> Vec<u8>) {
    let (reported, codes, closed) = answer(make);
    assert_eq!(reported[0], format!("violation {rule}"));
    assert_eq!(codes.last(), Some(&opcode::REJECT));
    assert_eq!(closed, Some(Reason::Violation));
}

/// Case X35: lengths.
#[test]
fn x35_wrong_lengths_end_the_session() {
    let (reported, codes, _) = answer(|_, _| {
        let mut header = of_target(opcode::NOP_OUT);
        header.data_len = ((256 << 10) + 1).into();
        header.as_bytes().to_vec()
    });
    assert_eq!((reported[0].as_str(), codes.len()), ("violation SegmentTooLong", 0));
    violates("DataTooLong", |initiator, _| {
        let command = initiator.scsi(write_10(0, 1), FINAL | bhs::WRITE, 512);
        initiator.pdu(&command, &[1; 516])
    });
    violates("DataTooLong", |initiator, _| {
        let command = initiator.scsi(read_10(0, 1), FINAL | bhs::READ, 512);
        initiator.pdu(&command, &[1; 512])
    });
}

#[test]
fn immediate_data_must_have_been_negotiated() {
    let mut world = World::new();
    let keys: Vec<_> = SHORT[..3].iter().copied().chain([("ImmediateData", "No")]).collect();
    let mut initiator = Initiator::attached_with(&mut world, &keys);
    initiator.command(&mut world, write_10(0, 1), bhs::WRITE, 512, &[1; 512]);
    assert_eq!(world.conn(initiator.id).reported()[1], "violation DataNotExpected");
    let mut initiator = Initiator::attached_with(&mut world, &keys);
    let unsolicited = initiator.scsi(write_10(0, 1), bhs::WRITE, 512);
    world.send(initiator.id, &initiator.pdu(&unsolicited, &[]));
    assert_eq!(world.conn(initiator.id).reported()[1], "violation DataNotExpected");
    world.end_all();
}

/// Case X35: sequence numbers and tags.
#[test]
fn x35_wrong_numbers_and_tags_end_the_session() {
    violates("CmdSnSkipped", |initiator, _| {
        initiator.cmd_sn += 1;
        let command = initiator.scsi([0; 16], FINAL, 0);
        initiator.pdu(&command, &[])
    });
    violates("DataNotExpected", |initiator, _| {
        let data = initiator.data_out(0x999, NONE, 0, 0, true);
        initiator.pdu(&data, &[1; 512])
    });
    violates("LoginInFullFeature", |initiator, _| {
        initiator.login_bytes(TRANSIT | 1 << 2 | 3, &text_of(SHORT))
    });
    let solicited = |initiator: &mut Initiator, world: &mut World| {
        let pdus = initiator.command(world, write_10(0, 8), bhs::WRITE, 4096, &[]);
        let r2t = bhs::R2t::of(&pdus[0].header);
        (r2t.itt.get(), r2t.ttt.get())
    };
    for (rule, ttt_off, sn, offset, len, last) in [
        ("DataNotExpected", 1, 0, 0, 4096, true),
        ("DataOffsetWrong", 0, 0, 512, 512, false),
        ("DataTooLong", 0, 0, 0, 4100, false),
        ("DataOffsetWrong", 0, 0, 0, 512, true),
    ] {
        violates(rule, |initiator, world| {
            let (itt, ttt) = solicited(initiator, world);
            let data = initiator.data_out(itt, ttt + ttt_off, sn, offset, last);
            initiator.pdu(&data, &vec![1; len])
        });
    }
}

/// Case X35: a command whose data has a gap fails, and the session goes on.
#[test]
fn x35_wrong_data_number_fails_the_command() {
    for sn in [1, 27, u32::MAX] {
        let mut world = World::new();
        let mut initiator = Initiator::attached(&mut world);
        let pdus = initiator.command(&mut world, write_10(0, 8), bhs::WRITE, 4096, &[]);
        let r2t = bhs::R2t::of(&pdus[0].header);
        let data = initiator.data_out(r2t.itt.get(), r2t.ttt.get(), sn, 0, true);
        world.send(initiator.id, &initiator.pdu(&data, &[9; 4096]));
        assert_eq!(crate::initiator::sense(&initiator.received(&mut world)), (0xb, 0x47, 5));
        assert_eq!(status(&initiator.read(&mut world, 0, 8)), 0);
        assert!(world.disk[..512] == [0; 512], "nothing was written");
        world.end_all();
    }
}

#[test]
fn commands_outside_the_window_are_ignored() {
    for skew in [-1_i32, 128, 1 << 30] {
        let (reported, codes, closed) = answer(|initiator, _| {
            let mut command = initiator.scsi(write_10(0, 1), FINAL | bhs::WRITE, 512);
            command.cmd_sn = command.cmd_sn.get().wrapping_add_signed(skew).into();
            initiator.pdu(&command, &[1; 512])
        });
        assert_eq!((reported.len(), codes.len(), closed), (0, 0, None), "{skew}");
    }
}

#[test]
fn task_tag_in_use_is_rejected() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    world.conn(initiator.id).hold = true;
    initiator.read(&mut world, 0, 1);
    let mut again = initiator.scsi(read_10(1, 1), FINAL | bhs::READ, 512);
    again.itt = (again.itt.get() - 1).into();
    world.send(initiator.id, &initiator.pdu(&again, &[]));
    let pdus = initiator.received(&mut world);
    assert_eq!((pdus[0].opcode(), pdus[0].header.specific[0]), (opcode::REJECT, 7));
    assert_eq!(Bhs::of(&pdus[0].header).data_len.get(), 48);
    world.finish_all(initiator.id);
    assert_eq!(status(&initiator.received(&mut world)), 0);
    world.end_all();
}

/// Case X35: additional header segments.
#[test]
fn x35_additional_headers_fail_the_command() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let mut command = initiator.scsi(read_10(0, 1), FINAL | bhs::READ, 512);
    command.ahs_len = 2;
    let mut bytes = initiator.pdu(&command, &[]);
    bytes.extend([0, 5, 1, 0, 0, 0, 0, 0]);
    world.send(initiator.id, &bytes);
    assert_eq!(status(&initiator.received(&mut world)), 2);
    assert_eq!(status(&initiator.read(&mut world, 0, 1)), 0);
    world.end_all();
}

/// Case X36: EXTENDED COPY from and to a disk that is none of the session's.
#[test]
fn x36_copy_of_another_disk_is_refused() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    let before = world.disk.clone();
    // One disk, by an NAA designator, and one segment from block 0 to block 8.
    let mut list = vec![0; 16 + 32 + 28];
    (list[3], list[11]) = (32, 28);
    list[16..28].copy_from_slice(&[0xe4, 0, 0, 0, 1, 3, 0, 8, 0x52, 1, 2, 3]);
    list[48..52].copy_from_slice(&[2, 0, 0, 24]);
    (list[59], list[75]) = (8, 8);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x83, 76);
    let pdus = initiator.command(&mut world, cdb, bhs::WRITE, 76, &list);
    assert_eq!(status(&pdus), 2);
    assert!(world.disk == before);
    world.end_all();
}

/// Case X37: ranges that wrap, and other LUNs.
#[test]
fn x37_only_the_disk_of_the_session_is_reached() {
    let mut world = World::new();
    let mut initiator = Initiator::attached(&mut world);
    for lba in [4096, u64::from(u32::MAX), u64::MAX, u64::MAX - 1, 1 << 55, (1 << 55) - 1] {
        for code in [0x88, 0x8a] {
            let mut cdb = [0; 16];
            cdb[0] = code;
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[13] = 2;
            let (flags, data) = if code == 0x88 { (bhs::READ, 0) } else { (bhs::WRITE, 1024) };
            let pdus = initiator.command(&mut world, cdb, flags, 1024, &vec![9; data]);
            assert_eq!(crate::initiator::sense(&pdus), (5, 0x21, 0), "{lba:x}");
        }
    }
    for lun in [1_u64 << 48, 2 << 48, 1 << 32, 0xc101 << 48, u64::MAX] {
        let mut command = initiator.scsi(read_10(0, 1), FINAL | bhs::READ, 512);
        command.lun = lun.into();
        world.send(initiator.id, &initiator.pdu(&command, &[]));
        let pdus = initiator.received(&mut world);
        assert_eq!(crate::initiator::sense(&pdus), (5, 0x25, 0), "{lun:x}");
    }
    world.end_all();
}
