//! Connect and the properties (NVMe Base 2.0 §3.1.3, §6).

use export::{Event, Fault, Reason};
use nvme::command::{AdminCommand, FabricsCommand, PropertySize};
use nvme::status::Status;
use nvme::target::Port;
use nvme::wire::fabrics::{ConnectData, DISCOVERY_NQN, property};
use nvme::wire::feature::fid;
use nvme::wire::{Sgl, Sqe};
use zerocopy::IntoBytes;

use crate::raw_host::{
    ENABLE, HOST, PLAIN, capsule, configure, connect_data, connect_sqe, h2c, property_get, read,
    write, write_in_capsule,
};
use crate::world::{DISK, Id, Reply, World};

/// Sends Connect on a new connection. Returns status and dword 0.
fn connect(world: &mut World, sqe: &Sqe, data: &ConnectData) -> (Status, u32) {
    let id = world.initialized(PLAIN);
    let cqe = world.ask(id, sqe, data.as_bytes());
    assert_eq!(world.conn(id).closed, None);
    (cqe.outcome(), cqe.dw0.get())
}

const INVALID: Status = Status::CONNECT_INVALID_PARAMETERS.dnr();

/// Bit 16 of dword 0: the offset is in the data of Connect.
const IN_DATA: u32 = 1 << 16;

