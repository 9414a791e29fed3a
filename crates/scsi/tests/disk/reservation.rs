//! PERSISTENT RESERVE IN and OUT, RESERVE (6) and RELEASE (6) (SPC-4, SPC-2).

use std::fs::File;

use export::{Access, Backing, Export, OverlayLayout};
use scsi::{Response, Status};

use crate::world::{Progress, SECTOR, World, code, ten};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const REGISTER_AND_IGNORE: u8 = 6;

const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

fn parameters(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let keys = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    [&keys[..], &[0, 0, 0, 0, flags, 0, 0, 0]].concat()
}

fn out(world: &mut World, who: usize, action: u8, kind: u8, keys: (u64, u64)) -> Response {
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    world.send(who, &cdb, &parameters(keys.0, keys.1, 0))
}

fn report(world: &mut World, action: u8) -> Vec<u8> {
    let response = world.run(&[0x5e, action, 0, 0, 0, 0, 0, 4, 0, 0]);
    assert!(response.is_good());
    response.data
}

/// A disk with two initiators that are registered with the keys 1 and 2.
fn registered() -> World {
    let mut world = World::new();
    world.add();
    assert!(out(&mut world, 0, REGISTER, 0, (0, 1)).is_good());
    assert!(out(&mut world, 1, REGISTER_AND_IGNORE, 0, (9, 2)).is_good());
    world
}

fn conflicts(response: &Response) -> bool {
    response.status == Status::ReservationConflict && response.sense.is_none()
}

#[test]
fn golden_keys_and_reservation() {
    let mut world = registered();
    let keys = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];
    assert_eq!(report(&mut world, 0), keys);
    assert_eq!(world.run(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0]).data, keys[..8]);
    assert_eq!(report(&mut world, 1), [0, 0, 0, 2, 0, 0, 0, 0]);
    assert!(out(&mut world, 1, RESERVE, 5, (2, 0)).is_good());
    #[rustfmt::skip]
    assert_eq!(report(&mut world, 1), [
        0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 5, 0, 0,
    ]);
}

#[test]
fn golden_capabilities() {
    assert_eq!(report(&mut World::new(), 2), [0, 8, 0x10, 0x80, 0xea, 1, 0, 0]);
}

#[test]
fn golden_full_status() {
    let mut world = registered();
    assert!(out(&mut world, 0, RESERVE, 1, (1, 0)).is_good());
    let name = b"iqn.2026-01.org.example:host,i,0x400000000000\0\0\0";
    let mut first = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 52];
    first.extend([0x45, 0, 0, 48]);
    first.extend(name);
    let mut second = first.clone();
    (second[7], second[12], second[13]) = (2, 0, 0);
    second[28 + 44] = b'1';
    let expected = [&[0, 0, 0, 2, 0, 0, 0, 152][..], &first, &second].concat();
    assert_eq!(report(&mut world, 3), expected);
}

#[test]
fn reservation_of_all_registrants_has_no_key() {
    for kind in [7, 8] {
        let mut world = registered();
        assert!(out(&mut world, 0, RESERVE, kind, (1, 0)).is_good());
        let data = report(&mut world, 1);
        assert_eq!((&data[8..16], data[21]), (&[0; 8][..], kind));
        assert_eq!(report(&mut world, 3)[8 + 12], 1);
        assert_eq!(report(&mut world, 3)[8 + 76 + 12], 1);
    }
}

#[test]
fn registration_needs_the_current_key() {
    let mut world = registered();
    assert!(conflicts(&out(&mut world, 0, REGISTER, 0, (2, 3))));
    assert!(conflicts(&out(&mut world, 0, REGISTER, 0, (0, 3))));
    assert!(conflicts(&out(&mut world, 0, REGISTER, 0, (0, 0))));
    assert!(out(&mut world, 0, REGISTER, 0, (1, 3)).is_good());
    assert!(out(&mut world, 0, REGISTER_AND_IGNORE, 0, (77, 4)).is_good());
    assert_eq!(report(&mut world, 0)[15], 4);
    assert!(out(&mut world, 0, REGISTER, 0, (4, 0)).is_good());
    // Without a registration.
    assert!(conflicts(&out(&mut world, 0, REGISTER, 0, (4, 5))));
    assert!(out(&mut world, 0, REGISTER, 0, (0, 0)).is_good());
    assert!(out(&mut world, 0, REGISTER_AND_IGNORE, 0, (1, 0)).is_good());
    assert!(conflicts(&out(&mut world, 0, RESERVE, 1, (4, 0))));
    assert_eq!(report(&mut world, 0)[7], 8);
}

