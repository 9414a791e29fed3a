use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ReservationCommand::{
    Clear, Preempt, Register, Release, ReleaseUnit, Replace, Reserve, ReserveUnit, ResetUnit,
    SetPersistence, Unregister,
};
use crate::ReservationNotice::{RegistrationPreempted, ReservationPreempted, ReservationReleased};
use crate::ReservationType::{
    ExclusiveAccess, ExclusiveAccessAllRegistrants, ExclusiveAccessRegistrantsOnly, WriteExclusive,
    WriteExclusiveAllRegistrants, WriteExclusiveRegistrantsOnly,
};

fn host(number: u8) -> Registrant {
    Registrant { host: "nqn.test:host".to_owned(), id: vec![number; 16], port: 0, proven: true }
}

/// A state, and the notices of the last command by host.
#[derive(Default)]
struct World {
    state: Reservations,
    notices: Vec<(u8, ReservationNotice)>,
}

impl World {
    /// Hosts 1 to 3 are registered with the keys 11 to 13.
    fn registered() -> Self {
        let mut world = Self::default();
        (1..4).for_each(|n| world.run(n, Register { key: 10 + u64::from(n) }).unwrap());
        world
    }

    /// Host 1 holds a reservation.
    fn reserved(kind: ReservationType) -> Self {
        let mut world = Self::registered();
        world.run(1, Reserve { key: 11, kind }).unwrap();
        world
    }

    fn run(&mut self, who: u8, command: ReservationCommand) -> Result<(), ReservationError> {
        let mut notices = Notices::new();
        let before = self.state.clone();
        let result = self.state.execute(&host(who), true, command, &mut notices);
        assert!(result.is_ok() || (self.state == before && notices.is_empty()));
        self.notices = notices.into_iter().map(|(to, notice)| (to.id[0], notice)).collect();
        result
    }

    /// Returns the access of a host: `rw`, `r-` or `--`.
    fn access(&self, who: Option<u8>) -> &'static str {
        match self.state.permission(who.map(host).as_ref()) {
            Permission { reads: true, writes: true } => "rw",
            Permission { reads: true, writes: false } => "r-",
            Permission { reads: false, writes: false } => "--",
            Permission { reads: false, writes: true } => "-w",
        }
    }

    fn keys(&self) -> Vec<u64> {
        self.state.registrations().iter().map(|one| one.key).collect()
    }

    fn holder(&self) -> Option<(ReservationType, u8)> {
        self.state.reservation().map(|it| (it.kind, it.holder.id[0]))
    }
}

#[test]
fn access_table_is_that_of_the_standards() {
    // Holder, another registrant, a host without a registration, one that cannot register.
    for (kind, access) in [
        (WriteExclusive, ["rw", "r-", "r-", "r-"]),
        (ExclusiveAccess, ["rw", "--", "--", "--"]),
        (WriteExclusiveRegistrantsOnly, ["rw", "rw", "r-", "r-"]),
        (ExclusiveAccessRegistrantsOnly, ["rw", "rw", "--", "--"]),
        (WriteExclusiveAllRegistrants, ["rw", "rw", "r-", "r-"]),
        (ExclusiveAccessAllRegistrants, ["rw", "rw", "--", "--"]),
    ] {
        let world = World::reserved(kind);
        let found = [Some(1), Some(2), Some(9), None].map(|who| world.access(who));
        assert_eq!(found, access, "{kind:?}");
        let holders = [1, 2, 9].map(|who| world.state.is_holder(&host(who)));
        assert_eq!(holders, [true, kind.is_held_by_all(), false], "{kind:?}");
    }
    let free = World::registered();
    assert_eq!([Some(1), Some(9), None].map(|who| free.access(who)), ["rw"; 3]);
}

#[test]
fn flush_and_discard_are_writes_extents_are_reads() {
    let zero = Op::Zero { unmap: false, durable: false, fast: false };
    let writes = [Op::Write { durable: false }, zero, Op::Discard, Op::Flush];
    assert!(writes.into_iter().all(is_write));
    assert!(![Op::Read, Op::Extents, Op::Prefetch].into_iter().any(is_write));
}