#[test]
fn connect_refuses_another_record_format() {
    let mut world = World::new();
    let mut sqe = connect_sqe(0, 32);
    sqe.cdw10 = 1.into();
    let refused = connect(&mut world, &sqe, &connect_data(0xffff));
    assert_eq!(refused.0, Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    world.end_all();
}

#[test]
fn x31_connect_refuses_invalid_queue_sizes() {
    let mut world = World::new();
    let (_, cntlid) = world.admin();
    for (qid, entries) in [(0, 1), (1, 1), (1, 1025), (1, 65536), (0, 65536)] {
        let refused = connect(&mut world, &connect_sqe(qid, entries), &connect_data(cntlid));
        assert_eq!(refused, (INVALID, 44), "queue {qid} of {entries}");
    }
    world.end_all();
}

#[test]
fn admin_connect_requires_a_dynamic_controller() {
    let mut world = World::new();
    let (_, cntlid) = world.admin();
    for wanted in [0, 1, cntlid, 0xffef, 0xfffd] {
        let refused = connect(&mut world, &connect_sqe(0, 32), &connect_data(wanted));
        assert_eq!(refused, (INVALID, IN_DATA | 16), "{wanted:#x}");
    }
    for any in [0xffff, 0xfffe] {
        assert!(connect(&mut world, &connect_sqe(0, 32), &connect_data(any)).0.is_success());
    }
    world.end_all();
}

#[test]
fn x31_io_connect_requires_its_own_controller() {
    let mut world = World::new();
    let other_host = world.other_host();
    let (_, cntlid) = world.admin();
    let sqe = connect_sqe(1, 32);
    for other in [0, cntlid + 1, 0xfffe, 0xffff] {
        let refused = connect(&mut world, &sqe, &connect_data(other));
        assert_eq!(refused, (INVALID, IN_DATA | 16), "{other:#x}");
    }
    let theirs = connect(&mut world, &sqe, &connect_data(cntlid - 1));
    assert_eq!(theirs, (INVALID, IN_DATA | 512), "another host's controller");
    let data = ConnectData::emit([9; 16], cntlid, DISK, "nqn.other").unwrap();
    assert_eq!(connect(&mut world, &sqe, &data), (INVALID, IN_DATA | 512));
    let data = ConnectData::emit([8; 16], cntlid, DISK, HOST).unwrap();
    assert_eq!(connect(&mut world, &sqe, &data), (INVALID, IN_DATA));
    let data = ConnectData::emit([9; 16], cntlid, "nqn.other", HOST).unwrap();
    assert_eq!(connect(&mut world, &sqe, &data), (INVALID, IN_DATA | 256));
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn x31_connect_refuses_invalid_nqns() {
    let mut world = World::new();
    let breaks: [fn(&mut [u8; 256]); 5] = [
        |name| name.fill(b'a'),
        |name| name.fill(0),
        |name| (name[..224].fill(b'a'), name[224..].fill(0)).1,
        |name| (name[..255].fill(b'a'), name[255] = 0).1,
        |name| name[3] = 0xff,
    ];
    for change in breaks {
        let mut data = connect_data(0xffff);
        change(&mut data.subnqn);
        assert_eq!(connect(&mut world, &connect_sqe(0, 32), &data), (INVALID, IN_DATA | 256));
        let mut data = connect_data(0xffff);
        change(&mut data.hostnqn);
        if data.hostnqn != [0; 256] {
            assert_eq!(connect(&mut world, &connect_sqe(0, 32), &data), (INVALID, IN_DATA | 512));
        }
    }
    world.end_all();
}

/// SPDK's perf sends no host NQN by default.
#[test]
fn empty_host_nqn_is_accepted() {
    let mut world = World::new();
    let mut data = connect_data(0xffff);
    data.hostnqn.fill(0);
    assert_eq!(connect(&mut world, &connect_sqe(0, 32), &data).0, Status::SUCCESS);
    world.end_all();
}

#[test]
fn connect_to_an_unknown_subsystem_is_refused() {
    let mut world = World::new();
    let data = ConnectData::emit([9; 16], 0xffff, "nqn.2014-08.org.nvmexpress:uuid:else", HOST);
    let id = world.initialized(PLAIN);
    let cqe = world.ask(id, &connect_sqe(0, 32), data.unwrap().as_bytes());
    assert_eq!((cqe.outcome(), cqe.dw0.get()), (INVALID, IN_DATA | 256));
    assert!(matches!(world.conn(id).events[..], [Event::Refused { .. }]));
    // The host may retry on the same connection.
    let cqe = world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    assert_eq!(cqe.outcome(), Status::SUCCESS);
    world.end_all();
}

#[test]
fn discovery_port_refuses_subsystems_of_disks() {
    let mut world = World::new();
    world.port = Port::Discovery { disks_at: 4420 };
    let refused = connect(&mut world, &connect_sqe(0, 32), &connect_data(0xffff));
    assert_eq!(refused, (INVALID, IN_DATA | 256));
    let data = ConnectData::emit([9; 16], 0xffff, DISCOVERY_NQN, HOST).unwrap();
    assert!(connect(&mut world, &connect_sqe(0, 32), &data).0.is_success());
    world.end_all();
}

#[test]
fn discovery_controller_has_no_io_queues() {
    let mut world = World::new();
    let data = |cntlid| ConnectData::emit([9; 16], cntlid, DISCOVERY_NQN, HOST).unwrap();
    let id = world.initialized(PLAIN);
    let cqe = world.ask(id, &connect_sqe(0, 32), data(0xffff).as_bytes());
    let cntlid = u16::try_from(cqe.dw0.get() & 0xffff).unwrap();
    world.status(id, &configure(1));
    assert_eq!(connect(&mut world, &connect_sqe(1, 32), &data(cntlid)), (INVALID, 42));
    world.end_all();
}

#[test]
fn connect_data_can_be_sent_by_r2t() {
    let mut world = World::new();
    let sqe = connect_sqe(0, 32).with_data(Sgl::transport(1024)).with_cid(3);
    let data = connect_data(0xffff);
    let id = world.initialized(PLAIN);
    let [Reply::R2t { cid: 3, ttag, offset: 0, len: 1024 }] = world.command(id, &sqe, &[])[..]
    else {
        panic!()
    };
    world.send(id, &h2c(PLAIN, 3, ttag, 0, data.as_bytes(), true));
    let [Reply::Done(cqe)] = world.replies(id)[..] else { panic!() };
    assert_eq!(cqe.outcome(), Status::SUCCESS);
    let id = world.initialized(PLAIN);
    world.command(id, &sqe, &[]);
    world.send(id, &h2c(PLAIN, 3, 0, 1, &data.as_bytes()[1..], true));
    world.terminated(id, 4, 12);
    world.end_all();
}

#[test]
fn connect_data_must_have_1024_bytes() {
    let mut world = World::new();
    let data = connect_data(0xffff);
    let long = [data.as_bytes(), &[0; 4]].concat();
    for bytes in [&data.as_bytes()[..1020], &long, &[]] {
        let id = world.initialized(PLAIN);
        let len = u32::try_from(bytes.len()).unwrap();
        for sgl in [Sgl::in_capsule(0, len), Sgl::in_capsule(0, 1024)] {
            let cqe = world.ask(id, &connect_sqe(0, 32).with_data(sgl), bytes);
            assert_eq!(cqe.outcome(), Status::DATA_SGL_LENGTH_INVALID.dnr());
        }
    }
    world.end_all();
}

#[test]
fn commands_before_connect_are_refused() {
    let mut world = World::new();
    let id = world.initialized(PLAIN);
    let commands = [
        property_get(property::VS),
        configure(ENABLE),
        AdminCommand::KeepAlive.emit(),
        AdminCommand::identify(1, 0).emit(),
        read(0, 1),
        FabricsCommand::Disconnect { recfmt: 0 }.emit(),
    ];
    for sqe in commands {
        assert_eq!(world.status(id, &sqe), Status::COMMAND_SEQUENCE_ERROR.dnr(), "{sqe:02x?}");
    }
    let cqe = world.ask(id, &write_in_capsule(0, 1), &[1; 512]);
    assert_eq!(cqe.outcome(), Status::COMMAND_SEQUENCE_ERROR.dnr());
    assert_eq!(world.conn(id).submitted, 0);
    world.end_all();
}

#[test]
fn second_connect_on_a_queue_is_refused() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    for id in [admin, io] {
        let cqe = world.ask(id, &connect_sqe(0, 32).with_cid(50), connect_data(0xffff).as_bytes());
        assert_eq!(cqe.outcome(), Status::COMMAND_SEQUENCE_ERROR.dnr());
    }
    assert_eq!(world.fetch(io, &read(1, 1)), world.disk[512..1024]);
    world.end_all();
}

#[test]
fn x31_queue_identifier_is_granted_and_used_once() {
    let mut world = World::new();
    let (_, cntlid) = world.admin();
    let data = connect_data(cntlid);
    for qid in [9, 65, 0xffff] {
        assert_eq!(connect(&mut world, &connect_sqe(qid, 32), &data), (INVALID, 42));
    }
    assert!(connect(&mut world, &connect_sqe(8, 32), &data).0.is_success());
    let again = connect(&mut world, &connect_sqe(8, 32), &data);
    assert_eq!(again.0, Status::COMMAND_SEQUENCE_ERROR.dnr());
    world.end_all();
}

#[test]
fn io_queue_requires_a_ready_controller() {
    let mut world = World::new();
    let id = world.initialized(PLAIN);
    let cqe = world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    let cntlid = u16::try_from(cqe.dw0.get() & 0xffff).unwrap();
    let refused = connect(&mut world, &connect_sqe(1, 32), &connect_data(cntlid));
    assert_eq!(refused.0, Status::COMMAND_SEQUENCE_ERROR.dnr());
    world.end_all();
}

#[test]
fn admin_commands_require_cc_en() {
    let mut world = World::new();
    let id = world.initialized(PLAIN);
    world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    for sqe in [
        AdminCommand::identify(1, 0).emit(),
        AdminCommand::log_page(2, 0, 512).emit(),
        AdminCommand::get_features(fid::KEEP_ALIVE_TIMER).emit(),
        AdminCommand::AsyncEventRequest.emit(),
    ] {
        assert_eq!(world.status(id, &sqe), Status::COMMAND_SEQUENCE_ERROR.dnr());
    }
    assert_eq!(world.status(id, &AdminCommand::KeepAlive.emit()), Status::SUCCESS);
    assert_eq!(world.status(id, &configure(ENABLE)), Status::SUCCESS);
    assert_eq!(world.fetch(id, &AdminCommand::identify(1, 0).emit()).len(), 4096);
    world.end_all();
}

#[test]
fn unsupported_cc_values_set_csts_cfs() {
    for cc in [ENABLE | 1 << 7, ENABLE | 6 << 4, ENABLE | 1 << 11, 1, 0x0047_0001, 0x0056_0001] {
        let mut world = World::new();
        let id = world.initialized(PLAIN);
        world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
        world.status(id, &configure(cc));
        let csts = world.ask(id, &property_get(property::CSTS), &[]).dw0.get();
        assert_eq!(csts & 0b11, 0b10, "CSTS.CFS and not RDY for CC {cc:#x}");
        world.end_all();
    }
}

#[test]
fn property_get_checks_offset_and_size() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    let sized = |attrib, offset| FabricsCommand::PropertyGet { attrib, offset }.emit();
    let known = [
        (property::CAP, PropertySize::Eight),
        (property::VS, PropertySize::Four),
        (property::CC, PropertySize::Four),
        (property::CSTS, PropertySize::Four),
    ];
    for offset in (0..0x100).chain([0x1000, u32::MAX, u32::MAX - 3]) {
        for size in [PropertySize::Four, PropertySize::Eight] {
            let status = world.status(admin, &sized(size, offset));
            let right = known.contains(&(offset, size));
            assert_eq!(status.is_success(), right, "{offset:#x} {size:?}");
        }
    }
    for attrib in 2..8_u32 {
        let sqe = Sqe { cdw10: attrib.into(), ..property_get(property::VS) };
        assert_eq!(world.status(admin, &sqe), Status::INVALID_FIELD.dnr());
    }
    world.end_all();
}

