//! Access control: TLS and DH-HMAC-CHAP keys on every queue, and denied hosts.

use std::sync::Arc;
use std::time::Duration;

use export::{
    Access, Auth, Channel, Credential, Event, Host, KeyId, Notice, Policy, Reason, Rule, Secret,
};
use nvme::auth::chap::Key;
use nvme::auth::credential::{chap_controller, chap_host, tls_psk};
use nvme::auth::{AuthConfig, Credentials, Group, Hash};
use nvme::command::{AdminCommand, FabricsCommand, IoCommand, PropertySize};
use nvme::host::{Options, Payload};
use nvme::status::Status;
use nvme::target::Port;
use nvme::wire::fabrics::{ConnectField, DISCOVERY_NQN, property};
use nvme::wire::feature::{AsyncEvent, aec, fid};
use nvme::wire::log::{sectype, treq};
use nvme::wire::text::parse_nqn;

use crate::client::{AttachParams, Client, HOST};
use crate::discovery::{attach_discovery, entries, log};
use crate::reservations::{CONFLICT, racqa, register, run};
use crate::world::{BYTES, DISK, World};

const SECOND: &str = "nqn.2026-01.org.example:second";
const UNKNOWN_HOST: &str = "nqn.2026-01.org.example:stranger";
const OTHER_HOST: &str = "nqn.2026-01.org.example:other";
const HOME: &str = "nqn.2026-01.org.example:home";

fn key(byte: u8) -> Key {
    Key { hash: Some(Hash::Sha256), key: Secret::new(vec![byte; 32]) }
}

/// A host with the DH-HMAC-CHAP secret `key(1)`, a TLS key, or both, and these access rules.
fn host(chap: bool, tls: bool, rules: &[(Option<&str>, Access)]) -> Host {
    let rule = |(disk, access): &(Option<&str>, Access)| Rule {
        disk: disk.map(str::to_owned),
        access: *access,
    };
    let mut credentials = Vec::new();
    if tls {
        credentials.push(tls_psk(Secret::new(vec![1]), false));
    }
    if chap {
        credentials.extend([chap_host(key(1).emit(), false), chap_controller(key(2).emit())]);
    }
    Host {
        id: HOST.to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(7),
        credentials,
        rules: rules.iter().map(rule).collect(),
    }
}

const ALL: &[(Option<&str>, Access)] = &[(None, Access::Writable)];

fn credentials() -> Credentials {
    Credentials::new(key(1))
}

/// A world with keys required, and the host's credentials.
fn keyed(host: Host, credentials: Option<Credentials>) -> World {
    let mut world = World::new();
    world.publish(SECOND, |_| {});
    world.auth = Auth::Required;
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host)] });
    world.credentials = credentials.map(Arc::new);
    world
}

fn channel(key: u64, subsystem: &str) -> Option<Arc<Channel>> {
    Some(Arc::new(Channel {
        key: Some(KeyId::new(key)),
        certified: false,
        identity: format!(
            "NVMe1R01 {HOST} {subsystem} 66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM="
        ),
        cipher: "TLS_AES_128_GCM_SHA256".to_owned(),
        binding: [1; 32],
    }))
}

/// Tries to connect an Admin queue. Returns its index, or status and dword 0 of the refusal.
fn try_connect(world: &mut World, params: &AttachParams) -> Result<usize, (Status, u32)> {
    let conn = world.connect(params.options(Options::admin()), params.data(0xffff));
    world.run();
    world.connections[conn].refused.map_or(Ok(conn), Err)
}

fn refusals(world: &World) -> Vec<&'static str> {
    let reason = |event: &Event| match event {
        Event::Refused { reason, .. } => Some(*reason),
        _ => None,
    };
    world.events.iter().filter_map(reason).collect()
}

fn attached(world: &World) -> Vec<Option<KeyId>> {
    let proven = |event: &Event| match event {
        Event::Attached { proven, .. } => Some(*proven),
        _ => None,
    };
    world.events.iter().filter_map(proven).collect()
}

const ACCESS_DENIED: (Status, u32) =
    (Status::CONNECT_INVALID_HOST.dnr(), ConnectField::Hostnqn.dw0());

// ---- DH-HMAC-CHAP

