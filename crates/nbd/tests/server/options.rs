//! Options: replies in each state, and access checks.

use export::{Access, Auth, Host, KeyId, Notice, Policy, Reason, Rule, Secret};
use nbd::credential::tls_psk;
use nbd::server::Start;
use nbd::wire::errno;
use nbd::wire::handshake::ExportReply;
use nbd::wire::meta::{BASE_ALLOCATION, Context, MetaRequest};
use nbd::wire::option::{self, InfoBlockSize, InfoExport, InfoRequest, OptionHeader, info};
use nbd::wire::request::flags;
use zerocopy::{FromBytes, IntoBytes};

use crate::messages::{HELLO, Mode, attach, flags, go, kinds, option, option_replies};
use crate::world::{DISK, Id, SIZE, World, certified, disk, named, peer};

/// Opens a connection in the option phase.
fn in_options(world: &mut World) -> Id {
    let id = world.open();
    assert_eq!(world.exchange(id, &flags()).len(), HELLO);
    id
}

fn only_type(received: &[u8]) -> u32 {
    let kinds = kinds(received);
    assert_eq!(kinds.len(), 1);
    kinds[0]
}

#[test]
fn unknown_client_flags_close() {
    let mut world = World::new();
    let id = world.open();
    assert_eq!(&world.received(id)[..], b"NBDMAGICIHAVEOPT\x00\x03");
    world.send(id, &[0, 0, 0, 4]);
    assert_eq!(world.conn(id).closed, Some(Reason::Violation));
    assert_eq!(world.conn(id).reported(), ["violation ClientFlagsUnknown"]);
}

#[test]
fn go_sends_size_flags_block_sizes_and_requested_info() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let request = InfoRequest::emit("sda", &[info::NAME, 77, info::DESCRIPTION]);
    let received = option_replies(&world.exchange(id, &option(option::GO, &request)));
    let infos: Vec<&[u8]> = received.iter().map(|(_, _, data)| &data[..]).collect();
    let offered = flags::HAS_FLAGS
        | flags::SEND_FLUSH
        | flags::SEND_FUA
        | flags::SEND_TRIM
        | flags::SEND_WRITE_ZEROES
        | flags::SEND_FAST_ZERO
        | flags::SEND_CACHE
        | flags::CAN_MULTI_CONN;
    assert_eq!(infos[0], InfoExport::new(SIZE as u64, offered).as_bytes());
    assert_eq!(infos[1], b"\0\x01sda");
    let description = b"\0\x02/dev/sda urn:uuid:07070707-0707-0707-0707-070707070707";
    assert_eq!(infos[2], description);
    assert_eq!(infos[3], InfoBlockSize::new(512, 4096, 32 << 20).as_bytes());
    assert_eq!((received[4].1, received.len()), (option::ACK, 5));
    assert_eq!(world.conn(id).reported(), ["attached "]);
}

#[test]
fn info_replies_like_go_and_negotiation_continues() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let request = InfoRequest::emit("", &[]);
    let info = option_replies(&world.exchange(id, &option(option::INFO, &request)));
    let go = option_replies(&world.exchange(id, &option(option::GO, &request)));
    let data = |replies: &[(u32, u32, Vec<u8>)]| -> Vec<Vec<u8>> {
        replies.iter().map(|(_, _, data)| data.clone()).collect()
    };
    assert_eq!(data(&info), data(&go));
}