#[test]
fn registering_needs_the_current_key_unless_ignored() {
    let mut world = World::default();
    assert_eq!(world.run(1, Register { key: 0 }), Err(ReservationError::InvalidKey));
    assert_eq!(world.run(1, Replace { current: None, key: 0 }), Err(ReservationError::InvalidKey));
    let unregistered = Replace { current: Some(1), key: 5 };
    assert_eq!(world.run(1, unregistered), Err(ReservationError::Conflict));
    assert_eq!(world.run(1, Unregister { current: None }), Err(ReservationError::Conflict));
    world.run(1, Register { key: 5 }).unwrap();
    world.run(1, Register { key: 5 }).unwrap();
    assert_eq!(world.run(1, Register { key: 6 }), Err(ReservationError::Conflict));
    let wrong = Replace { current: Some(4), key: 6 };
    assert_eq!(world.run(1, wrong), Err(ReservationError::Conflict));
    world.run(1, Replace { current: Some(5), key: 6 }).unwrap();
    world.run(1, Replace { current: None, key: 7 }).unwrap();
    world.run(2, Replace { current: None, key: 7 }).unwrap();
    assert_eq!((world.keys(), world.state.generation()), (vec![7, 7], 5));
    assert_eq!(world.run(1, Unregister { current: Some(6) }), Err(ReservationError::Conflict));
    world.run(1, Unregister { current: Some(7) }).unwrap();
    world.run(2, Unregister { current: None }).unwrap();
    assert_eq!((world.keys(), world.state.generation()), (vec![], 7));
}

#[test]
fn number_of_registrants_is_limited() {
    let mut state = Reservations::default();
    for number in 0..MAX_REGISTRANTS {
        let who = Registrant { host: format!("nqn.test:{number}"), ..host(1) };
        state.execute(&who, true, Register { key: 1 }, &mut Notices::new()).unwrap();
    }
    let error = state.execute(&host(2), true, Register { key: 1 }, &mut Notices::new());
    assert_eq!(error, Err(ReservationError::TooManyRegistrants));
}

#[test]
fn unproven_names_take_at_most_half_of_the_registrations() {
    let mut state = Reservations::default();
    let mut register = |host: String, port: u16, proven: bool| {
        let who = Registrant { host, id: vec![1], port, proven };
        state.execute(&who, true, Register { key: 1 }, &mut Notices::new())
    };
    // Not those of the proven host of the same name.
    let host = || "nqn.test:host".to_owned();
    (0..16).for_each(|port| register(host(), port, false).unwrap());
    (0..16).for_each(|port| register(host(), port, true).unwrap());
    let invented = (0..300).map(|number| register(format!("nqn.test:{number}"), 0, false));
    assert_eq!(invented.filter(Result::is_ok).count(), 112);
    (0..112).for_each(|number| register(format!("nqn.test:{number}"), 0, true).unwrap());
    let error = register("nqn.test:300".to_owned(), 0, true);
    assert_eq!(error, Err(ReservationError::TooManyRegistrants));
}

#[test]
fn one_host_cannot_take_the_registrations_of_all() {
    let mut state = Reservations::default();
    let mut register = |host: &str, port: u16| {
        let who = Registrant { host: host.to_owned(), id: vec![1], port, proven: true };
        state.execute(&who, true, Register { key: 1 }, &mut Notices::new())
    };
    for port in 0..16 {
        register("nqn.test:one", port).unwrap();
    }
    assert_eq!(register("nqn.test:one", 16), Err(ReservationError::TooManyRegistrants));
    register("nqn.test:one", 15).unwrap();
    register("nqn.test:other", 16).unwrap();
}

#[test]
fn only_registrants_with_their_key_can_reserve() {
    let mut world = World::registered();
    let kind = WriteExclusive;
    for (who, key) in [(1, 12), (9, 0), (9, 11)] {
        assert_eq!(world.run(who, Reserve { key, kind }), Err(ReservationError::Conflict));
        assert_eq!(world.run(who, Release { key, kind }), Err(ReservationError::Conflict));
        assert_eq!(world.run(who, Clear { key }), Err(ReservationError::Conflict));
        let preempt = Preempt { key, victim: 12, kind: Some(kind) };
        assert_eq!(world.run(who, preempt), Err(ReservationError::Conflict));
    }
    world.run(1, Reserve { key: 11, kind }).unwrap();
    world.run(1, Reserve { key: 11, kind }).unwrap();
    let other = Reserve { key: 11, kind: ExclusiveAccess };
    assert_eq!(world.run(1, other), Err(ReservationError::Conflict));
    assert_eq!(world.run(2, Reserve { key: 12, kind }), Err(ReservationError::Conflict));
    assert_eq!((world.holder(), world.state.generation()), (Some((kind, 1)), 3));
}