#[test]
fn all_groups_hashes_and_directions_work() {
    let groups = Group::ALL.map(|group| (group, Hash::Sha256));
    let hashes = Hash::ALL.map(|hash| (Group::Ffdhe2048, hash));
    for (group, hash) in groups.into_iter().chain(hashes) {
        // The largest groups are slow: tests both directions of each only without I/O queues.
        let ways: &[bool] = if group > Group::Ffdhe2048 { &[true] } else { &[false, true] };
        for &both in ways {
            let rules =
                AuthConfig { groups: vec![group], hashes: vec![hash], ..AuthConfig::default() };
            let mut world = World::with_auth_config(|_| {}, rules);
            world.auth = Auth::Required;
            world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host(true, false, ALL))] });
            let controller = both.then(|| key(2));
            let groups = Group::ALL.to_vec();
            world.credentials = Some(Arc::new(Credentials { controller, groups, ..credentials() }));
            let (_, io) = world.attach_default();
            assert!(world.connections[io].connected.unwrap().authentication_required);
            assert_eq!(world.write(io, 3, &[9; 512]), Status::SUCCESS);
            assert_eq!(world.read(io, 3, 1), Ok(vec![9; 512]));
            assert_eq!(attached(&world), [Some(KeyId::new(7))], "{group:?} {hash:?} {both}");
            assert!(refusals(&world).is_empty());
        }
    }
}

/// X13: a wrong key on either side is refused and reported, on every queue.
#[test]
fn x13_wrong_key_is_refused() {
    let other = Credentials::new(key(3));
    let demanding = Credentials { controller: Some(key(9)), ..credentials() };
    for wrong in [other, demanding] {
        let mut world = keyed(host(true, false, ALL), Some(wrong));
        let notify_pending = try_connect(&mut world, &AttachParams::default());
        assert_eq!(notify_pending, Err((Status::AUTHENTICATION_REQUIRED.dnr(), 0)));
        assert_eq!(world.connections[0].target_end, Some(Reason::Refused));
        assert!(attached(&world).is_empty());
        assert_eq!(refusals(&world).len(), 1);
    }
}

/// A host name without its keys has the access of another registrant to a reserved disk.
#[test]
fn unproven_name_is_not_the_registrant_of_a_proven_one() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (_, io) = world.attach_default();
    assert_eq!(register(&mut world, io, 10), Status::SUCCESS);
    assert_eq!(run(&mut world, io, racqa(0, 1), (10, 0)), Status::SUCCESS);
    (world.auth, world.credentials) = (Auth::None, None);
    let (_, local) = world.attach_default();
    assert_eq!(world.write(local, 0, &[1; 512]), CONFLICT);
    assert_eq!(run(&mut world, local, racqa(0, 1), (10, 0)), CONFLICT);
    assert_eq!(world.write(io, 0, &[1; 512]), Status::SUCCESS);
}

/// X13: the NULL group is refused by default.
#[test]
fn x13_null_group_alone_is_refused() {
    let lazy = Credentials { groups: vec![Group::Null], ..credentials() };
    let mut world = keyed(host(true, false, ALL), Some(lazy));
    assert!(try_connect(&mut world, &AttachParams::default()).is_err());
    assert_eq!(refusals(&world), ["it offers no allowed Diffie-Hellman group"]);
}

/// X13: a host may authenticate again at any time, on every queue.
#[test]
fn x13_live_queue_can_reauthenticate() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (client, io) = world.attach_default();
    for conn in [client.admin, io] {
        assert!(world.connections[conn].host.reauthenticate(77));
        world.run();
        assert_eq!(world.status(conn, 77), Status::SUCCESS);
    }
    assert!(world.read(io, 0, 1).is_ok());
    world.advance(Duration::from_secs(60));
    assert!(world.read(io, 0, 1).is_ok());
    assert_eq!(attached(&world).len(), 1);
}

#[test]
fn failed_reauthentication_closes_the_queue() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (client, io) = world.attach_default();
    // The host got another key with the same identifier: the old one is invalid.
    let credentials = vec![chap_host(key(5).emit(), false)];
    let changed = Host { credentials, ..host(true, false, ALL) };
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(changed)] });
    assert!(world.connections[io].host.reauthenticate(77));
    world.run();
    assert_eq!(world.status(io, 77), Status::AUTHENTICATION_REQUIRED.dnr());
    assert_eq!(world.connections[io].target_end, Some(Reason::Refused));
    assert_eq!(world.connections[client.admin].target_end, None);
}