#[test]
fn export_name_reply_has_zeroes_unless_omitted() {
    for (client, len) in [(3_u32, 10), (1, 134), (0, 134)] {
        let mut world = World::new();
        let id = world.open();
        world.received(id);
        world.send(id, &client.to_be_bytes());
        let received = world.exchange(id, &option(option::EXPORT_NAME, b"sda"));
        assert_eq!(received.len(), len);
        let (reply, zeroes) = ExportReply::read_from_prefix(&received).unwrap();
        assert_eq!(reply.size.get(), SIZE as u64);
        assert!(zeroes.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn read_only_export_advertises_no_writes() {
    let mut world = World::new();
    world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
    let id = in_options(&mut world);
    let received = option_replies(&world.exchange(id, &go("sda")));
    let export = InfoExport::read_from_bytes(&received[0].2).unwrap();
    let writes = flags::SEND_TRIM | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO;
    assert_eq!(export.flags.get() & (flags::READ_ONLY | writes), flags::READ_ONLY);
}

#[test]
fn exports_are_listed_and_abort_is_acknowledged() {
    let mut world = World::new();
    world.catalogue.publish(named("/srv/b.img", "nqn.b", Access::ReadOnly, 512, 4096));
    let id = in_options(&mut world);
    let received = option_replies(&world.exchange(id, &option(option::LIST, &[])));
    assert_eq!(received[0], (option::LIST, option::SERVER, b"\0\0\0\x03sda/dev/sda".to_vec()));
    assert_eq!(received[1], (option::LIST, option::SERVER, b"\0\0\0\x01b/srv/b.img".to_vec()));
    assert_eq!((received[2].1, received.len()), (option::ACK, 3));
    assert_eq!(only_type(&world.exchange(id, &option(option::ABORT, &[]))), option::ACK);
    assert_eq!(world.conn(id).closed, Some(Reason::Peer));
}

#[test]
fn empty_name_is_the_only_disk_or_unknown() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let request = option(option::INFO, &InfoRequest::emit("", &[]));
    assert_eq!(kinds(&world.exchange(id, &request)).last(), Some(&option::ACK));
    world.catalogue.publish(named("b", "nqn.b", Access::ReadOnly, 512, 4096));
    assert_eq!(only_type(&world.exchange(id, &request)), option::ERR_UNKNOWN);
}

#[test]
fn invalid_options_get_errors_and_do_not_close() {
    let mut world = World::new();
    let id = in_options(&mut world);
    for (request, data, answer) in [
        (option::LIST, &b"x"[..], option::ERR_INVALID),
        (option::STARTTLS, b"x", option::ERR_INVALID),
        (option::STRUCTURED_REPLY, b"x", option::ERR_INVALID),
        (option::EXTENDED_HEADERS, b"x", option::ERR_INVALID),
        (option::STARTTLS, b"", option::ERR_POLICY),
        (option::PEEK_EXPORT, b"sda", option::ERR_UNSUP),
        (0, b"", option::ERR_UNSUP),
        (0xffff_ffff, b"anything", option::ERR_UNSUP),
        (option::INFO, b"", option::ERR_INVALID),
        (option::GO, b"\0\0\0\x03sda", option::ERR_INVALID),
        (option::GO, b"\xff\xff\xff\xffsda\0\0", option::ERR_INVALID),
        (option::GO, b"\0\0\0\x03sda\0\x02\0\x01", option::ERR_INVALID),
        (option::SET_META_CONTEXT, b"\0\0\0\x03sda\0\0\0\0", option::ERR_INVALID),
    ] {
        assert_eq!(only_type(&world.exchange(id, &option(request, data))), answer, "{request}");
    }
    assert_eq!(kinds(&world.exchange(id, &go("sda"))).last(), Some(&option::ACK));
}

#[test]
fn extended_headers_supersede_structured_replies() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let (structured, extended) =
        (option(option::STRUCTURED_REPLY, &[]), option(option::EXTENDED_HEADERS, &[]));
    assert_eq!(only_type(&world.exchange(id, &structured)), option::ACK);
    assert_eq!(only_type(&world.exchange(id, &structured)), option::ERR_INVALID);
    assert_eq!(only_type(&world.exchange(id, &extended)), option::ACK);
    assert_eq!(only_type(&world.exchange(id, &extended)), option::ERR_INVALID);
    assert_eq!(only_type(&world.exchange(id, &structured)), option::ERR_EXT_HEADER_REQD);
    world.send(id, &option(option::EXPORT_NAME, b"sda"));
    assert_eq!(world.conn(id).closed, Some(Reason::Violation));
}

#[test]
fn contexts_are_listed_by_wildcard_and_set_by_name() {
    let mut world = World::new();
    let id = in_options(&mut world);
    world.exchange(id, &option(option::STRUCTURED_REPLY, &[]));
    let mut ask = |which: u32, name: &str, queries: &[&str]| {
        option_replies(&world.exchange(id, &option(which, &MetaRequest::emit(name, queries))))
    };
    let listed = (option::LIST_META_CONTEXT, option::SET_META_CONTEXT);
    for queries in [&[][..], &["base:"], &["x:y", BASE_ALLOCATION], &["base:", BASE_ALLOCATION]] {
        let received = ask(listed.0, "sda", queries);
        let context = Context::parse(&received[0].2).unwrap();
        assert_eq!((context.id, context.name, received.len()), (0, BASE_ALLOCATION, 2));
    }
    for queries in [&[][..], &["base:"], &["qemu:dirty-bitmap:x"], &["base:allocation "]] {
        assert_eq!(ask(listed.1, "sda", queries).len(), 1, "{queries:?}");
    }
    let received = ask(listed.1, "sda", &[BASE_ALLOCATION, BASE_ALLOCATION]);
    assert_eq!(Context::parse(&received[0].2).unwrap().id, 1);
    assert_eq!(received.len(), 2);
    assert_eq!(ask(listed.1, "sdb", &[BASE_ALLOCATION])[0].1, option::ERR_UNKNOWN);
}

/// Case X23.
#[test]
fn x23_names_of_any_length_are_refused_or_close() {
    for (len, answer) in [
        (256, option::ERR_UNKNOWN),
        (257, option::ERR_UNKNOWN),
        (4096, option::ERR_UNKNOWN),
        (4097, option::ERR_INVALID),
    ] {
        let mut world = World::new();
        let id = in_options(&mut world);
        let mut data = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        data.extend(vec![b'a'; len]);
        data.extend([0, 0]);
        assert_eq!(only_type(&world.exchange(id, &option(option::INFO, &data))), answer, "{len}");
        let by_name = option(option::EXPORT_NAME, &vec![b'a'; len]);
        world.send(id, &by_name);
        assert!(world.conn(id).closed.is_some() && world.received(id).is_empty());
    }
    let mut world = World::new();
    let id = in_options(&mut world);
    world.send(id, OptionHeader::new(option::GO, 1 << 31).as_bytes());
    assert_eq!(world.conn(id).closed, Some(Reason::Violation));
}

#[test]
fn too_long_option_is_skipped() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let long = option(option::GO, &vec![0; 100_000]);
    for part in long.chunks(7000) {
        world.send(id, part);
        assert_eq!(world.waiting(id), 0);
    }
    assert_eq!(only_type(&world.received(id)), option::ERR_TOO_BIG);
    assert_eq!(kinds(&world.exchange(id, &go("sda"))).last(), Some(&option::ACK));
}

