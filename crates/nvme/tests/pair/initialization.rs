//! Controller initialization in the order of Linux.

use export::Access;
use nvme::auth::AuthConfig;
use nvme::command::{AdminCommand, FabricsCommand, PropertySize};
use nvme::host::{Controller, InitError, Options};
use nvme::status::Status;
use nvme::target::Target;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectField, DISCOVERY_NQN, property};
use nvme::wire::identify::{NSATTR_WRITE_PROTECTED, cns, oncs, vwc};
use nvme::wire::text::parse_ascii;

use crate::client::{AttachParams, enabled};
use crate::world::{BYTES, World};

#[test]
fn initialization_satisfies_linux() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 4, ..AttachParams::default() });
    assert_eq!((client.controller.queues(), client.io.len()), (4, 4));
    let figure = client.controller.identify().unwrap();
    assert_eq!(parse_ascii(&figure.mn), "A disk");
    assert_eq!(parse_ascii(&figure.sn), "SN1");
    assert_eq!(figure.vwc & vwc::PRESENT, vwc::PRESENT);
    assert_ne!(figure.oncs.get() & oncs::DATASET_MANAGEMENT, 0);
    assert_eq!(client.controller.capsule_data(), 16384);
    assert_eq!(client.controller.max_transfer(), 1 << 20);
    let [namespace] = client.controller.namespaces() else { panic!("one namespace") };
    assert_eq!((namespace.nsid, namespace.shift()), (1, 9));
    assert_eq!(namespace.identify.nsze.get(), BYTES as u64 / 512);
    assert_eq!((namespace.ids.uuid, namespace.ids.nguid), (Some([7; 16]), Some([9; 16])));
    assert_eq!(namespace.identify.nsattr & NSATTR_WRITE_PROTECTED, 0);
}

/// ESXi and Windows refuse a namespace whose NGUID and EUI-64 are both zero.
#[test]
fn nguid_falls_back_to_the_uuid() {
    let mut world = World::with(|export| export.identity.nguid = None);
    let client = world.attach(&AttachParams::default());
    let figure = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    assert_eq!((&figure[104..120], &figure[120..128]), (&[7; 16][..], &[0; 8][..]));
    let page = AdminCommand::identify(cns::NAMESPACE_DESCRIPTORS, 1);
    let list = world.page(client.admin, page).unwrap();
    let mut golden = vec![2, 16, 0, 0]; // NGUID
    golden.extend([7; 16]);
    golden.extend([3, 16, 0, 0]); // UUID
    golden.extend([7; 16]);
    golden.extend([4, 1, 0, 0, 0, 0, 0, 0, 0]); // CSI, and the end
    assert_eq!(list[..golden.len()], golden);
}

#[test]
fn eui64_is_in_both_structures() {
    let eui64 = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut world = World::with(|export| export.identity.eui64 = Some([1, 2, 3, 4, 5, 6, 7, 8]));
    let client = world.attach(&AttachParams::default());
    let namespace = &client.controller.namespaces()[0];
    assert_eq!((namespace.identify.nguid, namespace.identify.eui64), ([9; 16], eui64));
    assert_eq!(namespace.ids.eui64, Some(eui64));
}

#[test]
fn optimal_write_size_is_a_multiple_of_the_granularity() {
    let mut world = World::new();
    let client = world.attach(&AttachParams::default());
    let figure = &client.controller.namespaces()[0].identify;
    assert_eq!([figure.npwg.get(), figure.npwa.get(), figure.nows.get()], [7, 7, 7]);
}

#[test]
fn read_only_disk_is_announced() {
    let mut world = World::with(|export| export.access = Access::ReadOnly);
    let client = world.attach(&AttachParams::default());
    let namespace = &client.controller.namespaces()[0];
    assert_eq!(namespace.identify.nsattr & NSATTR_WRITE_PROTECTED, NSATTR_WRITE_PROTECTED);
}

#[test]
fn write_through_disk_has_no_volatile_cache() {
    let mut world = World::with(|export| export.cache = export::Cache::WriteThrough);
    let client = world.attach(&AttachParams::default());
    assert_eq!(client.controller.identify().unwrap().vwc & vwc::PRESENT, 0);
}

#[test]
fn all_digest_combinations_work() {
    for digests in 0..4 {
        let mut world = World::new();
        let params = AttachParams {
            header_digest: digests & 1 != 0,
            data_digest: digests & 2 != 0,
            ..AttachParams::default()
        };
        let client = world.attach(&params);
        assert_eq!(client.io.len(), 1, "{digests}");
    }
}

#[test]
fn controller_identifiers_are_unique() {
    let mut world = World::new();
    let first = world.attach(&AttachParams::default());
    let second = world.attach(&AttachParams::default());
    assert_ne!(first.cntlid, second.cntlid);
    let page = world.page(first.admin, AdminCommand::identify(cns::CONTROLLERS, 0)).unwrap();
    assert_eq!(page[0], 2);
}

/// Linux refuses two controllers of a subsystem with the same identifier, and treats others as
/// paths to one disk.
#[test]
fn r58_two_machines_use_distinct_controller_identifiers() {
    let identifiers = |start| {
        let mut world = World::new();
        world.target = Target::with_config(world.catalogue.clone(), AuthConfig::default(), start);
        let discovery = AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() };
        let disk = AttachParams::default();
        [&discovery, &disk, &discovery, &disk].map(|params| world.open_admin(params).1)
    };
    let (here, there) = (identifiers(100), identifiers(40_000));
    assert!(here.iter().all(|id| !there.contains(id)), "{here:?} {there:?}");
    assert_eq!(here[1] + 1, here[3], "the discovery service does not move the disks' on");
    assert!(here[0] >= 0xf000 && here[2] >= 0xf000);
    // For any start value, including wrap-around.
    let last = identifiers(0xefff - 1);
    assert_eq!((last[1], last[3]), (0xefff, 1));
}

