//! Reservations of two hosts. The golden values are those of nvmet 7.3.4, and of blktests nvme/054.

use std::fs::File;
use std::sync::{Arc, Mutex};

use export::{Access, Backing, Export, Op, OverlayLayout, ReservationStore, SavedReservations};
use nvme::command::{AdminCommand, IoCommand, PropertySize, ReservationRequest};
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::command::Fuse;
use nvme::wire::dataset::{CopyRange0, DsmRange};
use nvme::wire::fabrics::{Cc, Csts, property};
use nvme::wire::feature::{AsyncEvent, fid};
use nvme::wire::identify::{IdentifyController, IdentifyNamespace, cns, oncs};
use nvme::wire::log::{ReservationNotification, lid};
use nvme::wire::reservation::{ReservationKeys, cptpl};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::client::{AttachParams, Client, compare, enabled, flush, pattern, write};
use crate::world::{DISK, World};

pub(crate) const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();

/// A host with its Admin queue and an I/O queue.
struct Host {
    client: Client,
    io: usize,
}

const A: [u8; 16] = [0xa; 16];
const B: [u8; 16] = [0xb; 16];

fn attach(world: &mut World, host_id: [u8; 16]) -> Host {
    let client = world.attach(&AttachParams { host_id, ..AttachParams::default() });
    let io = client.io[0];
    Host { client, io }
}

fn two_hosts() -> (World, Host, Host) {
    let mut world = World::new();
    let (a, b) = (attach(&mut world, A), attach(&mut world, B));
    (world, a, b)
}

fn registered() -> (World, Host, Host) {
    let (mut world, a, b) = two_hosts();
    assert_eq!(register(&mut world, a.io, 10), Status::SUCCESS);
    assert_eq!(register(&mut world, b.io, 11), Status::SUCCESS);
    (world, a, b)
}

fn sqe(request: ReservationRequest) -> nvme::wire::Sqe {
    IoCommand::Reservation { nsid: 1, request }.emit()
}

pub(crate) fn run(
    world: &mut World,
    io: usize,
    request: ReservationRequest,
    keys: (u64, u64),
) -> Status {
    let keys = ReservationKeys::new(keys.0, keys.1);
    let len = request.data_len().len() as usize;
    let data = world.host_buffer(&keys.as_bytes()[..len]);
    world.command(io, sqe(request), Payload::Send(data)).status
}

fn rrega(action: u8) -> ReservationRequest {
    ReservationRequest::Register { action, ignore_key: false, persistence: cptpl::NO_CHANGE }
}

pub(crate) fn racqa(action: u8, rtype: u8) -> ReservationRequest {
    ReservationRequest::Acquire { action, ignore_key: false, rtype }
}

fn rrela(action: u8, rtype: u8) -> ReservationRequest {
    ReservationRequest::Release { action, ignore_key: false, rtype }
}

pub(crate) fn register(world: &mut World, io: usize, key: u64) -> Status {
    run(world, io, rrega(0), (0, key))
}

fn report(world: &mut World, io: usize, len: u64) -> Vec<u8> {
    let command = sqe(ReservationRequest::Report { len, extended: true });
    let buffer = world.buffer(len as usize);
    let done = world.command(io, command, Payload::Receive(buffer));
    assert_eq!(done.status, Status::SUCCESS);
    done.buffer.unwrap().bytes().to_vec()
}

/// Generation, type, number of registrants; then status and key of each.
fn summary(world: &mut World, io: usize) -> (u32, u8, Vec<(u8, u64)>) {
    let page = report(world, io, 4096);
    let entries = page[64..].chunks(64).take(page[5].into());
    let entries = entries.map(|entry| {
        assert_eq!(entry[..2], [0xff, 0xff]);
        (entry[2], u64::from_le_bytes(entry[8..16].try_into().unwrap()))
    });
    (u32::from_le_bytes(page[..4].try_into().unwrap()), page[4], entries.collect())
}

fn log_page(world: &mut World, admin: usize) -> ReservationNotification {
    let page = world.page(admin, AdminCommand::log_page(lid::RESERVATION, 0, 64)).unwrap();
    ReservationNotification::read_from_bytes(&page).unwrap()
}