#[test]
fn property_set_accepts_cc_only() {
    let mut world = World::new();
    let (admin, _) = world.admin();
    for offset in [property::CAP, property::VS, property::CSTS, property::NSSR, 0x15, u32::MAX] {
        for attrib in [PropertySize::Four, PropertySize::Eight] {
            let sqe = FabricsCommand::PropertySet { attrib, offset, value: u64::MAX }.emit();
            assert_eq!(world.status(admin, &sqe), Status::INVALID_FIELD.dnr());
        }
    }
    let (attrib, offset) = (PropertySize::Eight, property::CC);
    let sqe = FabricsCommand::PropertySet { attrib, offset, value: 0 }.emit();
    assert_eq!(world.status(admin, &sqe), Status::INVALID_FIELD.dnr());
    assert_eq!(world.ask(admin, &property_get(property::CC), &[]).dw0.get(), ENABLE);
    world.end_all();
}

#[test]
fn reset_deletes_the_io_queues() {
    let mut world = World::new();
    let other_host = world.other_host();
    let (admin, cntlid) = world.admin();
    let io = world.io(cntlid, 1);
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &read(0, 8).with_cid(1), &[]));
    world.send(io, &capsule(PLAIN, &write(0, 8).with_cid(2), &[]));
    assert_eq!(world.status(admin, &configure(ENABLE & !1)), Status::SUCCESS);
    assert_eq!(world.conn(io).closed, Some(Reason::Ended));
    world.finish(io, 0, Ok(()));
    assert_eq!(world.ask(admin, &property_get(property::CSTS), &[]).dw0.get() & 1, 0);
    let refused = connect(&mut world, &connect_sqe(1, 32), &connect_data(cntlid));
    assert_eq!(refused.0, Status::COMMAND_SEQUENCE_ERROR.dnr());
    // The Admin queue stays; the configuration is reset.
    assert_eq!(world.status(admin, &configure(ENABLE)), Status::SUCCESS);
    let refused = connect(&mut world, &connect_sqe(1, 32), &connect_data(cntlid));
    assert_eq!(refused, (INVALID, 42), "queues are to be asked for again");
    let queues = AdminCommand::set_features(fid::NUMBER_OF_QUEUES, 0x0001_0001).emit();
    assert_eq!(world.status(admin, &queues), Status::SUCCESS);
    let again = world.io(cntlid, 1);
    assert_eq!(world.fetch(again, &read(0, 1)), world.disk[..512]);
    world.assert_still_served(other_host);
    world.end_all();
}