/// Case X24.
#[test]
fn x24_endless_options_and_handshakes_close() {
    let mut world = World::new();
    let id = in_options(&mut world);
    let lists = option(option::LIST, &[]).repeat(500);
    (0..3).for_each(|_| world.send(id, &lists));
    assert_eq!(world.conn(id).reported().last().unwrap(), "violation OptionsTooMany");
    let slow = world.open();
    world.advance(std::time::Duration::from_secs(9));
    world.send(slow, &flags());
    assert_eq!(world.conn(slow).closed, None);
    world.advance(std::time::Duration::from_secs(1));
    assert_eq!(world.conn(slow).closed, Some(Reason::Timeout));
}

/// Case X40.
#[test]
fn x40_names_are_only_compared() {
    let mut world = World::new();
    let id = in_options(&mut world);
    for name in ["../sda", "/dev/sda", "sda/", ".", "SDA", "sdä", "sda\n"] {
        let request = option(option::INFO, &InfoRequest::emit(name, &[]));
        assert_eq!(only_type(&world.exchange(id, &request)), option::ERR_UNKNOWN, "{name}");
    }
    let nul = option(option::INFO, b"\0\0\0\x04sd\0a\0\0");
    assert_eq!(only_type(&world.exchange(id, &nul)), option::ERR_INVALID);
    let reported = world.conn(id).reported();
    assert_eq!(reported.len(), 4, "a client cannot flood the journal");
}

fn host(key: u64, rules: Vec<Rule>) -> Host {
    Host {
        id: "nqn.host".to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(key),
        credentials: vec![tls_psk(Secret::new(vec![1]))],
        rules,
    }
}

fn with_rules(access: Access, disk: &str) -> World {
    let world = World::new();
    world.catalogue.publish(named("/dev/sdb", "nqn.b", Access::Writable, 512, 4096));
    let rules = vec![Rule { disk: Some(disk.to_owned()), access }];
    world.catalogue.set_policy(Policy { hosts: vec![host(7, rules).into()] });
    world
}

/// Cases X01 and X17: a host sees only the exports that its rules allow.
#[test]
fn x17_host_is_identified_by_key_and_limited_by_rules() {
    let mut world = with_rules(Access::ReadOnly, DISK);
    let secured = Start::InTls { no_zeroes: true };
    let id = world.open_as(peer(Auth::Required, Some(7)), secured);
    assert_eq!(kinds(&world.exchange(id, &option(option::STARTTLS, &[]))), [option::ERR_INVALID]);
    let list = option_replies(&world.exchange(id, &option(option::LIST, &[])));
    assert_eq!((list.len(), &list[0].2[4..7]), (2, &b"sda"[..]));
    assert_eq!(only_type(&world.exchange(id, &go("sdb"))), option::ERR_UNKNOWN);
    let received = option_replies(&world.exchange(id, &go("")));
    let export = InfoExport::read_from_bytes(&received[0].2).unwrap();
    assert_ne!(export.flags.get() & flags::READ_ONLY, 0);
    assert_eq!(world.conn(id).reported(), ["refused sdb", "attached nqn.host"]);
}

