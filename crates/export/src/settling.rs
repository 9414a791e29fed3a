//! Reservation commands of a connection, and when they may be answered.

use std::cell::Cell;
use std::sync::Arc;

use crate::connections::Counters;
use crate::{
    Access, Export, Fault, Grant, Registrant, ReservationCommand, ReservationError,
    ReservationNotice,
};

/// A reservation command that has taken effect, and is not answered before
/// [`Settling::result`] returns `Some`: when the writes in flight that the reservation now refuses
/// have ended, and the reservations are stored, if they persist. So a host that has shut out
/// another one knows that nothing of the other one is written any more.
///
/// It may change after any [`Notice::StateChanged`](crate::Notice::StateChanged).
#[derive(Debug)]
pub struct Settling {
    export: Arc<Export>,
    /// The connections with such writes.
    refused: Vec<Arc<Counters>>,
    /// Whether it waits for the end of writes, of which it is notified.
    watches: Cell<bool>,
    /// By which number the state is being stored.
    sequence: Option<u64>,
}

impl Settling {
    /// Returns the result; `None` if it is not known yet.
    ///
    /// # Errors
    /// Returns [`Fault::Io`] if the reservations could not be stored. The command keeps its effect.
    pub fn result(&self) -> Option<Result<(), Fault>> {
        if self.watches.get() {
            let is_refused = |counters: &Arc<Counters>| counters.has_refused_writes();
            if self.refused.iter().any(is_refused) || self.export.waits_for_predecessors() {
                return None;
            }
            self.unwatch();
        }
        let Some(sequence) = self.sequence else { return Some(Ok(())) };
        let is_stored = self.export.connections().is_stored(sequence)?;
        Some(if is_stored { Ok(()) } else { Err(Fault::Io) })
    }
}

impl Settling {
    /// Ends the notifications of the ends of writes: each reaches every session, and storing may
    /// take long.
    fn unwatch(&self) {
        if self.watches.take() {
            self.export.connections().unwatch();
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.unwatch();
    }
}

impl Grant {
    /// Sets the registrant that the host of the connection is, by its name and what tells its
    /// registrants apart: see [`Registrant`]. Without one it cannot register.
    #[must_use]
    pub fn with_registrant(self, host: &str, id: &[u8], port: u16) -> Self {
        let (host, id, proven) = (host.to_owned(), id.to_vec(), self.is_proven());
        let registrant = Registrant { host, id, port, proven };
        self.export().connections().set_registrant(self.activity().counters(), registrant);
        self
    }

    /// Executes a reservation command of the registrant. `persist` sets whether reservations are
    /// restored after a restart, if the command succeeds; it has no effect for a host with
    /// read-only access.
    ///
    /// The caller must then return [`Step::Notify`](crate::Step::Notify), and answer once
    /// [`Settling::result`] is known.
    ///
    /// # Errors
    /// Returns why the command failed. It had no effect.
    pub fn reserve(
        &self,
        command: ReservationCommand,
        persist: Option<bool>,
    ) -> Result<Settling, ReservationError> {
        let (export, counters) = (self.export(), self.activity().counters());
        let is_writable = self.access() == Access::Writable && export.access == Access::Writable;
        let persists = persist == Some(true) || command == ReservationCommand::SetPersistence(true);
        if export.is_gone() || counters.is_closed() {
            return Err(ReservationError::Gone);
        }
        if !export.supports_reservations() {
            return Err(ReservationError::Unsupported);
        }
        if command.requires_write_access() && !is_writable {
            return Err(ReservationError::ReadOnly);
        }
        if persists && !export.stores_reservations() {
            return Err(ReservationError::NoPersistence);
        }
        let persist = persist.filter(|_| is_writable);
        let connections = export.connections();
        // Before the counters are looked at: a write that ends later finds that it is watched.
        connections.watch();
        match connections.execute(counters, is_writable, command, persist) {
            Ok((refused, sequence)) => {
                let (export, watches) = (export.clone(), Cell::new(true));
                Ok(Settling { export, refused, watches, sequence })
            }
            Err(error) => {
                connections.unwatch();
                Err(error)
            }
        }
    }

    /// Returns the key with which the registrant is registered.
    pub fn reservation_key(&self) -> Option<u64> {
        let connections = self.export().connections();
        let registrant = connections.registrant(self.activity().counters())?;
        connections.reservations().key_of(&registrant)
    }

    /// Takes the oldest notice for the registrant that this connection has not taken yet. The
    /// first call makes the connection keep them from then on.
    pub fn take_reservation_notice(&self) -> Option<ReservationNotice> {
        self.export().connections().take_notice(self.activity().counters())
    }
}

#[cfg(test)]
mod test {
    use std::sync::Mutex;