/// Starts a shutdown whose flush stays pending. Returns the Admin queue.
fn start_shutdown(world: &mut World) -> Id {
    let (admin, io) = world.attached();
    world.ask(io, &write_in_capsule(0, 1), &[1; 512]);
    world.conn(admin).hold = true;
    world.send(admin, &capsule(PLAIN, &configure(ENABLE | 1 << 14).with_cid(5), &[]));
    assert_eq!(world.jobs(admin).len(), 1, "a flush");
    let csts = world.ask(admin, &property_get(property::CSTS), &[]).dw0.get();
    assert_eq!(csts >> 2 & 0b11, 0b01, "shutdown is under way");
    admin
}

#[test]
fn shutdown_completes_after_the_flush() {
    for result in [Ok(()), Err(Fault::Io), Err(Fault::Gone)] {
        let mut world = World::new();
        let admin = start_shutdown(&mut world);
        world.finish(admin, 0, result);
        let [Reply::Done(cqe)] = world.replies(admin)[..] else { panic!() };
        assert_eq!((cqe.cid.get(), cqe.outcome()), (5, Status::SUCCESS));
        let csts = world.ask(admin, &property_get(property::CSTS), &[]).dw0.get();
        assert_eq!(csts >> 2 & 0b11, 0b10, "shutdown is complete");
        world.end_all();
    }
}

#[test]
fn shutdown_succeeds_without_a_working_disk() {
    for gone in [true, false] {
        let mut world = World::new();
        let (admin, _) = world.attached();
        let export = world.catalogue.find(&DISK.into()).unwrap();
        if gone {
            export.withdraw()
        } else {
            export.flush_failed()
        }
        assert_eq!(world.status(admin, &configure(ENABLE | 1 << 14)), Status::SUCCESS);
        let csts = world.ask(admin, &property_get(property::CSTS), &[]).dw0.get();
        assert_eq!(csts >> 2 & 0b11, 0b10);
        world.end_all();
    }
}

#[test]
fn disconnect_is_valid_on_io_queues_only() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    let disconnect = |recfmt| FabricsCommand::Disconnect { recfmt }.emit();
    assert_eq!(world.status(admin, &disconnect(0)), Status::INVALID_QUEUE_TYPE.dnr());
    assert_eq!(world.status(io, &disconnect(1)), Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    assert_eq!(world.status(io, &disconnect(0)), Status::SUCCESS);
    assert_eq!(world.conn(io).closed, Some(Reason::Peer));
    world.end_all();
}

#[test]
fn unknown_fabrics_commands_and_authentication_are_refused() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    for fctype in (0..=255_u32).filter(|fctype| ![0, 1, 4, 8].contains(fctype)) {
        let sqe = Sqe { nsid: fctype.into(), ..property_get(0) };
        assert_eq!(world.status(admin, &sqe), Status::INVALID_OPCODE.dnr(), "{fctype:#x}");
        assert!(!world.status(io, &sqe).is_success());
    }
    world.end_all();
}