#[test]
fn reservation_of_all_registrants_is_reserved_by_each() {
    let mut world = World::reserved(WriteExclusiveAllRegistrants);
    world.run(2, Reserve { key: 12, kind: WriteExclusiveAllRegistrants }).unwrap();
    world.run(1, Unregister { current: None }).unwrap();
    assert!(world.state.reservation().is_some() && world.notices.is_empty());
    world.run(2, Release { key: 12, kind: WriteExclusiveAllRegistrants }).unwrap();
    assert_eq!(world.notices, [(3, ReservationReleased)]);
    assert_eq!(world.holder(), None);
}

#[test]
fn release_needs_the_holder_and_the_type() {
    let mut world = World::reserved(WriteExclusive);
    world.run(2, Release { key: 12, kind: WriteExclusive }).unwrap();
    let wrong = Release { key: 11, kind: ExclusiveAccess };
    assert_eq!(world.run(1, wrong), Err(ReservationError::WrongType));
    assert_eq!(world.holder(), Some((WriteExclusive, 1)));
    world.run(1, Release { key: 11, kind: WriteExclusive }).unwrap();
    assert_eq!((world.holder(), world.notices.len()), (None, 0));
    world.run(1, Release { key: 11, kind: WriteExclusive }).unwrap();
    assert_eq!(world.state.generation(), 3);
}

#[test]
fn registrants_are_notified_when_their_access_ends() {
    for kind in ReservationType::ALL {
        let expected = [(2, ReservationReleased), (3, ReservationReleased)];
        let expected = if kind.admits_registrants() { &expected[..] } else { &[] };
        let mut world = World::reserved(kind);
        world.run(1, Release { key: 11, kind }).unwrap();
        assert_eq!(world.notices, expected, "{kind:?}");
        if !kind.is_held_by_all() {
            let mut world = World::reserved(kind);
            world.run(1, Unregister { current: Some(11) }).unwrap();
            assert_eq!((&world.notices[..], world.holder()), (expected, None), "{kind:?}");
        }
    }
}

#[test]
fn clear_removes_all_and_notifies_the_others() {
    let mut world = World::reserved(ExclusiveAccess);
    world.run(2, Clear { key: 12 }).unwrap();
    assert_eq!(world.notices, [(1, ReservationPreempted), (3, ReservationPreempted)]);
    assert_eq!((world.keys(), world.holder(), world.state.generation()), (vec![], None, 4));
}

#[test]
fn preempt_of_the_holder_takes_the_reservation() {
    let mut world = World::reserved(WriteExclusiveRegistrantsOnly);
    let kind = WriteExclusiveRegistrantsOnly;
    world.run(2, Preempt { key: 12, victim: 11, kind: Some(kind) }).unwrap();
    assert_eq!(world.notices, [(1, RegistrationPreempted)]);
    assert_eq!((world.keys(), world.holder()), (vec![12, 13], Some((kind, 2))));
    // Another type is notified to those that remain.
    world.run(3, Preempt { key: 13, victim: 12, kind: Some(ExclusiveAccess) }).unwrap();
    assert_eq!(world.notices, [(2, RegistrationPreempted)]);
    let mut world = World::reserved(WriteExclusive);
    world.run(2, Preempt { key: 12, victim: 11, kind: Some(ExclusiveAccess) }).unwrap();
    assert_eq!(world.notices, [(1, RegistrationPreempted), (3, ReservationReleased)]);
    assert_eq!(world.state.generation(), 4);
}

#[test]
fn preempt_of_another_key_only_removes_registrations() {
    let mut world = World::reserved(WriteExclusive);
    world.run(2, Preempt { key: 12, victim: 13, kind: Some(ExclusiveAccess) }).unwrap();
    assert_eq!((world.keys(), world.holder()), (vec![11, 12], Some((WriteExclusive, 1))));
    let none = Preempt { key: 12, victim: 99, kind: Some(ExclusiveAccess) };
    assert_eq!(world.run(2, none), Err(ReservationError::Conflict));
    let zero = Preempt { key: 12, victim: 0, kind: Some(ExclusiveAccess) };
    assert_eq!(world.run(2, zero), Err(ReservationError::InvalidKey));
    // Without a reservation none is taken.
    let mut world = World::registered();
    world.run(2, Preempt { key: 12, victim: 13, kind: Some(ExclusiveAccess) }).unwrap();
    assert_eq!((world.keys(), world.holder()), (vec![11, 12], None));
}

#[test]
fn preempt_needs_a_type_only_to_take_the_reservation() {
    let mut world = World::reserved(WriteExclusive);
    let preempt = |victim| Preempt { key: 12, victim, kind: None };
    world.run(2, preempt(13)).unwrap();
    assert_eq!(world.run(2, preempt(11)), Err(ReservationError::InvalidType));
    assert_eq!((world.keys(), world.holder()), (vec![11, 12], Some((WriteExclusive, 1))));
}