#[test]
fn each_type_admits_whom_it_should() {
    // What a registrant and another one may read and write.
    let table = [
        (1, [true, false, true, false]),
        (3, [false, false, false, false]),
        (5, [true, true, true, false]),
        (6, [true, true, false, false]),
        (7, [true, true, true, false]),
        (8, [true, true, false, false]),
    ];
    for (kind, expected) in table {
        let mut world = registered();
        let other = world.add();
        assert!(out(&mut world, 0, RESERVE, kind, (1, 0)).is_good());
        let mut access = |who| {
            let read = world.send(who, &ten(0x28, 0, 0, 1), &[]);
            let write = world.send(who, &ten(0x2a, 0, 0, 1), &[0; SECTOR]);
            [read, write].map(|response| {
                assert!(response.is_good() || conflicts(&response));
                response.is_good()
            })
        };
        assert_eq!(access(0), [true; 2], "type {kind}");
        assert_eq!([access(1), access(other)].concat(), expected, "type {kind}");
    }
}

#[test]
fn commands_without_blocks_follow_the_reservation() {
    let mut world = registered();
    let other = world.add();
    assert!(out(&mut world, 0, RESERVE, 3, (1, 0)).is_good());
    for cdb in [
        &[0x1a, 0, 0x3f, 0, 255][..],
        &[0x15, 0x10, 0, 0, 0],
        &[0x1e, 0, 0, 0, 1],
        &[0x1b, 0, 0, 0, 0],
        &ten(0x35, 0, 0, 0),
        &ten(0x2f, 0, 0, 1),
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ] {
        assert!(conflicts(&world.send(other, cdb, &[])), "{cdb:02x?}");
    }
    for cdb in [
        &[0][..],
        &[0x12, 0, 0, 0, 36],
        &[0x25],
        &[0x1e],
        &[0x1b, 0, 0, 0, 1],
        &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8],
        &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16],
        &[3, 0, 0, 0, 18],
    ] {
        assert!(world.send(other, cdb, &[]).is_good(), "{cdb:02x?}");
    }
}

#[test]
fn release_of_another_type_is_refused() {
    for kind in TYPES {
        let mut world = registered();
        assert!(out(&mut world, 0, RESERVE, kind, (1, 0)).is_good());
        let wrong = if kind == 1 { 3 } else { 1 };
        assert_eq!(code(&out(&mut world, 0, RELEASE, wrong, (1, 0))), (0x26, 4));
        assert!(conflicts(&out(&mut world, 0, RELEASE, kind, (5, 0))));
        assert!(out(&mut world, 0, RELEASE, kind, (1, 0)).is_good());
        assert_eq!(report(&mut world, 1).len(), 8);
    }
}

#[test]
fn others_are_notified_by_unit_attentions() {
    let mut world = registered();
    assert!(out(&mut world, 0, RESERVE, 5, (1, 0)).is_good());
    assert!(out(&mut world, 0, RELEASE, 5, (1, 0)).is_good());
    assert_eq!(code(&world.send(1, &[0], &[])), (0x2a, 4));
    assert!(out(&mut world, 0, PREEMPT, 1, (1, 2)).is_good());
    assert_eq!(code(&world.send(1, &[0], &[])), (0x2a, 5));
    assert!(world.send(1, &[0], &[]).is_good());
    assert!(out(&mut world, 1, REGISTER, 0, (0, 2)).is_good());
    assert!(out(&mut world, 1, CLEAR, 0, (2, 0)).is_good());
    assert_eq!([(); 2].map(|()| code(&world.run(&[0]))), [(0x2a, 3), (0, 0)]);
    assert_eq!(report(&mut world, 0)[4..8], [0; 4]);
    assert!(world.notifications > 0);
}

#[test]
fn reservation_is_answered_when_writes_of_others_have_ended() {
    let mut world = registered();
    let data = &mut &[7; SECTOR][..];
    let write = world.job(1, &ten(0x2e, 0, 0, 1));
    let Progress::Submitted(write, admitted) = world.advance(1, write, data) else {
        panic!("no write");
    };
    let list = parameters(1, 0, 0);
    let list = &mut &list[..];
    let reserve = world.job(0, &[0x5f, RESERVE, 3, 0, 0, 0, 0, 0, 24, 0]);
    let Progress::Waiting(reserve) = world.advance(0, reserve, list) else {
        panic!("does not wait");
    };
    let Progress::Done(response) = world.finish(1, write, admitted, data) else {
        panic!("reads back");
    };
    assert!(conflicts(&response));
    assert_eq!(world.blocks(0, 1), [7; SECTOR]);
    let Progress::Done(response) = world.advance(0, reserve, list) else { panic!("waits") };
    assert!(response.is_good());
}