#[test]
fn unknown_subsystem_is_refused_with_its_field() {
    let mut world = World::new();
    let params =
        AttachParams { subsystem: "nqn.2026-01.org.example:nothing", ..AttachParams::default() };
    let conn = world.connect(Options::admin(), params.data(CNTLID_DYNAMIC));
    world.run();
    let (status, dw0) = world.connections[conn].refused.unwrap();
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    assert_eq!(dw0, ConnectField::Subnqn.dw0());
    assert!(matches!(world.events.last(), Some(export::Event::Refused { .. })));
}

#[test]
fn ungranted_and_foreign_io_queues_are_refused() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    let other = AttachParams { host: "nqn.2026-01.org.example:other", ..AttachParams::default() };
    let mine = AttachParams::default();
    let cases = [
        (&mine, 3, client.cntlid, ConnectField::Qid),
        (&mine, 1, client.cntlid + 1, ConnectField::Cntlid),
        (&other, 2, client.cntlid, ConnectField::Hostnqn),
    ];
    for (params, qid, cntlid, field) in cases {
        let conn = world.connect(Options::io(qid, 16, 0), params.data(cntlid));
        world.run();
        let refused = world.connections[conn].refused.unwrap();
        assert_eq!(refused, (Status::CONNECT_INVALID_PARAMETERS.dnr(), field.dw0()));
    }
}

#[test]
fn open_queue_identifier_is_refused() {
    let mut world = World::new();
    let client = world.attach(&AttachParams::default());
    let conn = world.connect(Options::io(1, 16, 0), AttachParams::default().data(client.cntlid));
    world.run();
    assert!(world.connections[conn].refused.is_some());
}

#[test]
fn only_properties_work_before_cc_en() {
    let mut world = World::new();
    let (admin, _) = world.open_admin(&AttachParams::default());
    let identify = AdminCommand::identify(cns::CONTROLLER, 0);
    assert_eq!(world.page(admin, identify).unwrap_err(), Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(world.property(admin, PropertySize::Four, property::CSTS), 0);
    assert_eq!(world.configure(admin, enabled()), Status::SUCCESS);
    assert_eq!(world.property(admin, PropertySize::Four, property::CSTS), 1);
    assert!(world.page(admin, identify).is_ok());
}

#[test]
fn invalid_configuration_is_fatal() {
    let mut world = World::new();
    let (admin, cntlid) = world.open_admin(&AttachParams::default());
    world.configure(admin, enabled().with_mps(1));
    assert_eq!(world.property(admin, PropertySize::Four, property::CSTS) & 0b11, 0b10);
    world.configure(admin, enabled().with_en(0));
    let mut controller = Controller::new(cntlid, 1);
    world.initialize(admin, &mut controller).unwrap();
}

#[test]
fn invalid_property_access_is_refused() {
    let mut world = World::new();
    let (admin, _) = world.open_admin(&AttachParams::default());
    for (attrib, offset) in [
        (PropertySize::Four, property::CAP),
        (PropertySize::Eight, property::CC),
        (PropertySize::Four, 0x1234),
    ] {
        let done =
            world.send_dataless(admin, FabricsCommand::PropertyGet { attrib, offset }.emit());
        assert_eq!(done.status, Status::INVALID_FIELD.dnr(), "{offset:#x}");
    }
}

#[test]
fn host_refuses_a_wrong_controller_identifier() {
    let mut world = World::new();
    let (admin, cntlid) = world.open_admin(&AttachParams::default());
    let mut controller = Controller::new(cntlid + 1, 1);
    let error = world.initialize(admin, &mut controller).unwrap_err();
    assert_eq!(error, InitError::InvalidField("CNTLID"));
}

#[test]
fn discovery_controller_initialization() {
    let mut world = World::new();
    let client =
        world.attach(&AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() });
    assert!(client.io.is_empty() && client.controller.namespaces().is_empty());
}

/// The partial last block of a disk is accessible if the disk is read-only.
#[test]
fn read_only_disk_of_odd_size_includes_its_last_block() {
    let mut world = World::with(|export| {
        export.access = Access::ReadOnly;
        export.resize(1_000_001);
    });
    let client = world.attach(&AttachParams::default());
    let figure = &client.controller.namespaces()[0].identify;
    assert_eq!((figure.nsze.get(), figure.nvmcap.get()), (1954, 1954 * 512));
    assert!(world.read(client.io[0], 1953, 1).is_ok());
    assert_eq!(
        world.read(client.io[0], 1954, 1).map_err(Status::code),
        Err(Status::LBA_OUT_OF_RANGE)
    );
    // A writable disk has whole blocks only.
    world.publish("nqn.x:writable", |export| {
        export.resize(1_000_001);
    });
    let client =
        world.attach(&AttachParams { subsystem: "nqn.x:writable", ..AttachParams::default() });
    assert_eq!(client.controller.namespaces()[0].identify.nsze.get(), 1953);
    assert_eq!(world.disks[1].export.bytes(), 999_936);
}