/// A host of another protocol cannot attach under its name there.
#[test]
fn host_with_another_in_band_scheme_is_refused() {
    let other = Credential { scheme: "other".to_owned(), ..chap_host(key(1).emit(), false) };
    let known = Host { credentials: vec![other], ..host(false, false, ALL) };
    let mut world = keyed(known, Some(credentials()));
    for subsystem in [DISK, DISCOVERY_NQN] {
        let params = AttachParams { subsystem, ..AttachParams::default() };
        assert_eq!(try_connect(&mut world, &params), Err(ACCESS_DENIED), "{subsystem}");
    }
    assert_eq!(refusals(&world), ["DH-HMAC-CHAP authentication was not completed"; 2]);
}

/// Before authentication a host gets nothing, not even CAP, and times out.
#[test]
fn unauthenticated_host_gets_nothing() {
    let mut world = keyed(host(true, false, ALL), None);
    let conn = try_connect(&mut world, &AttachParams::default()).unwrap();
    assert!(world.connections[conn].connected.unwrap().authentication_required);
    for sqe in [
        FabricsCommand::PropertyGet { attrib: PropertySize::Eight, offset: property::CAP }.emit(),
        FabricsCommand::PropertySet { attrib: PropertySize::Four, offset: property::CC, value: 1 }
            .emit(),
        FabricsCommand::Disconnect { recfmt: 0 }.emit(),
        AdminCommand::KeepAlive.emit(),
        AdminCommand::AsyncEventRequest.emit(),
        AdminCommand::set_features(fid::NUMBER_OF_QUEUES, 0).emit(),
    ] {
        assert_eq!(world.send_dataless(conn, sqe).status, Status::AUTHENTICATION_REQUIRED.dnr());
    }
    let page = world.page(conn, AdminCommand::identify(1, 0));
    assert_eq!(page, Err(Status::AUTHENTICATION_REQUIRED.dnr()));
    world.advance(Duration::from_secs(9));
    assert_eq!(world.connections[conn].target_end, None);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.connections[conn].target_end, Some(Reason::Timeout));
    assert!(attached(&world).is_empty());
}

/// With a wrong key, a host does not learn which subsystems exist.
#[test]
fn unauthenticated_host_learns_nothing() {
    let only_first = [(Some(DISK), Access::Writable)];
    for subsystem in [SECOND, "nqn.2026-01.org.example:none"] {
        let params = AttachParams { subsystem, ..AttachParams::default() };
        let mut world = keyed(host(true, false, &only_first), None);
        let conn = try_connect(&mut world, &params).unwrap();
        assert!(world.connections[conn].connected.unwrap().authentication_required);
        for controller in [None, Some(key(2))] {
            let own = Credentials { controller, ..credentials() };
            let mut world = keyed(host(true, false, &only_first), Some(own));
            let notify_pending = try_connect(&mut world, &params);
            world.advance(Duration::from_secs(1));
            assert_eq!(world.connections[0].target_end, Some(Reason::Refused));
            assert!(notify_pending.is_err() || notify_pending == Ok(0));
            assert!(attached(&world).is_empty());
            assert_eq!(refusals(&world).len(), 1);
        }
    }
}

/// An unauthenticated host takes no queue identifier, and does not keep the controller alive.
#[test]
fn unauthenticated_host_cannot_take_a_queue() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (admin, cntlid) = world.open_admin(&AttachParams::default());
    let mut controller = nvme::host::Controller::new(cntlid, 1);
    world.initialize(admin, &mut controller).unwrap();
    let own = world.credentials.take();
    let squatter = world.open_io(&AttachParams::default(), cntlid, 1, 8192);
    world.credentials = own;
    let io = world.open_io(&AttachParams::default(), cntlid, 1, 8192);
    assert!(world.read(io, 0, 1).is_ok());
    // The queue stays with the host after the other has disconnected; a second one is refused.
    world.cut(squatter);
    let conn = world.connect(Options::io(1, 16, 8192), AttachParams::default().data(cntlid));
    world.run();
    assert!(world.connections[conn].refused.is_some());
    assert!(world.read(io, 0, 1).is_ok());
    let sent_by_host =
        ["DH-HMAC-CHAP authentication was not completed", "the queue identifier is in use"];
    assert_eq!(refusals(&world), sent_by_host);
}

