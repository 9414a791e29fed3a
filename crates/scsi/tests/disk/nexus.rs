//! Unit attention conditions, LUNs, the medium.

use export::Op;
use scsi::{Attention, Command, Sense, Status};

use crate::world::{World, code, ten};

#[test]
fn attention_is_reported_once_and_not_by_inquiry() {
    let mut world = World::new();
    world.initiators[0].nexus.attend(Attention::LunsChanged);
    assert!(world.run(&[0x12, 0, 0, 0, 36]).is_good());
    let response = world.run(&ten(0x28, 0, 0, 1));
    assert_eq!((response.status, code(&response)), (Status::CheckCondition, (0x3f, 0x0e)));
    assert!(world.run(&ten(0x28, 0, 0, 1)).is_good());
}

#[test]
fn report_luns_clears_the_attention_that_luns_changed() {
    let mut world = World::new();
    world.initiators[0].nexus.attend(Attention::LunsChanged);
    assert!(world.run(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16]).is_good());
    assert!(world.run(&[0]).is_good());
}

#[test]
fn request_sense_takes_the_attention() {
    let mut world = World::new();
    world.initiators[0].nexus.attend(Attention::CommandsCleared);
    assert_eq!(world.run(&[3, 0, 0, 0, 18]).data[12..14], [0x2f, 0]);
    assert!(world.run(&[0]).is_good());
}

#[test]
fn attentions_are_reported_in_order_and_a_reset_replaces_them() {
    let mut world = World::new();
    let nexus = &mut world.initiators[0].nexus;
    let all = [Attention::CommandsCleared, Attention::LunsChanged, Attention::CommandsCleared];
    all.into_iter().for_each(|attention| nexus.attend(attention));
    assert_eq!([(); 3].map(|()| code(&world.run(&[0]))), [(0x2f, 0), (0x3f, 0x0e), (0, 0)]);
    let nexus = &mut world.initiators[0].nexus;
    [Attention::LunsChanged, Attention::Reset].into_iter().for_each(|it| nexus.attend(it));
    assert_eq!([(); 2].map(|()| code(&world.run(&[0]))), [(0x29, 3), (0, 0)]);
}

#[test]
fn each_attention_has_its_own_sense_code() {
    let all = [
        (Attention::PowerOn, (0x29, 0)),
        (Attention::Reset, (0x29, 3)),
        (Attention::CommandsCleared, (0x2f, 0)),
        (Attention::ReservationsPreempted, (0x2a, 3)),
        (Attention::ReservationsReleased, (0x2a, 4)),
        (Attention::RegistrationsPreempted, (0x2a, 5)),
        (Attention::CapacityChanged, (0x2a, 9)),
        (Attention::LunsChanged, (0x3f, 0x0e)),
    ];
    for (attention, code) in all {
        assert_eq!((attention.sense().key(), attention.sense().code()), (6, code));
    }
}

#[test]
fn changed_capacity_is_an_attention() {
    let mut world = World::new();
    world.export.resize(1024);
    world.notify();
    world.notify();
    assert_eq!([(); 2].map(|()| code(&world.run(&[0]))), [(0x2a, 9), (0, 0)]);
}

#[test]
fn replaced_disk_is_an_attention() {
    let mut world = World::new();
    world.replace();
    world.notify();
    world.notify();
    assert_eq!([(); 2].map(|()| code(&world.run(&[0]))), [(0x29, 0), (0, 0)]);
}

#[test]
fn absent_lun_is_answered_as_one_without_a_disk() {
    let mut world = World::new();
    let lun = [0, 1, 0, 0, 0, 0, 0, 0];
    let data = world.send_to(0, lun, &[0x12, 0, 0, 0, 36], &[]).data;
    assert_eq!((data[0], &data[8..16]), (0x7f, &b"STORAGTM"[..]));
    let luns = world.send_to(0, lun, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], &[]);
    assert_eq!(luns.data.len(), 16);
    assert_eq!(world.send_to(0, lun, &[3, 0, 0, 0, 18], &[]).data[12..14], [0x25, 0]);
    for cdb in [&[0][..], &[0x12, 1, 0x83, 0, 255], &ten(0x28, 0, 0, 1), &[0xff]] {
        assert_eq!(code(&world.send_to(0, lun, cdb, &[])), (0x25, 0), "{cdb:02x?}");
    }
}