#[test]
fn golden_sequence_of_blktests_054() {
    let mut world = World::new();
    let Host { io, .. } = attach(&mut world, A);
    let steps = [
        (rrega(0), (0, 4), (1, 0, vec![(0, 4)])),
        (rrega(2), (4, 5), (2, 0, vec![(0, 5)])),
        (rrega(1), (5, 0), (3, 0, vec![])),
        (rrega(0), (0, 4), (4, 0, vec![(0, 4)])),
        (racqa(0, 1), (4, 0), (4, 1, vec![(1, 4)])),
        (racqa(1, 2), (4, 4), (5, 2, vec![(1, 4)])),
        (rrela(0, 2), (4, 0), (5, 0, vec![(0, 4)])),
        (racqa(0, 1), (4, 0), (5, 1, vec![(1, 4)])),
        (rrela(1, 0), (4, 0), (6, 0, vec![])),
    ];
    assert_eq!(summary(&mut world, io), (0, 0, vec![]));
    for (request, keys, expected) in steps {
        assert_eq!(run(&mut world, io, request, keys), Status::SUCCESS, "{request:?}");
        assert_eq!(summary(&mut world, io), expected, "{request:?}");
    }
}

#[test]
fn golden_answers_of_nvmet_to_two_hosts() {
    let (mut world, a, b) = registered();
    let page = report(&mut world, a.io, 192);
    assert_eq!(page[..10], [2, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    assert_eq!(page[64..80], [0xff, 0xff, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((&page[80..96], &page[96..128]), (&A[..], &[0; 32][..]));
    assert_eq!(run(&mut world, a.io, racqa(0, 1), (10, 0)), Status::SUCCESS);
    assert_eq!(summary(&mut world, b.io), (2, 1, vec![(1, 10), (0, 11)]));
    assert_eq!(world.write(b.io, 0, &[1; 512]), CONFLICT);
    assert_eq!(run(&mut world, b.io, racqa(0, 1), (11, 0)), CONFLICT);
    assert_eq!(run(&mut world, b.io, racqa(1, 1), (11, 10)), Status::SUCCESS);
    assert_eq!(summary(&mut world, b.io), (3, 1, vec![(1, 11)]));
    let preempted = ReservationNotification::emit(1, 1, 0, 1);
    assert_eq!(log_page(&mut world, a.client.admin), preempted);
    assert_eq!(log_page(&mut world, a.client.admin), ReservationNotification::new_zeroed());
    assert_eq!(run(&mut world, a.io, rrela(0, 1), (10, 0)), CONFLICT);
    assert_eq!(world.write(a.io, 0, &[1; 512]), CONFLICT);
    assert_eq!(run(&mut world, b.io, rrela(0, 1), (11, 0)), Status::SUCCESS);
    assert_eq!(run(&mut world, b.io, rrela(1, 0), (11, 0)), Status::SUCCESS);
    assert_eq!(summary(&mut world, b.io), (4, 0, vec![]));
    assert_eq!(world.write(a.io, 0, &[1; 512]), Status::SUCCESS);
}

#[test]
fn reservations_are_announced() {
    let mut world = World::new();
    let Host { client, .. } = attach(&mut world, A);
    let page = world.page(client.admin, AdminCommand::identify(cns::CONTROLLER, 0)).unwrap();
    let controller = IdentifyController::read_from_bytes(&page).unwrap();
    assert_ne!(controller.oncs.get() & oncs::RESERVATIONS, 0);
    assert_eq!(controller.ctratt.get() & 1, 1);
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    assert_eq!(IdentifyNamespace::read_from_bytes(&page).unwrap().rescap, 0xfe);
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE_INDEPENDENT, 1));
    assert_eq!(page.unwrap()[2], 0xfe);
}

#[test]
fn each_command_is_judged_as_its_reads_and_writes() {
    // Without a reservation, under write exclusive, and under exclusive access.
    for (rtype, reads, writes) in [
        (0, Status::SUCCESS, Status::SUCCESS),
        (1, Status::SUCCESS, CONFLICT),
        (2, CONFLICT, CONFLICT),
    ] {
        let (mut world, a, b) = registered();
        if rtype != 0 {
            assert_eq!(run(&mut world, a.io, racqa(0, rtype), (10, 0)), Status::SUCCESS);
        }
        let (io, old) = (b.io, world.disk().bytes[..512].to_vec());
        assert_eq!(world.read(io, 0, 1).err().unwrap_or(Status::SUCCESS), reads);
        assert_eq!(world.write(io, 0, &old), writes);
        assert_eq!(world.send_dataless(io, flush()).status, writes);
        let verify =
            IoCommand::Verify { nsid: 1, slba: 0, nlb: 1, fua: false, limited_retry: false };
        assert_eq!(world.send_dataless(io, verify.emit()).status, reads);
        let zeroes =
            IoCommand::WriteZeroes { nsid: 1, slba: 9, nlb: 1, fua: false, deallocate: false };
        assert_eq!(world.send_dataless(io, zeroes.emit()).status, writes);
        let data = world.host_buffer(&old);
        assert_eq!(world.command(io, compare(0, 1), Payload::Send(data)).status, reads);
        let range = DsmRange { cattr: 0.into(), nlb: 1.into(), slba: 9.into() };
        let ranges = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true };
        let data = world.host_buffer(range.as_bytes());
        assert_eq!(world.command(io, ranges.emit(), Payload::Send(data)).status, writes);
        let source = CopyRange0::new_zeroed();
        let copy = IoCommand::Copy { nsid: 1, sdlba: 9, ranges: 1, format: 0, fua: false };
        let data = world.host_buffer(source.as_bytes());
        assert_eq!(world.command(io, copy.emit(), Payload::Send(data)).status, writes);
        // Whether the pair may write decides before the data is sent.
        let [expected, new] = [(); 2].map(|()| Payload::Send(world.host_buffer(&old)));
        world.submit(io, compare(0, 1).with_fuse(Fuse::First), expected, 1);
        world.submit(io, write(0, 1).with_fuse(Fuse::Second), new, 2);
        world.run();
        assert_eq!(world.status(io, 1).code() == Status::SUCCESS, writes == Status::SUCCESS);
        assert_eq!(world.status(io, 2).code() == Status::SUCCESS, writes == Status::SUCCESS);
        assert_eq!(world.write(a.io, 0, &old), Status::SUCCESS);
    }
}

#[test]
fn registrants_only_admits_registrants_alone() {
    let (mut world, a, b) = registered();
    let c = attach(&mut world, [0xc; 16]);
    assert_eq!(run(&mut world, a.io, racqa(0, 4), (10, 0)), Status::SUCCESS);
    assert_eq!(world.write(b.io, 0, &[1; 512]), Status::SUCCESS);
    assert_eq!(world.write(c.io, 0, &[1; 512]), CONFLICT);
    assert_eq!(world.read(c.io, 0, 1).err(), Some(CONFLICT));
    // Reservation commands are judged by registration.
    assert_eq!(register(&mut world, c.io, 12), Status::SUCCESS);
    assert_eq!(world.write(c.io, 0, &[1; 512]), Status::SUCCESS);
}

#[test]
fn write_whose_data_arrives_after_a_preempt_is_refused() {
    let (mut world, a, b) = registered();
    let data = world.host_buffer(&pattern(1, 8192));
    world.submit(b.io, write(0, 16), Payload::SendByR2t(data), 1);
    // The command has arrived, and its data not yet.
    world.run_turns(1);
    assert_eq!(run(&mut world, a.io, racqa(0, 1), (10, 0)), Status::SUCCESS);
    world.run();
    let landed = world.disk().changes().len();
    assert!((world.status(b.io, 1) == CONFLICT) == (landed == 0));
}

#[test]
fn preempt_is_answered_when_writes_of_the_host_have_ended() {
    for action in [1, 2] {
        let (mut world, a, b) = registered();
        world.disk().held = true;
        world.submit(b.io, write(0, 1), Payload::Send(world.host_buffer(&[1; 512])), 1);
        world.run();
        world.submit(a.io, write(8, 1), Payload::Send(world.host_buffer(&[1; 512])), 1);
        world.run();
        assert_eq!(world.disk().requests.len(), 2);
        let keys = world.host_buffer(ReservationKeys::new(10, 11).as_bytes());
        assert_eq!(run(&mut world, a.io, racqa(0, 5), (10, 0)), Status::SUCCESS);
        world.submit(a.io, sqe(racqa(action, 5)), Payload::Send(keys), 2);
        world.run();
        assert!(world.completion(a.io, 2).is_none());
        assert_eq!(world.write(b.io, 0, &[2; 512]), CONFLICT);
        // The write of the other host ends, then the preempt is answered.
        assert!(world.complete_one(0));
        world.run();
        assert_eq!(world.status(b.io, 1), Status::SUCCESS);
        assert_eq!(world.status(a.io, 2), Status::SUCCESS);
        world.disk().held = false;
        world.run();
        assert_eq!(world.status(a.io, 1), Status::SUCCESS);
    }
}

#[test]
fn abort_of_a_settling_command_answers_it() {
    let (mut world, a, b) = registered();
    world.disk().held = true;
    world.submit(b.io, write(0, 1), Payload::Send(world.host_buffer(&[1; 512])), 1);
    world.run();
    let keys = world.host_buffer(ReservationKeys::new(10, 0).as_bytes());
    let cid = world.submit(a.io, sqe(racqa(0, 1)), Payload::Send(keys), 2);
    world.run();
    let abort = AdminCommand::Abort { sqid: 1, cid };
    assert_eq!(world.send_dataless(a.client.admin, abort.emit()).result, 0);
    assert_eq!(world.status(a.io, 2), Status::ABORT_REQUESTED);
    // The effect remains.
    assert_eq!(world.write(b.io, 0, &[2; 512]), CONFLICT);
    world.disk().held = false;
    world.run();
    assert!(!world.disk().export.is_contended());
}

#[test]
fn preempted_host_gets_an_event_for_each_notification() {
    let (mut world, a, b) = registered();
    let admin = a.client.admin;
    world.submit(admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 1);
    assert_eq!(run(&mut world, b.io, racqa(0, 3), (11, 0)), Status::SUCCESS);
    assert!(world.completion(admin, 1).is_none());
    assert_eq!(run(&mut world, b.io, rrela(0, 3), (11, 0)), Status::SUCCESS);
    assert_eq!(run(&mut world, b.io, rrela(1, 0), (11, 0)), Status::SUCCESS);
    let event = world.completion(admin, 1).unwrap().result as u32;
    assert_eq!(event, 0x0080_0006);
    assert_eq!(AsyncEvent::parse(event), AsyncEvent::RESERVATION);
    world.submit(admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 2);
    world.run();
    assert!(world.completion(admin, 2).is_none(), "masked until the log page is read");
    assert_eq!(log_page(&mut world, admin), ReservationNotification::emit(1, 2, 1, 1));
    assert!(world.completion(admin, 2).is_some(), "another notification is unread");
    assert_eq!(log_page(&mut world, admin), ReservationNotification::emit(2, 3, 0, 1));
    assert_eq!(log_page(&mut world, b.client.admin), ReservationNotification::new_zeroed());
}

#[test]
fn masked_notifications_are_not_sent() {
    let (mut world, a, b) = registered();
    let features = |nsid| {
        let (sel, cdw11) = (0, 0);
        AdminCommand::GetFeatures { fid: fid::RESERVATION_MASK, sel, nsid, cdw11 }.emit()
    };
    let admin = a.client.admin;
    assert_eq!(world.send_dataless(admin, features(1)).result, 0);
    assert_eq!(world.send_dataless(admin, features(2)).status, Status::INVALID_NAMESPACE.dnr());
    let mut set = AdminCommand::set_features(fid::RESERVATION_MASK, 0xff).emit();
    set.nsid.set(1);
    assert_eq!(world.send_dataless(admin, set).status, Status::SUCCESS);
    assert_eq!(world.send_dataless(admin, features(1)).result, 0b1110);
    assert_eq!(run(&mut world, b.io, rrela(1, 0), (11, 0)), Status::SUCCESS);
    assert_eq!(log_page(&mut world, admin), ReservationNotification::new_zeroed());
}

#[test]
fn report_with_short_host_identifiers_is_refused() {
    let (mut world, a, _) = registered();
    let command = sqe(ReservationRequest::Report { len: 24, extended: false });
    let buffer = world.buffer(24);
    let status = world.command(a.io, command, Payload::Receive(buffer)).status;
    assert_eq!(status, Status::HOST_ID_INCONSISTENT.dnr());
    // A short buffer gets the start, and a longer one zeros at the end.
    assert_eq!(report(&mut world, a.io, 8), [2, 0, 0, 0, 0, 2, 0, 0]);
    assert_eq!(report(&mut world, a.io, 256)[192..], [0; 64]);
    let command = sqe(ReservationRequest::Report { len: 1 << 34, extended: true });
    let buffer = world.buffer(4096);
    assert!(!world.command(a.io, command, Payload::Receive(buffer)).status.is_success());
}

#[test]
fn registration_belongs_to_name_and_identifier_of_the_host() {
    let (mut world, a, _) = registered();
    assert_eq!(run(&mut world, a.io, racqa(0, 2), (10, 0)), Status::SUCCESS);
    let name = "nqn.2014-08.org.nvmexpress:uuid:other";
    let other = AttachParams { host: name, host_id: A, ..AttachParams::default() };
    let other = world.attach(&other).io[0];
    assert_eq!(world.read(other, 0, 1).err(), Some(CONFLICT));
    // Another path of the same host, and the host after a loss of its connections.
    let path = attach(&mut world, A);
    assert!(world.read(path.io, 0, 1).is_ok());
    for conn in [a.client.admin, a.io, path.client.admin, path.io] {
        world.cut(conn);
    }
    world.run();
    let again = attach(&mut world, A);
    assert!(world.read(again.io, 0, 1).is_ok());
    // A host without an identifier cannot register.
    let nameless = attach(&mut world, [0; 16]);
    assert_eq!(register(&mut world, nameless.io, 5), CONFLICT);
}

#[test]
fn shutdown_flushes_despite_a_reservation_of_another_host() {
    let (mut world, a, b) = registered();
    world.write(b.io, 0, &[1; 512]);
    assert_eq!(run(&mut world, a.io, racqa(0, 1), (10, 0)), Status::SUCCESS);
    assert_eq!(world.command(b.io, flush(), Payload::None).status, CONFLICT);
    let cc = enabled().with_shn(Cc::SHN_NORMAL);
    assert_eq!(world.configure(b.client.admin, cc), Status::SUCCESS);
    let csts = Csts(world.property(b.client.admin, PropertySize::Four, property::CSTS) as u32);
    assert_eq!(csts.shst(), Csts::SHST_COMPLETE);
    assert_eq!(world.disk().changes().last(), Some(&(Op::Flush, 0, 0)));
}

#[test]
fn host_with_read_only_access_cannot_reserve() {
    let mut world = World::with(|export| export.access = Access::ReadOnly);
    let a = attach(&mut world, A);
    assert_eq!(register(&mut world, a.io, 10), Status::SUCCESS);
    let protected = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    assert_eq!(run(&mut world, a.io, racqa(0, 2), (10, 0)), protected);
}

#[test]
fn persistence_is_refused_where_it_is_not_announced() {
    let (mut world, a, _) = registered();
    let set =
        ReservationRequest::Register { action: 2, ignore_key: false, persistence: cptpl::SET };
    let invalid = Status::INVALID_FIELD.dnr();
    assert_eq!(run(&mut world, a.io, set, (10, 12)), invalid);
    assert_eq!(summary(&mut world, a.io).2, [(0, 10), (0, 11)]);
    let mut features = AdminCommand::set_features(fid::RESERVATION_PERSISTENCE, 1).emit();
    features.nsid.set(1);
    assert_eq!(world.send_dataless(a.client.admin, features).status, invalid);
    let mut features = AdminCommand::get_features(fid::RESERVATION_PERSISTENCE).emit();
    features.nsid.set(1);
    assert_eq!(world.send_dataless(a.client.admin, features).status, invalid);
}

#[derive(Debug, Default)]
struct Store(Mutex<Vec<(u64, Option<SavedReservations>)>>);

impl ReservationStore for Store {
    fn save(&self, sequence: u64, state: Option<SavedReservations>) {
        self.0.lock().unwrap().push((sequence, state));
    }
}

#[test]
fn persistent_state_is_stored_before_the_answer() {
    let (mut world, a, store) = {
        let mut world = World::new();
        let store = Arc::new(Store::default());
        world.disk().export.set_reservation_store(store.clone(), None);
        let a = attach(&mut world, A);
        (world, a, store)
    };
    let (admin, export) = (a.client.admin, world.disk().export.clone());
    let page = world.page(admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    assert_eq!(IdentifyNamespace::read_from_bytes(&page).unwrap().rescap, 0xff);
    let set =
        ReservationRequest::Register { action: 0, ignore_key: false, persistence: cptpl::SET };
    let keys = world.host_buffer(ReservationKeys::new(0, 10).as_bytes());
    world.submit(a.io, sqe(set), Payload::Send(keys), 1);
    world.run();
    assert!(world.completion(a.io, 1).is_none());
    export.reservations_saved(1, true);
    world.notify(&export::Notice::StateChanged);
    world.run();
    assert_eq!(world.status(a.io, 1), Status::SUCCESS);
    assert_eq!(report(&mut world, a.io, 64)[9], 1);
    // Off again by the feature, whose state cannot be stored.
    let mut off = AdminCommand::set_features(fid::RESERVATION_PERSISTENCE, 0).emit();
    off.nsid.set(1);
    world.submit(admin, off, Payload::None, 2);
    world.run();
    assert!(world.completion(admin, 2).is_none());
    export.reservations_saved(2, false);
    world.notify(&export::Notice::StateChanged);
    world.run();
    assert_eq!(world.status(admin, 2), Status::INTERNAL_ERROR);
    let saved = std::mem::take(&mut *store.0.lock().unwrap());
    let [(1, Some(first)), (2, None)] = &saved[..] else { panic!("{saved:?}") };
    // After a restart the host is registered.
    let new = World::another(&export);
    new.set_reservation_store(store, Some(first.clone()));
    assert_eq!(new.reservations().registrations()[0].key, 10);
    assert_eq!(new.id, DISK.into());
}

#[test]
fn reset_ends_notifications_and_keeps_registrations() {
    let (mut world, a, b) = registered();
    assert_eq!(run(&mut world, b.io, rrela(1, 0), (11, 0)), Status::SUCCESS);
    let admin = a.client.admin;
    assert_eq!(world.configure(admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.configure(admin, enabled()), Status::SUCCESS);
    assert_eq!(log_page(&mut world, admin), ReservationNotification::new_zeroed());
    assert_eq!(summary(&mut world, b.io), (3, 0, vec![]));
}

#[test]
fn disk_with_contents_for_each_host_is_not_shared() {
    fn private(export: &mut Export) {
        let files = [(); 3].map(|()| File::open("/dev/null").unwrap().into());
        let layout =
            OverlayLayout { limit: 1 << 20, map_cost: 1, is_private: true, is_durable: false };
        let backing = Backing::new(layout.into(), files.into()).unwrap();
        let Export { id, identity, geometry, .. } = &*export;
        *export = Export::new("overlay", id.clone(), identity.clone(), *geometry, 1 << 20, backing);
        export.access = Access::Writable;
    }
    let mut world = World::with(private);
    let Host { client, io } = attach(&mut world, A);
    let page = world.page(client.admin, AdminCommand::identify(cns::CONTROLLER, 0)).unwrap();
    let controller = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!(controller.oncs.get() & oncs::RESERVATIONS, 0);
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    let namespace = IdentifyNamespace::read_from_bytes(&page).unwrap();
    assert_eq!((namespace.nmic, namespace.rescap), (0, 0));
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE_INDEPENDENT, 1));
    assert_eq!(page.unwrap()[1..3], [0, 0]);
    assert_eq!(register(&mut world, io, 10), Status::INVALID_OPCODE.dnr());
    // The log pages and features of reservations do not exist either.
    let mut page = |lid, len| world.page(client.admin, AdminCommand::log_page(lid, 0, len));
    let supported = page(lid::SUPPORTED_LOG_PAGES, 1024).unwrap();
    let is_supported = |lid: u8| supported[4 * usize::from(lid)] & 1;
    assert_eq!((is_supported(lid::RESERVATION), is_supported(lid::SMART)), (0, 1));
    assert_eq!(page(lid::RESERVATION, 64).unwrap_err(), Status::INVALID_LOG_PAGE.dnr());
    let effects = page(lid::COMMAND_EFFECTS, 4096).unwrap();
    let is_offered = |opcode: u8| effects[1024 + 4 * usize::from(opcode)] & 1;
    assert_eq!((is_offered(0x0d), is_offered(0x02)), (0, 1));
    let effects = page(lid::FEATURE_EFFECTS, 1024).unwrap();
    for fid in [fid::RESERVATION_MASK, fid::RESERVATION_PERSISTENCE] {
        assert_eq!(effects[4 * usize::from(fid)] & 1, 0);
        let mut get = AdminCommand::get_features(fid).emit();
        get.nsid.set(1);
        world.submit(client.admin, get, Payload::None, 40);
        world.run();
        assert_eq!(world.status(client.admin, 40), Status::INVALID_FIELD.dnr());
    }
}