#[test]
fn authenticating_queue_waits_for_orphaned_writes() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (client, io) = world.attach_default();
    world.disk().held = true;
    let data = world.host_buffer(&[1; 512]);
    world.submit(io, crate::client::write(0, 1), Payload::Send(data), 1);
    world.run();
    world.cut(io);
    world.run();
    let data = AttachParams::default().data(client.cntlid);
    let again = world.connect(Options::io(1, 16, 8192), data);
    world.run();
    assert!(world.connections[again].connected.is_none(), "the old write is still in flight");
    world.disk().held = false;
    world.run();
    assert!(world.connections[again].connected.is_some(), "kept out for ever");
    assert!(world.read(again, 0, 1).is_ok());
}

/// Other hosts do not learn which controllers exist.
#[test]
fn foreign_controllers_are_not_disclosed() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (_, cntlid) = world.open_admin(&AttachParams::default());
    let second = AttachParams { subsystem: SECOND, ..AttachParams::default() };
    let mut other = AttachParams::default().data(cntlid);
    other.hostid = [4; 16];
    for data in [AttachParams::default().data(cntlid + 1), second.data(cntlid), other] {
        let conn = world.connect(Options::io(1, 16, 8192), data);
        world.run();
        let notify_pending = (Status::CONNECT_INVALID_PARAMETERS.dnr(), ConnectField::Cntlid.dw0());
        assert_eq!(world.connections[conn].refused, Some(notify_pending));
    }
}

/// A host that requires controller authentication refuses a controller without it.
#[test]
fn controller_must_authenticate_if_required() {
    let demanding = Credentials { controller: Some(key(2)), ..credentials() };
    let mut open = World::new();
    open.credentials = Some(Arc::new(demanding));
    assert!(try_connect(&mut open, &AttachParams::default()).is_err());
}

// ---- TLS

#[test]
fn host_with_tls_needs_nothing_else() {
    let mut world = keyed(host(false, true, ALL), None);
    world.channel = channel(7, DISK);
    let (_, io) = world.attach_default();
    assert_eq!(world.write(io, 0, &[1; 512]), Status::SUCCESS);
    assert_eq!(attached(&world), [None]);
}

/// X15: NQN without key, key of another host, another disk, unknown host: all get the same
/// response.
#[test]
fn x15_all_access_denials_look_alike() {
    let unknown_host = AttachParams { host: UNKNOWN_HOST, ..AttachParams::default() };
    let second = AttachParams { subsystem: SECOND, ..AttachParams::default() };
    let nothing =
        AttachParams { subsystem: "nqn.2026-01.org.example:none", ..AttachParams::default() };
    let discovery = AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() };
    let only_first: &[_] = &[(Some(DISK), Access::Writable)];
    let cases = [
        // Unknown host, with and without TLS.
        (&unknown_host, None, ALL),
        (&unknown_host, channel(7, DISK), ALL),
        // NQN without the key.
        (&AttachParams::default(), None, ALL),
        (&AttachParams::default(), channel(8, DISK), ALL),
        (&second, None, ALL),
        (&nothing, None, ALL),
        (&discovery, None, ALL),
        // A key for another subsystem.
        (&AttachParams::default(), channel(7, SECOND), ALL),
        (&AttachParams::default(), channel(7, DISCOVERY_NQN), ALL),
        (&discovery, channel(7, DISK), ALL),
        // The key, but no access to the disk.
        (&second, channel(7, SECOND), only_first),
        (&nothing, channel(7, nothing.subsystem), ALL),
    ];
    for (params, channel, rules) in cases {
        let mut world = keyed(host(false, true, rules), None);
        world.channel = channel;
        assert_eq!(try_connect(&mut world, params), Err(ACCESS_DENIED), "{params:?}");
        assert_eq!(
            world.connections[0].target_end,
            Some(Reason::Refused),
            "one question a connection"
        );
        assert_eq!(refusals(&world).len(), 1);
        assert!(
            matches!(world.events.last(), Some(Event::Refused { host, .. }) if host == params.host)
        );
    }
}

/// The well-known pairing key grants no access to disks.
#[test]
fn pairing_channel_grants_no_access() {
    let mut world = keyed(host(false, true, ALL), None);
    world.channel = channel(7, DISK).map(|one| {
        Arc::new(Channel { key: None, identity: "storagetm-pair-1".to_owned(), ..(*one).clone() })
    });
    assert_eq!(try_connect(&mut world, &AttachParams::default()), Err(ACCESS_DENIED));
}