#[test]
fn holder_can_change_its_type_by_preempting_itself() {
    let mut world = World::reserved(WriteExclusive);
    world.run(2, Replace { current: None, key: 11 }).unwrap();
    world.run(1, Preempt { key: 11, victim: 11, kind: Some(ExclusiveAccess) }).unwrap();
    assert_eq!((world.keys(), world.holder()), (vec![11, 13], Some((ExclusiveAccess, 1))));
    assert_eq!(world.notices, [(2, RegistrationPreempted), (3, ReservationReleased)]);
}

#[test]
fn key_zero_preempts_all_others_of_a_reservation_of_all() {
    let mut world = World::reserved(ExclusiveAccessAllRegistrants);
    world.run(2, Preempt { key: 12, victim: 13, kind: Some(WriteExclusive) }).unwrap();
    let kind = ExclusiveAccessAllRegistrants;
    assert_eq!((world.keys(), world.holder()), (vec![11, 12], Some((kind, 1))));
    world.run(2, Preempt { key: 12, victim: 0, kind: Some(WriteExclusive) }).unwrap();
    assert_eq!((world.keys(), world.holder()), (vec![12], Some((WriteExclusive, 2))));
}

#[test]
fn reserve_6_excludes_all_others_and_registrations() {
    let mut world = World::default();
    world.run(1, ReserveUnit).unwrap();
    world.run(1, ReserveUnit).unwrap();
    assert_eq!([Some(1), Some(2), None].map(|who| world.access(who)), ["rw", "--", "--"]);
    assert_eq!(world.run(2, ReserveUnit), Err(ReservationError::Conflict));
    for who in [1, 2] {
        assert_eq!(world.run(who, Register { key: 1 }), Err(ReservationError::Conflict));
    }
    world.run(2, ReleaseUnit).unwrap();
    assert_eq!(world.access(Some(2)), "--");
    world.run(1, ReleaseUnit).unwrap();
    assert_eq!(world.access(Some(2)), "rw");
    world.run(1, ReserveUnit).unwrap();
    world.run(2, ResetUnit).unwrap();
    assert_eq!(world.state.unit_holder(), None);
}

#[test]
fn reserve_6_has_no_effect_for_those_with_access() {
    let mut world = World::reserved(WriteExclusiveRegistrantsOnly);
    for who in [1, 2] {
        world.run(who, ReserveUnit).unwrap();
        world.run(who, ReleaseUnit).unwrap();
    }
    assert_eq!(world.state.unit_holder(), None);
    let mut only_registered = World::registered();
    let mut exclusive = World::reserved(WriteExclusive);
    exclusive.run(1, ReserveUnit).unwrap();
    for (world, who) in [(&mut world, 9), (&mut only_registered, 1), (&mut exclusive, 2)] {
        assert_eq!(world.run(who, ReserveUnit), Err(ReservationError::Conflict));
        assert_eq!(world.run(who, ReleaseUnit), Err(ReservationError::Conflict));
    }
}

#[test]
fn only_persistent_state_is_restored() {
    let mut world = World::reserved(ExclusiveAccess);
    assert_eq!(world.state.saved(), None);
    world.run(1, SetPersistence(true)).unwrap();
    let saved = world.state.saved().unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    let restored = Reservations::restored(serde_json::from_str(&text).unwrap());
    assert_eq!((restored.generation(), restored.is_persistent()), (0, true));
    let generation = world.state.generation();
    assert_eq!(Reservations { generation, ..restored }, world.state);
}

#[test]
fn impossible_saved_state_is_ignored() {
    let one = |number, key| Registration { registrant: host(number), key, writable: true };
    let reservation = Some(Reservation { kind: ExclusiveAccess, holder: host(3) });
    let registrations = vec![one(1, 5), one(1, 6), one(2, 0)];
    let state = Reservations::restored(SavedReservations { registrations, reservation });
    assert_eq!(state.registrations(), [one(1, 5)]);
    assert_eq!(state.reservation(), None);
}

/// The rules of the standards, written with sets.
#[derive(Default)]
struct Model {
    keys: BTreeMap<u8, u64>,
    held: Option<(ReservationType, u8)>,
}

impl Model {
    fn holders(&self) -> Vec<u8> {
        match self.held {
            None => Vec::new(),
            Some((kind, _)) if kind.is_held_by_all() => self.keys.keys().copied().collect(),
            Some((_, holder)) => vec![holder],
        }
    }