#[test]
fn malformed_commands_have_no_effect() {
    let mut world = registered();
    for length in [0, 23, 25] {
        let cdb = [0x5f, REGISTER, 0, 0, 0, 0, 0, 0, length, 0];
        assert_eq!(code(&world.run(&cdb)), (0x1a, 0));
    }
    for kind in [0, 2, 4, 9, 0x11] {
        assert_eq!(code(&out(&mut world, 0, RESERVE, kind, (1, 0))), (0x24, 0), "{kind:02x}");
    }
    let mut register = |flags| {
        let cdb = [0x5f, REGISTER, 0, 0, 0, 0, 0, 0, 24, 0];
        code(&world.run_out(&cdb, &parameters(1, 3, flags)))
    };
    // SPEC_I_PT, ALL_TG_PT, and APTPL without a store.
    assert_eq!([8, 4, 1].map(&mut register), [(0x26, 0); 3]);
    assert_eq!(code(&out(&mut world, 0, PREEMPT, 1, (1, 0))), (0x26, 0));
    assert!(conflicts(&out(&mut world, 0, PREEMPT, 1, (1, 99))));
    assert_eq!(report(&mut world, 0)[3], 2, "the generation");
}

/// SPC-4: the device server ignores SCOPE and TYPE where it only removes registrations.
#[test]
fn type_of_a_preempt_that_removes_registrations_is_ignored() {
    let mut world = registered();
    assert!(out(&mut world, 0, PREEMPT, 0, (1, 2)).is_good());
    assert_eq!(report(&mut world, 0)[4..8], [0, 0, 0, 8]);
    assert_eq!(code(&world.send(1, &[0], &[])), (0x2a, 5));
    assert!(out(&mut world, 1, REGISTER, 0, (0, 2)).is_good());
    assert!(out(&mut world, 1, RESERVE, 1, (2, 0)).is_good());
    for kind in [0, 2, 4, 9, 0x11] {
        assert_eq!(code(&out(&mut world, 0, PREEMPT, kind, (1, 2))), (0x24, 0), "{kind:02x}");
    }
    assert!(out(&mut world, 0, PREEMPT, 1, (1, 2)).is_good());
}

#[test]
fn reserved_unit_is_refused_to_others_until_it_is_released() {
    let mut world = World::new();
    let other = world.add();
    let (reserve, release) = ([0x16], [0x17]);
    assert!(world.run(&reserve).is_good());
    assert!(world.run(&reserve).is_good());
    let refused =
        [&reserve[..], &[0], &[0x1a, 0, 0x3f, 0, 255], &ten(0x28, 0, 0, 1), &ten(0x2a, 0, 0, 1)];
    for cdb in refused {
        assert!(conflicts(&world.send(other, cdb, &[])), "{cdb:02x?}");
        if cdb.len() > 1 {
            assert!(!conflicts(&world.send(0, cdb, &[0; SECTOR])), "{cdb:02x?}");
        }
    }
    assert!(world.send(other, &[0x12, 0, 0, 0, 36], &[]).is_good());
    assert!(world.send(other, &release, &[]).is_good());
    assert!(conflicts(&world.send(other, &[0], &[])));
    assert!(world.run(&release).is_good());
    assert!(world.send(other, &reserve, &[]).is_good());
    assert!(conflicts(&world.run(&[0])));
}

#[test]
fn disk_with_contents_for_each_host_is_not_reserved() {
    let mut world = World::of((512, 512), |export| {
        let files = [(); 3].map(|()| File::open("/dev/null").unwrap().into());
        let layout =
            OverlayLayout { limit: 1 << 20, map_cost: 1, is_private: true, is_durable: false };
        let backing = Backing::new(layout.into(), files.into()).unwrap();
        let Export { id, identity, geometry, .. } = &*export;
        *export = Export::new("overlay", id.clone(), identity.clone(), *geometry, 1 << 20, backing);
        export.access = Access::Writable;
    });
    for cdb in
        [&[0x5e, 0, 0, 0, 0, 0, 0, 4, 0, 0][..], &[0x16, 0, 0, 0, 0, 0], &[0x17, 0, 0, 0, 0, 0]]
    {
        assert_eq!(code(&world.run(cdb)), (0x20, 0), "{cdb:?}");
        let supported = world.run(&[0xa3, 0x0c, 3, cdb[0], 0, 0, 0, 0, 4, 0, 0, 0]).data;
        assert_eq!(supported[1], 1, "{cdb:?}");
    }
    assert_eq!(code(&out(&mut world, 0, REGISTER, 0, (0, 1))), (0x20, 0));
}