#[test]
fn host_with_both_keys_needs_both() {
    let mut world = keyed(host(true, true, ALL), Some(credentials()));
    assert_eq!(try_connect(&mut world, &AttachParams::default()), Err(ACCESS_DENIED));
    world.channel = channel(7, DISK);
    let (_, io) = world.attach_default();
    assert!(world.connections[io].connected.unwrap().authentication_required);
    assert!(world.read(io, 0, 1).is_ok());
    assert_eq!(attached(&world), [Some(KeyId::new(7))]);
}

#[test]
fn queues_of_a_controller_share_the_channel() {
    let join = |world: &mut World, client: &Client| {
        let conn =
            world.connect(Options::io(1, 16, 8192), AttachParams::default().data(client.cntlid));
        world.run();
        world.connections[conn].refused
    };
    let mut world = keyed(host(false, true, ALL), None);
    world.channel = channel(7, DISK);
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    world.channel = None;
    assert_eq!(join(&mut world, &client), Some(ACCESS_DENIED));
    world.channel = channel(9, DISK);
    assert_eq!(join(&mut world, &client), Some(ACCESS_DENIED));
    // And the reverse.
    let mut open = World::new();
    let client = open.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    open.channel = channel(7, DISK);
    assert_eq!(join(&mut open, &client), Some(ACCESS_DENIED));
}

#[test]
fn authentication_generates_a_tls_psk() {
    let own = Credentials { concatenate: true, ..credentials() };
    let mut world = keyed(host(true, false, ALL), Some(own));
    let (admin, cntlid) = world.open_admin(&AttachParams::default());
    let ours = world.connections[admin].host.take_psks();
    let theirs = world.target.generated_psks(world.now);
    assert_eq!(theirs.iter().map(|(_, psk)| psk.clone()).collect::<Vec<_>>(), ours);
    assert!(theirs.iter().all(|(key, _)| *key == KeyId::new(7)));
    assert!(ours[0].identity.starts_with(&format!("NVMe1G01 {HOST} {DISK} ")));
    // Further queues must use TLS: without it there are no I/O queues.
    let mut controller = nvme::host::Controller::new(cntlid, 1);
    world.initialize(admin, &mut controller).unwrap();
    world.credentials = Some(Arc::new(credentials()));
    let conn = world.connect(Options::io(1, 16, 8192), AttachParams::default().data(cntlid));
    world.run();
    assert_eq!(world.connections[conn].refused, Some(ACCESS_DENIED));
    // With TLS no further authentication is required.
    world.credentials = None;
    world.channel = channel(7, DISK)
        .map(|one| Arc::new(Channel { identity: ours[0].identity.clone(), ..(*one).clone() }));
    let (_, io) = world.attach_default();
    assert!(world.read(io, 0, 1).is_ok());
    // The PSK expires.
    world.cut(admin);
    assert!(world.target.generated_psks(world.now + Duration::from_secs(7200)).is_empty());
}

// ---- policy changes

/// X16: a revoked host is disconnected on every queue, and cannot reconnect.
#[test]
fn x16_revoked_host_is_disconnected_at_once() {
    for (chap, channel) in [(true, None), (false, channel(7, DISK))] {
        let mut world = keyed(host(chap, !chap, ALL), chap.then(credentials));
        world.channel = channel;
        let (client, io) = world.attach_default();
        world.write(io, 0, &[1; 1024]);
        world.read(io, 0, 1).unwrap();
        world.catalogue.set_policy(Policy::default());
        world.notify(&Notice::StateChanged);
        assert_eq!(world.connections[client.admin].target_end, Some(Reason::Refused));
        assert!(world.connections[io].target_end.is_some());
        let gone = world.events.iter().find_map(|event| match event {
            Event::Detached { reason, read, written, .. } => Some((*reason, *read, *written)),
            _ => None,
        });
        assert_eq!(gone, Some((Reason::Refused, 512, 1024)));
        assert_eq!(refusals(&world), ["access denied to this host"]);
        assert_eq!(try_connect(&mut world, &AttachParams::default()), Err(ACCESS_DENIED));
    }
}