    fn remove(&mut self, hosts: &[u8]) {
        let all = self.held.is_some_and(|(kind, _)| kind.is_held_by_all());
        self.keys.retain(|host, _| !hosts.contains(host));
        let is_over =
            |(_, holder)| if all { self.keys.is_empty() } else { hosts.contains(&holder) };
        self.held = self.held.filter(|&held| !is_over(held));
    }

    fn run(&mut self, who: u8, command: ReservationCommand) -> bool {
        let own = self.keys.get(&who).copied();
        match command {
            Register { key } if own.is_none_or(|own| own == key) => {
                self.keys.insert(who, key);
            }
            Replace { current, key } if current.is_none() || current == own => {
                self.keys.insert(who, key);
            }
            Unregister { current } if own.is_some() && (current.is_none() || current == own) => {
                self.remove(&[who]);
            }
            Reserve { key, kind } if own == Some(key) => match self.held {
                None => self.held = Some((kind, who)),
                Some((held, _)) => return held == kind && self.holders().contains(&who),
            },
            Release { key, kind } if own == Some(key) => {
                if self.holders().contains(&who) {
                    if self.held.is_none_or(|(held, _)| held != kind) {
                        return false;
                    }
                    self.held = None;
                }
            }
            Clear { key } if own == Some(key) => *self = Self::default(),
            Preempt { key, victim, kind } if own == Some(key) => {
                let all = self.held.is_some_and(|(held, _)| held.is_held_by_all());
                let of_holder = self.holders().iter().any(|host| self.keys[host] == victim);
                let takes = if all { victim == 0 } else { of_holder };
                let is_victim = |key: u64| key == victim || victim == 0;
                let hosts = self.keys.iter().filter(|(_, key)| is_victim(**key));
                let hosts: Vec<u8> = hosts.map(|(host, _)| *host).collect();
                if hosts.is_empty() || (victim == 0 && !all) || (takes && kind.is_none()) {
                    return false;
                }
                let removed = hosts.into_iter().filter(|host| !(takes && *host == who));
                self.remove(&removed.collect::<Vec<_>>());
                if let Some(kind) = kind.filter(|_| takes) {
                    self.held = Some((kind, who));
                }
            }
            _ => return false,
        }
        true
    }
}

fn command() -> impl Strategy<Value = ReservationCommand> {
    let keys = || prop_oneof![Just(1_u64), Just(2), Just(3)];
    let kind = || proptest::sample::select(ReservationType::ALL.to_vec());
    prop_oneof![
        keys().prop_map(|key| Register { key }),
        (proptest::option::of(keys()), keys()).prop_map(|(current, key)| Replace { current, key }),
        proptest::option::of(keys()).prop_map(|current| Unregister { current }),
        (keys(), kind()).prop_map(|(key, kind)| Reserve { key, kind }),
        (keys(), kind()).prop_map(|(key, kind)| Release { key, kind }),
        keys().prop_map(|key| Clear { key }),
        (keys(), 0..4_u64, proptest::option::of(kind())).prop_map(|(key, victim, kind)| Preempt {
            key,
            victim,
            kind
        }),
    ]
}

proptest! {
    #[test]
    fn random_commands_agree_with_a_model(
        commands in proptest::collection::vec((1..5_u8, command()), 1..60),
    ) {
        let (mut world, mut model) = (World::default(), Model::default());
        for (who, command) in commands {
            prop_assert_eq!(world.run(who, command).is_ok(), model.run(who, command));
            let keys: BTreeMap<u8, u64> = world.state.registrations().iter()
                .map(|one| (one.registrant.id[0], one.key)).collect();
            prop_assert_eq!(&keys, &model.keys);
            prop_assert_eq!(world.holder().map(|it| it.0), model.held.map(|it| it.0));
            let holders: Vec<u8> =
                (1..5).filter(|who| world.state.is_holder(&host(*who))).collect();
            prop_assert_eq!(holders, model.holders());
            // Those who hold have access, and without a reservation everyone has.
            for who in 1..5 {
                let Some((kind, _)) = model.held else {
                    prop_assert_eq!(world.access(Some(who)), "rw");
                    continue;
                };
                let is_registrant = model.keys.contains_key(&who) && kind.admits_registrants();
                let full = model.holders().contains(&who) || is_registrant;
                let refused = if kind.excludes_reads() { "--" } else { "r-" };
                prop_assert_eq!(world.access(Some(who)), if full { "rw" } else { refused });
            }
            // A removed registration is notified, except that of the host itself.
            prop_assert!(world.notices.iter().all(|(to, _)| *to != who));
        }
    }
}