#[test]
fn reported_name_is_short() {
    let mut world = World::new();
    let id = in_options(&mut world);
    world.exchange(id, &go(&"é".repeat(2048)));
    let reported = world.conn(id).reported();
    let wanted = reported[0].strip_prefix("refused ").unwrap();
    assert!((256..=export::MAX_TEXT).contains(&wanted.len()), "{}", wanted.len());
}

/// A certificate of the configured authority authenticates the host it names while that host is
/// configured.
#[test]
fn certificate_is_valid_while_its_host_is_configured() {
    let mut world = with_rules(Access::ReadOnly, DISK);
    let start = Start::InTls { no_zeroes: true };
    let unknown_host = world.open_as(certified("visitor"), start);
    assert_eq!(option_replies(&world.exchange(unknown_host, &option(option::LIST, &[]))).len(), 1);
    assert_eq!(only_type(&world.exchange(unknown_host, &go("sda"))), option::ERR_UNKNOWN);
    assert_eq!(world.conn(unknown_host).reported(), ["refused sda"]);
    let id = world.open_as(certified("laptop"), start);
    assert_eq!(option_replies(&world.exchange(id, &option(option::LIST, &[]))).len(), 2);
    let received = option_replies(&world.exchange(id, &go("sda")));
    let export = InfoExport::read_from_bytes(&received[0].2).unwrap();
    assert_ne!(export.flags.get() & flags::READ_ONLY, 0);
    world.catalogue.set_policy(Policy::default());
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
}

/// Case X01.
#[test]
fn x01_client_without_a_known_key_learns_nothing() {
    let mut world = with_rules(Access::Writable, DISK);
    for (key, list) in [(None, option::ERR_TLS_REQD), (Some(8), option::ACK)] {
        let start = Start::InTls { no_zeroes: false };
        let id = world.open_as(peer(Auth::Required, key), start);
        assert_eq!(only_type(&world.exchange(id, &option(option::LIST, &[]))), list);
        let refusal = if key.is_none() { option::ERR_TLS_REQD } else { option::ERR_UNKNOWN };
        let known = world.exchange(id, &go("sda"));
        assert_eq!(only_type(&known), refusal);
        let unknown = world.exchange(id, &go("sdx"));
        assert_eq!(known, unknown, "same reply whether it exists or not");
        world.send(id, &option(option::EXPORT_NAME, b"sda"));
        assert_eq!(world.conn(id).closed, Some(Reason::Refused));
        assert!(world.received(id).is_empty());
    }
}

#[test]
fn options_sent_together_are_answered_in_order() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Extended);
    assert!(world.conn(id).is_established());
}

/// A disk whose last block is incomplete is readable to its last byte.
#[test]
fn read_only_disk_of_odd_size_is_read_to_its_last_byte() {
    for mode in crate::messages::MODES {
        let mut world = World::new();
        let odd = 1_000_001;
        world.catalogue.publish(disk(Access::ReadOnly, 512, odd));
        let id = world.open();
        let request = option(option::INFO, &InfoRequest::emit("sda", &[]));
        let received =
            option_replies(&world.exchange(id, &[&flags()[..], &request].concat())[HELLO..]);
        let (export, rest) = InfoExport::read_from_prefix(&received[0].2).unwrap();
        assert_eq!((export.size.get(), rest.len()), (odd, 0));
        assert_eq!(received[1].2, InfoBlockSize::new(1, 4096, 32 << 20).as_bytes());
        let id = attach(&mut world, mode);
        for (offset, len) in [(odd - 1, 1), (odd - 65, 65), (odd - 577, 577), (999_000, 1001)] {
            let received = world.exchange(id, &crate::messages::read(1, offset, len).bytes(mode));
            let place = usize::try_from(offset).unwrap();
            let data = crate::messages::data_of(&received, offset, usize::try_from(len).unwrap());
            assert_eq!(data.unwrap(), world.disk[place..1_000_001]);
        }
        for (offset, len) in [(odd, 1), (odd - 1, 2), (999_936, 512), (0, 1_000_448)] {
            let received = world.exchange(id, &crate::messages::read(1, offset, len).bytes(mode));
            assert_eq!(crate::messages::error_of(&received), errno::EINVAL, "{offset} {len}");
        }
        world.end_all();
    }
}