/// X16: also after a changed key, an additional key, or a changed rule.
#[test]
fn x16_changed_keys_or_rules_disconnect_the_host() {
    let changes: [fn(&mut Host); 3] = [
        |host| host.key = KeyId::new(8),
        |host| host.credentials.push(tls_psk(Secret::new(vec![1]), false)),
        |host| host.rules[0].disk = Some(SECOND.to_owned()),
    ];
    for change in changes {
        let mut world = keyed(host(true, false, ALL), Some(credentials()));
        let (client, io) = world.attach_default();
        let mut changed = host(true, false, ALL);
        change(&mut changed);
        world.catalogue.set_policy(Policy { hosts: vec![Arc::new(changed)] });
        world.notify(&Notice::StateChanged);
        assert_eq!(world.connections[client.admin].target_end, Some(Reason::Refused));
        assert!(world.connections[io].target_end.is_some());
    }
    // During authentication, too.
    let mut world = keyed(host(true, false, ALL), None);
    let conn = try_connect(&mut world, &AttachParams::default()).unwrap();
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host(false, true, ALL))] });
    world.notify(&Notice::StateChanged);
    assert_eq!(world.connections[conn].target_end, Some(Reason::Refused));
}

#[test]
fn reduced_access_takes_effect_at_once() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (client, io) = world.attach_default();
    let wanted =
        AdminCommand::set_features(fid::ASYNC_EVENT_CONFIGURATION, aec::NAMESPACE_ATTRIBUTE);
    assert_eq!(world.send_dataless(client.admin, wanted.emit()).status, Status::SUCCESS);
    world.submit(client.admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 5);
    let narrowed = host(true, false, &[(None, Access::ReadOnly)]);
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(narrowed)] });
    world.notify(&Notice::StateChanged);
    world.run();
    assert_eq!(world.write(io, 0, &[1; 512]), Status::NAMESPACE_WRITE_PROTECTED.dnr());
    assert!(world.read(io, 0, 1).is_ok());
    let notify_pending = world.completion(client.admin, 5).unwrap();
    assert_eq!(AsyncEvent::parse(notify_pending.result as u32), AsyncEvent::NAMESPACE_CHANGED);
}

/// X17: a read-only host reads. It cannot write, use another disk, or send other commands.
#[test]
fn x17_read_only_host_can_only_read() {
    let rules = [(Some(DISK), Access::ReadOnly)];
    let mut world = keyed(host(true, false, &rules), Some(credentials()));
    let (client, io) = world.attach_default();
    assert!(world.read(io, 0, 1).is_ok());
    assert_eq!(world.write(io, 0, &[1; 512]), Status::NAMESPACE_WRITE_PROTECTED.dnr());
    let (nsid, slba, nlb, fua) = (1, 0, 1, false);
    for deallocate in [false, true] {
        let zeroes = IoCommand::WriteZeroes { nsid, slba, nlb, fua, deallocate };
        assert_eq!(
            world.send_dataless(io, zeroes.emit()).status,
            Status::NAMESPACE_WRITE_PROTECTED.dnr()
        );
    }
    // Format, Security Send, Firmware Download, Sanitize, and a vendor specific command.
    for opcode in [0x80, 0x81, 0x11, 0x84, 0xc1] {
        let mut sqe = AdminCommand::KeepAlive.emit();
        (sqe.opcode, sqe.nsid) = (opcode, 1.into());
        assert_eq!(world.send_dataless(client.admin, sqe).status, Status::INVALID_OPCODE.dnr());
    }
    assert!(world.disk().changes().is_empty());
    let second = AttachParams { subsystem: SECOND, ..AttachParams::default() };
    assert!(try_connect(&mut world, &second).is_err());
    assert_eq!(refusals(&world), ["access denied to this host"]);
}

#[test]
fn removed_disk_does_not_disconnect_its_host() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    let (client, io) = world.attach_default();
    world.catalogue.withdraw(&DISK.into());
    world.notify(&Notice::StateChanged);
    world.run();
    assert_eq!(world.connections[client.admin].target_end, None);
    assert!(world.read(io, 0, 1).is_err());
    world.publish(DISK, |_| {});
    world.run();
    assert!(world.read(io, 0, 1).is_ok());
    assert_eq!(attached(&world), [Some(KeyId::new(7)); 2]);
}

// ---- discovery