    use super::*;
    use crate::fence::test::export;
    use crate::{
        Admitted, Op, Pool, Request, ReservationStore, ReservationType, SavedReservations, Ticket,
    };

    fn grant(export: &Arc<Export>, number: u8) -> Grant {
        Grant::new(export.clone()).with_registrant("nqn.test:host", &[number; 16], 0)
    }

    fn admit(grant: &Grant, op: Op) -> Result<Admitted, Fault> {
        let buffer = if op.transfers() { Pool::new(1 << 20).open().take(512) } else { None };
        let blocks = u64::from(op != Op::Flush);
        let request = Request { op, lba: 0, blocks, buffer, ticket: Ticket::new(1) };
        grant.admit(request).map_err(|denied| denied.fault)
    }

    const WRITE: Op = Op::Write { durable: false };

    fn register(grant: &Grant, key: u64) {
        let settling = grant.reserve(ReservationCommand::Register { key }, None).unwrap();
        assert_eq!(settling.result(), Some(Ok(())));
    }

    fn acquire(grant: &Grant, key: u64, kind: ReservationType) -> Settling {
        grant.reserve(ReservationCommand::Reserve { key, kind }, None).unwrap()
    }

    #[test]
    fn gate_refuses_what_a_reservation_of_another_host_refuses() {
        let export = export();
        let (one, other, nbd) = (grant(&export, 1), grant(&export, 2), Grant::new(export.clone()));
        register(&one, 7);
        drop(acquire(&one, 7, ReservationType::WriteExclusive));
        let later = grant(&export, 3);
        for refused in [&other, &nbd, &later] {
            for op in [WRITE, Op::Discard, Op::Flush] {
                assert_eq!(admit(refused, op).err(), Some(Fault::Reserved), "{op:?}");
                assert_eq!(refused.permits(op, 0, 0).err(), Some(Fault::Reserved), "{op:?}");
            }
            assert!(admit(refused, Op::Read).is_ok());
        }
        assert!(admit(&one, WRITE).is_ok() && admit(&grant(&export, 1), WRITE).is_ok());
        let kind = ReservationType::ExclusiveAccess;
        let preempt = ReservationCommand::Preempt { key: 7, victim: 7, kind: Some(kind) };
        drop(one.reserve(preempt, None).unwrap());
        assert_eq!(admit(&nbd, Op::Read).err(), Some(Fault::Reserved));
        drop(one.reserve(ReservationCommand::Clear { key: 7 }, None).unwrap());
        assert!(admit(&nbd, WRITE).is_ok() && admit(&other, Op::Flush).is_ok());
    }

    #[test]
    fn answer_waits_for_the_writes_that_are_now_refused() {
        let export = export();
        let (one, other) = (grant(&export, 1), grant(&export, 2));
        register(&one, 7);
        let (in_flight, own) = (admit(&other, WRITE).unwrap(), admit(&one, WRITE).unwrap());
        let settling = acquire(&one, 7, ReservationType::WriteExclusive);
        assert_eq!(settling.result(), None);
        assert_eq!(admit(&other, WRITE).err(), Some(Fault::Reserved));
        assert!(in_flight.finish(Ok(())).contended.is_some(), "sessions must be notified");
        assert_eq!(settling.result(), Some(Ok(())));
        drop(settling);
        assert!(own.finish(Ok(())).contended.is_none());
    }

    #[test]
    fn answer_waits_for_writes_of_a_lost_connection() {
        let export = export();
        let (one, other) = (grant(&export, 1), grant(&export, 2));
        register(&one, 7);
        register(&other, 8);
        drop(acquire(&other, 8, ReservationType::WriteExclusive));
        let in_flight = admit(&other, WRITE).unwrap();
        other.fence().close();
        drop(other);
        let kind = ReservationType::WriteExclusive;
        let preempt = ReservationCommand::Preempt { key: 7, victim: 8, kind: Some(kind) };
        let settling = one.reserve(preempt, None).unwrap();
        assert_eq!(settling.result(), None);
        drop(in_flight);
        assert_eq!(settling.result(), Some(Ok(())));
    }

    #[test]
    fn writes_that_are_permitted_again_are_not_waited_for() {
        let export = export();
        let (one, other) = (grant(&export, 1), grant(&export, 2));
        register(&one, 7);
        let _in_flight = admit(&other, WRITE).unwrap();
        let settling = acquire(&one, 7, ReservationType::WriteExclusive);
        drop(one.reserve(ReservationCommand::Clear { key: 7 }, None).unwrap());
        assert_eq!(settling.result(), Some(Ok(())));
    }