#[test]
fn lun_zero_has_two_addressing_methods() {
    let mut world = World::new();
    assert!(world.send_to(0, [0x40, 0, 0, 0, 0, 0, 0, 0], &[0], &[]).is_good());
    for lun in [[0, 0, 0, 1, 0, 0, 0, 0], [0xc1, 1, 0, 0, 0, 0, 0, 0], [0x80, 0, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(code(&world.send_to(0, lun, &[0], &[])), (0x25, 0));
    }
}

#[test]
fn unknown_commands_are_refused() {
    let mut world = World::new();
    for opcode in [0x01, 0x7f, 0x9c, 0x48, 0xff] {
        assert_eq!(code(&world.run(&[opcode])), (0x20, 0), "{opcode:02x}");
    }
    for cdb in [[0x9e, 0x1f], [0xa3, 0x0a], [0x5e, 4], [0x5f, 7], [0x83, 1], [0x84, 1]] {
        assert_eq!(code(&world.run(&cdb)), (0x24, 0), "{cdb:02x?}");
    }
}

#[test]
fn ejected_medium_is_flushed_and_not_present() {
    let mut world = World::new();
    assert!(world.run(&[0x1b, 0, 0, 0, 2]).is_good());
    assert_eq!(world.ops, [(Op::Flush, 0, 0)]);
    assert!(world.initiators[0].nexus.is_ejected());
    for cdb in [&[0][..], &ten(0x28, 0, 0, 1), &[0x25], &ten(0x35, 0, 0, 0)] {
        assert_eq!(world.run(cdb).sense, Some(Sense::MEDIUM_NOT_PRESENT), "{cdb:02x?}");
    }
    assert!(world.run(&[0x12, 0, 0, 0, 36]).is_good());
    assert!(world.run(&[0x1b, 0, 0, 0, 3]).is_good());
    assert!(world.run(&[0]).is_good());
}

#[test]
fn prevented_medium_is_not_ejected() {
    let mut world = World::new();
    assert!(world.run(&[0x1e, 0, 0, 0, 1]).is_good());
    assert_eq!(code(&world.run(&[0x1b, 0, 0, 0, 2])), (0x53, 2));
    assert!(world.run(&[0x1e]).is_good());
    assert!(world.run(&[0x1b, 0, 0, 0, 2]).is_good());
    let reset = |world: &mut World| {
        world.initiators[0].nexus.attend(Attention::Reset);
        assert_eq!(code(&world.run(&[0])), (0x29, 3));
    };
    reset(&mut world);
    assert!(world.run(&[0]).is_good(), "a reset loads the medium");
    assert!(world.run(&[0x1e, 0, 0, 0, 1]).is_good());
    reset(&mut world);
    assert!(world.run(&[0x1b, 0, 0, 0, 2]).is_good(), "a reset ends prevention");
}

/// SPC-4 §6.13: removal is prevented until every initiator allows it, or is gone.
#[test]
fn medium_that_any_initiator_holds_is_not_ejected() {
    let mut world = World::of((512, 4096), |export| export.removable = true);
    let other = world.add();
    assert_eq!(world.run(&[0x12, 0, 0, 0, 36]).data[1], 0x80);
    let prevent = &[0x1e, 0, 0, 0, 1];
    assert!(world.run(prevent).is_good() && world.send(other, prevent, &[]).is_good());
    let eject = [0x1b, 0, 0, 0, 2];
    assert_eq!(code(&world.send(other, &eject, &[])), (0x53, 2));
    assert!(world.run(&[0x1e]).is_good() && world.run(&[0x1e]).is_good());
    assert_eq!(code(&world.run(&eject)), (0x53, 2));
    world.initiators.truncate(other);
    assert!(world.run(&eject).is_good());
    assert_eq!(code(&world.run(&[0])), (0x3a, 0));
}

#[test]
fn stopping_flushes_and_power_conditions_have_no_effect() {
    let mut world = World::new();
    for power in 1..16 {
        assert!(world.run(&[0x1b, 0, 0, 0, power << 4 | 2]).is_good());
        assert!(world.run(&[0]).is_good());
    }
    assert_eq!(world.ops, []);
    assert!(world.run(&[0x1b, 1, 0, 0, 0]).is_good());
    assert!(world.run(&[0x1b, 0, 0, 0, 4]).is_good());
    assert!(world.run(&[0x1b, 0, 0, 0, 1]).is_good());
    assert_eq!(world.ops, [(Op::Flush, 0, 0)]);
}

#[test]
fn withdrawn_disk_is_not_present() {
    let mut world = World::new();
    world.export.withdraw();
    for cdb in [&[0][..], &ten(0x28, 0, 0, 1), &ten(0x2a, 0, 0, 1), &[0x25]] {
        assert_eq!(world.run(cdb).sense, Some(Sense::MEDIUM_NOT_PRESENT), "{cdb:02x?}");
    }
}

#[test]
fn lengths_that_a_cdb_asks_for_are_known() {
    let mut world = World::new();
    let mut lengths = |cdb: &[u8]| {
        let command = world.begin(0, [0; 8], cdb);
        let grant = &world.initiators[0].grant;
        (command.data_out(grant), command.data_in(grant))
    };
    assert_eq!(lengths(&ten(0x28, 0, 0, 3)), (0, 1536));
    assert_eq!(lengths(&ten(0x2a, 0, 0, 3)), (1536, 0));
    assert_eq!(lengths(&[0x12, 0, 0, 0, 36]), (0, 36));
    assert_eq!(lengths(&ten(0x2f, 2, 0, 3)), (1536, 0));
    assert_eq!(lengths(&ten(0x2f, 0, 0, 3)), (0, 0));
    assert_eq!(lengths(&ten(0x41, 0, 0, 3)), (512, 0));
    assert_eq!(lengths(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24]), (24, 0));
    assert_eq!(lengths(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]), (2048, 0));
    assert_eq!(lengths(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24]), (24, 0));
    assert!(matches!(world.begin(0, [0; 8], &[0xff]), Command::Done(_)));
}