#[test]
fn log_lists_accessible_disks_and_security() {
    let both = [DISCOVERY_NQN, DISK, SECOND];
    for (chap, tls, rules, names, how) in [
        (true, false, ALL, &both[..], (treq::NOT_SPECIFIED, sectype::NONE)),
        (false, true, ALL, &both[..], (treq::REQUIRED, sectype::TLS_1_3)),
        (
            true,
            true,
            &[(Some(DISK), Access::ReadOnly)],
            &both[..2],
            (treq::REQUIRED, sectype::TLS_1_3),
        ),
        (true, false, &[], &both[..1], (treq::NOT_SPECIFIED, sectype::NONE)),
    ] {
        let mut world = keyed(host(chap, tls, rules), chap.then(credentials));
        world.channel = if tls { channel(7, DISCOVERY_NQN) } else { None };
        let client = attach_discovery(&mut world);
        let bytes = log(&mut world, client.admin, 0, 1024 * (names.len() as u64 + 1));
        let found = entries(&bytes);
        let nqns: Vec<_> = found.iter().map(|entry| parse_nqn(&entry.subnqn).unwrap()).collect();
        assert_eq!(nqns, names);
        assert!(found.iter().all(|entry| (entry.treq & 3, entry.sectype) == how));
    }
    let mut open = World::new();
    let client = attach_discovery(&mut open);
    let found = entries(&log(&mut open, client.admin, 0, 3072));
    assert!(found.iter().all(|entry| (entry.treq & 3, entry.sectype) == (0, 0)));
}

#[test]
fn discovery_port_refuses_disks_with_keys() {
    let mut world = keyed(host(true, false, ALL), Some(credentials()));
    world.port = Port::Discovery { disks_at: 4420 };
    assert!(try_connect(&mut world, &AttachParams::default()).is_err());
    assert_eq!(refusals(&world), ["no such disk is exported here"]);
    attach_discovery(&mut world);
}

/// Detach reports the bytes read and written on all queues, without those of an earlier disk.
#[test]
fn detach_reports_the_bytes_transferred() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    for &io in &client.io {
        world.write(io, 0, &[1; 1536]);
        world.read(io, 0, 2).unwrap();
    }
    world.cut(client.io[0]);
    world.read(client.io[1], 0, (BYTES / 512).min(8) as u32).unwrap();
    world.cut(client.admin);
    let sent_by_host = world.events.iter().find_map(|event| match event {
        Event::Detached { read, written, .. } => Some((*read, *written)),
        _ => None,
    });
    assert_eq!(sent_by_host, Some((2 * 1024 + 8 * 512, 2 * 1536)));
}

/// A home directory is used by one host at a time, and is kept for one that was lost.
#[test]
fn home_is_busy_for_a_second_host() {
    let mut world = keyed(host(false, true, ALL), None);
    let home = world.publish(HOME, |export| {
        export.home = Some(export::Home { user: "alice".to_owned(), signing_key: Some([7; 32]) });
    });
    let hosts = [HOST, OTHER_HOST].map(|id| {
        Arc::new(Host { id: id.to_owned(), name: id.to_owned(), ..host(false, true, ALL) })
    });
    world.catalogue.set_policy(Policy { hosts: hosts.into() });
    let [first, second] = [HOST, OTHER_HOST].map(|host| AttachParams {
        subsystem: HOME,
        host,
        ..AttachParams::default()
    });
    let as_host = |world: &mut World, host: &str| {
        world.channel = channel(7, HOME).map(|one| {
            Arc::new(Channel { identity: one.identity.replace(HOST, host), ..(*one).clone() })
        });
    };
    let busy = Err((Status::CONNECT_CONTROLLER_BUSY, 0));
    as_host(&mut world, HOST);
    let client = world.attach(&first);
    assert_eq!(client.controller.identify().unwrap().signing_key(), Some([7; 32]));
    assert_eq!(world.write(client.io[0], 0, &[1; 512]), Status::SUCCESS);
    as_host(&mut world, OTHER_HOST);
    assert_eq!(try_connect(&mut world, &second), busy);
    for conn in [client.io[0], client.admin] {
        world.cut(conn);
    }
    world.run();
    assert_eq!(try_connect(&mut world, &second), busy, "the host was lost");
    as_host(&mut world, HOST);
    let client = world.attach(&first);
    world.cut(client.io[0]);
    let cc = crate::client::enabled().with_shn(nvme::wire::fabrics::Cc::SHN_NORMAL);
    assert_eq!(world.configure(client.admin, cc), Status::SUCCESS);
    world.cut(client.admin);
    world.run();
    as_host(&mut world, OTHER_HOST);
    assert_eq!(try_connect(&mut world, &second).map(drop), Ok(()), "it was detached");
    drop(home);
}