    #[test]
    fn host_without_write_access_can_register_but_shut_out_none() {
        let export = export();
        let reader = grant(&export, 1).read_only();
        register(&reader, 7);
        let kind = ReservationType::ExclusiveAccess;
        for command in [
            ReservationCommand::Reserve { key: 7, kind },
            ReservationCommand::Preempt { key: 7, victim: 7, kind: Some(kind) },
            ReservationCommand::Clear { key: 7 },
            ReservationCommand::ReserveUnit,
            ReservationCommand::ResetUnit,
        ] {
            assert_eq!(reader.reserve(command, None).unwrap_err(), ReservationError::ReadOnly);
        }
        assert!(!export.is_contended());
    }

    #[test]
    fn host_without_write_access_ends_no_reservation_of_others() {
        let export = export();
        export.set_reservation_store(Arc::new(Store::default()), None);
        let (one, reader) = (grant(&export, 1), grant(&export, 2).read_only());
        drop(one.reserve(ReservationCommand::Register { key: 7 }, Some(true)).unwrap());
        let kind = ReservationType::WriteExclusiveAllRegistrants;
        drop(acquire(&one, 7, kind));
        for persist in [None, Some(false)] {
            drop(reader.reserve(ReservationCommand::Register { key: 8 }, persist).unwrap());
            assert!(export.connections().reservations().is_persistent());
        }
        let release = ReservationCommand::Release { key: 8, kind };
        assert_eq!(reader.reserve(release, None).unwrap_err(), ReservationError::ReadOnly);
        let unregister = ReservationCommand::Unregister { current: Some(8) };
        drop(reader.reserve(unregister, Some(false)).unwrap());
        let state = export.connections().reservations();
        assert!(state.is_persistent() && state.reservation().is_some());
    }

    #[test]
    fn registration_of_a_reader_does_not_prevent_reserve_6() {
        let export = export();
        let [one, other, reader] = [1, 2, 3].map(|number| grant(&export, number));
        let (unit, reader) = (ReservationCommand::ReserveUnit, reader.read_only());
        register(&reader, 7);
        drop(one.reserve(unit, None).unwrap());
        assert_eq!(admit(&reader, Op::Read).err(), Some(Fault::Reserved));
        let again = ReservationCommand::Replace { current: Some(7), key: 8 };
        assert_eq!(reader.reserve(again, None).unwrap_err(), ReservationError::Conflict);
        for by in [&other, &one] {
            drop(by.reserve(ReservationCommand::ReleaseUnit, None).unwrap());
        }
        assert_eq!(reader.reservation_key(), Some(7));
        assert!(admit(&reader, Op::Read).is_ok());
        // What all registrants hold is a reservation, whoever is left.
        register(&one, 9);
        assert_eq!(other.reserve(unit, None).unwrap_err(), ReservationError::Conflict);
        drop(acquire(&one, 9, ReservationType::WriteExclusiveAllRegistrants));
        drop(one.reserve(ReservationCommand::Unregister { current: None }, None).unwrap());
        assert_eq!(other.reserve(unit, None).unwrap_err(), ReservationError::Conflict);
    }

    #[test]
    fn holder_whose_access_was_lowered_can_release() {
        let export = export();
        let one = grant(&export, 1);
        register(&one, 7);
        let kind = ReservationType::WriteExclusive;
        drop(acquire(&one, 7, kind));
        let release = ReservationCommand::Release { key: 7, kind };
        drop(one.read_only().reserve(release, None).unwrap());
        assert_eq!(export.connections().reservations().reservation(), None);
    }

    #[test]
    fn connection_without_a_registrant_cannot_register() {
        let grant = Grant::new(export());
        let error = grant.reserve(ReservationCommand::Register { key: 7 }, None).unwrap_err();
        assert_eq!(error, ReservationError::Conflict);
        export().withdraw();
        grant.export().withdraw();
        let error = grant.reserve(ReservationCommand::Register { key: 7 }, None).unwrap_err();
        assert_eq!(error, ReservationError::Gone);
    }

    #[test]
    fn each_subscribed_connection_of_a_registrant_gets_notices() {
        let export = export();
        let [one, path, other] = [1, 1, 2].map(|number| grant(&export, number));
        for subscriber in [&one, &path] {
            assert_eq!(subscriber.take_reservation_notice(), None);
        }
        register(&one, 7);
        register(&other, 8);
        let renewed = Grant::new(export.clone()).with_fence_of(&one);
        drop(other.reserve(ReservationCommand::Clear { key: 8 }, None).unwrap());
        for subscribed in [renewed, path] {
            let notice = subscribed.take_reservation_notice();
            assert_eq!(notice, Some(ReservationNotice::ReservationPreempted));
            assert_eq!(subscribed.take_reservation_notice(), None);
        }
        assert_eq!(other.take_reservation_notice(), None);
    }

    #[test]
    fn unit_reservation_ends_with_the_last_connection() {
        let export = export();
        let [one, second, other] = [1, 1, 2].map(|number| grant(&export, number));
        drop(one.reserve(ReservationCommand::ReserveUnit, None).unwrap());
        assert_eq!(admit(&other, Op::Read).err(), Some(Fault::Reserved));
        drop(one);
        assert!(admit(&other, Op::Read).is_err() && admit(&second, Op::Read).is_ok());
        drop(second);
        assert!(admit(&other, WRITE).is_ok());
    }

    #[derive(Debug, Default)]
    struct Store(Mutex<Vec<(u64, Option<SavedReservations>)>>);

    impl ReservationStore for Store {
        fn save(&self, sequence: u64, state: Option<SavedReservations>) {
            self.0.lock().unwrap().push((sequence, state));
        }
    }

    #[test]
    fn persistent_reservations_are_stored_before_the_answer() {
        let (export, store) = (export(), Arc::new(Store::default()));
        let one = grant(&export, 1);
        let persistent = Some(true);
        let command = ReservationCommand::Register { key: 7 };
        let error = one.reserve(command, persistent).unwrap_err();
        assert_eq!(error, ReservationError::NoPersistence);
        export.set_reservation_store(store.clone(), None);
        register(&one, 7);
        assert!(store.0.lock().unwrap().is_empty());
        let settling = one.reserve(command, persistent).unwrap();
        assert_eq!(settling.result(), None);
        export.reservations_saved(1, true);
        assert_eq!(settling.result(), Some(Ok(())));
        let reserve = acquire(&one, 7, ReservationType::WriteExclusive);
        export.reservations_saved(2, false);
        assert_eq!(reserve.result(), Some(Err(Fault::Io)));
        let off = one.reserve(ReservationCommand::SetPersistence(false), None).unwrap();
        export.reservations_saved(3, true);
        assert_eq!((off.result(), reserve.result()), (Some(Ok(())), Some(Ok(()))));
        let saved = std::mem::take(&mut *store.0.lock().unwrap());
        let [(1, Some(_)), (2, Some(held)), (3, None)] = &saved[..] else { panic!("{saved:?}") };
        let restarted = self::export();
        restarted.set_reservation_store(store, Some(held.clone()));
        assert_eq!(admit(&grant(&restarted, 2), WRITE).err(), Some(Fault::Reserved));
        assert!(admit(&grant(&restarted, 1), WRITE).is_ok());
    }

    /// A notification reaches every session of the program.
    #[test]
    fn writes_notify_no_one_while_reservations_are_stored() {
        let export = export();
        export.set_reservation_store(Arc::new(Store::default()), None);
        let (one, other) = (grant(&export, 1), grant(&export, 2));
        let in_flight = admit(&other, WRITE).unwrap();
        register(&one, 7);
        let kind = ReservationType::WriteExclusive;
        drop(acquire(&one, 7, kind));
        let persist = ReservationCommand::SetPersistence(true);
        let settling = one.reserve(persist, None).unwrap();
        assert_eq!(settling.result(), None);
        assert!(in_flight.finish(Ok(())).contended.is_some());
        assert_eq!(settling.result(), None);
        assert!(admit(&one, WRITE).unwrap().finish(Ok(())).contended.is_none());
        export.reservations_saved(1, true);
        assert_eq!(settling.result(), Some(Ok(())));
    }

    #[test]
    fn no_write_of_a_refused_host_ends_after_the_answer() {
        let export = export();
        let one = grant(&export, 1);
        register(&one, 7);
        let kind = ReservationType::WriteExclusive;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let other = grant(&export, 2);
                let mut refused = 0;
                while refused < 2_000 {
                    refused += u32::from(admit(&other, WRITE).is_err());
                }
            });
            while !writer.is_finished() {
                let settling = acquire(&one, 7, kind);
                while settling.result().is_none() {}
                assert!(!export.is_being_written());
                drop(settling);
                let release = ReservationCommand::Release { key: 7, kind };
                drop(one.reserve(release, None).unwrap());
            }
        });
    }
}
