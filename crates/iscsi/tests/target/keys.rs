//! Authentication by CHAP.

use std::sync::Arc;

use export::{Access, Auth, Credential, Home, Host, KeyId, Notice, Policy, Reason, Rule, Secret};
use iscsi::chap::Algorithm;
use iscsi::credential::{chap_initiator, chap_target};
use iscsi::wire::bhs::{FINAL, LogoutRequest, WRITE, of_target};
use iscsi::wire::login::{TRANSIT, stages};
use iscsi::wire::opcode::{self, IMMEDIATE};
use iscsi::wire::text;

use crate::initiator::{Initiator, NAME, Pdu, SHORT, status, text_of, write_10};
use crate::world::{DISK, TARGET, World, disk, peer};

const SECRET: &[u8] = b"secretsecret";
const OTHER: &[u8] = b"anothersecret";

/// Flags of a request from stage 0 to 1 that transits.
const SECURITY: u8 = TRANSIT | 1;

fn host(credentials: Vec<Credential>) -> Host {
    Host {
        id: NAME.to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(7),
        credentials,
        rules: vec![Rule { disk: None, access: Access::Writable }],
    }
}

fn secret(bytes: &[u8]) -> Secret {
    Secret::new(bytes.to_vec())
}

/// Creates a target whose listener requires keys, with a host with these credentials.
fn keyed(credentials: Vec<Credential>) -> World {
    let world = World::new();
    world.catalogue.set_policy(Policy { hosts: vec![Arc::new(host(credentials))] });
    world
}

fn one_way(md5: bool) -> World {
    keyed(vec![chap_initiator(secret(SECRET), md5)])
}

fn mutual() -> World {
    keyed(vec![chap_initiator(secret(SECRET), false), chap_target(secret(OTHER))])
}

/// How an initiator authenticates.
#[derive(Clone)]
struct Attempt {
    initiator: &'static str,
    name: &'static str,
    algorithms: &'static str,
    secret: &'static [u8],
    /// The challenge for mutual authentication; `None` inside repeats that of the target.
    challenge: Option<Option<Vec<u8>>>,
}

impl Default for Attempt {
    fn default() -> Self {
        let (initiator, name, algorithms) = (NAME, NAME, "7,8,6,5");
        Self { initiator, name, algorithms, secret: SECRET, challenge: None }
    }
}

fn ask(world: &mut World, initiator: &Initiator, keys: &[(&str, &str)]) -> Pdu {
    world.send(initiator.id, &initiator.login_bytes(SECURITY, &text_of(keys)));
    initiator.received(world).remove(0)
}

impl Attempt {
    /// Opens a connection and authenticates. Returns the last response of the security stage.
    fn run(&self, world: &mut World) -> (Initiator, Pdu) {
        let id = world.open_as(peer(Auth::Required));
        let initiator = Initiator::new(id);
        let names = [
            ("InitiatorName", self.initiator),
            ("TargetName", TARGET),
            ("SessionType", "Normal"),
            ("AuthMethod", "CHAP,None"),
        ];
        let response = ask(world, &initiator, &names);
        assert_eq!(response.value("AuthMethod"), Some("CHAP"));
        assert_eq!(stages(response.header.flags).1, 0, "no transit");
        let response = ask(world, &initiator, &[("CHAP_A", self.algorithms)]);
        if response.login_status() != 0 {
            return (initiator, response);
        }
        let number: u32 = response.value("CHAP_A").unwrap().parse().unwrap();
        let algorithm = Algorithm::ALL.into_iter().find(|it| it.number() == number).unwrap();
        let id = response.value("CHAP_I").unwrap().parse().unwrap();
        let challenge = text::binary(response.value("CHAP_C").unwrap()).unwrap();
        assert!(challenge.len() >= 16);
        let answer = algorithm.response(id, &secret(self.secret), &challenge);
        let answer = text::to_hex(answer.bytes());
        let mut keys = vec![("CHAP_N", self.name), ("CHAP_R", &answer)];
        let own = self.challenge.clone().map(|own| own.unwrap_or(challenge));
        let own_text = own.as_ref().map(|own| text::to_hex(own));
        if let Some(text) = &own_text {
            keys.extend([("CHAP_I", "9"), ("CHAP_C", text.as_str())]);
        }
        let response = ask(world, &initiator, &keys);
        if let (Some(own), 0) = (own, response.login_status()) {
            let expected = algorithm.response(9, &secret(OTHER), &own);
            assert_eq!(response.value("CHAP_N"), Some(TARGET));
            assert_eq!(response.value("CHAP_R"), Some(text::to_hex(expected.bytes()).as_str()));
        }
        (initiator, response)
    }

    /// Returns the status of the login.
    #[track_caller]
    fn status(&self, world: &mut World) -> u16 {
        let (initiator, response) = self.run(world);
        let status = response.login_status();
        if status != 0 {
            assert_eq!(world.conn(initiator.id).closed, Some(Reason::Refused));
            assert_eq!(world.conn(initiator.id).reported(), [format!("refused {TARGET}")]);
        }
        status
    }
}

#[test]
fn initiator_with_its_secret_attaches() {
    for algorithms in ["7", "8", "6", "5,6", "8,7,6,5"] {
        let mut world = one_way(false);
        let attempt = Attempt { algorithms, ..Attempt::default() };
        let (mut initiator, response) = attempt.run(&mut world);
        assert_eq!((response.login_status(), response.header.flags), (0, SECURITY));
        assert_eq!(initiator.login(&mut world, &SHORT[3..]).login_status(), 0);
        initiator.ready(&mut world);
        assert_eq!(status(&initiator.read(&mut world, 0, 1)), 0);
        world.end_all();
    }
}

#[test]
fn chap_name_may_be_the_display_name() {
    for (name, expected) in [(NAME, 0), ("laptop", 0), ("tower", 0x0201), ("", 0x0201)] {
        let attempt = Attempt { name, ..Attempt::default() };
        assert_eq!(attempt.status(&mut one_way(false)), expected, "{name}");
    }
}

#[test]
fn mutual_authentication_proves_the_target() {
    for len in [1, 16, 1024] {
        let challenge = Some(Some(vec![3; len]));
        let attempt = Attempt { challenge, ..Attempt::default() };
        assert_eq!(attempt.status(&mut mutual()), 0, "{len}");
    }
    // Without a secret of the target there is no answer.
    let attempt = Attempt { challenge: Some(Some(vec![3; 16])), ..Attempt::default() };
    assert_eq!(attempt.status(&mut one_way(false)), 0x0201);
}

/// Case X14: reflection, one secret for both directions, MD5.
#[test]
fn x14_reflected_and_weak_authentication_is_refused() {
    let reflected = Attempt { challenge: Some(None), ..Attempt::default() };
    assert_eq!(reflected.status(&mut mutual()), 0x0201);
    for len in [0, 1025] {
        let attempt = Attempt { challenge: Some(Some(vec![3; len])), ..Attempt::default() };
        let mut world = mutual();
        let (initiator, response) = attempt.run(&mut world);
        assert_ne!(response.login_status(), 0, "{len}");
        assert!(!world.conn(initiator.id).is_open());
    }
    let same = vec![chap_initiator(secret(SECRET), false), chap_target(secret(SECRET))];
    let attempt = Attempt { challenge: Some(Some(vec![3; 16])), ..Attempt::default() };
    assert_eq!(attempt.status(&mut keyed(same)), 0x0201);
    let same = vec![chap_initiator(secret(SECRET), false), chap_target(secret(SECRET))];
    assert_eq!(Attempt::default().status(&mut keyed(same)), 0x0201, "one-way, too");
    let weak = Attempt { algorithms: "5", ..Attempt::default() };
    assert_eq!(weak.status(&mut one_way(false)), 0x0201);
    assert_eq!(weak.status(&mut one_way(true)), 0);
}

/// Case X05: an unknown name and a wrong secret look alike.
#[test]
fn x05_unknown_name_and_wrong_secret_look_alike() {
    let answers = |attempt: Attempt| {
        let mut world = one_way(false);
        let (initiator, response) = attempt.run(&mut world);
        (response.header.flags, response.login_status(), world.conn(initiator.id).closed)
    };
    let wrong = answers(Attempt { secret: b"wrongwrongwrong", ..Attempt::default() });
    let unknown = answers(Attempt {
        initiator: "iqn.2026-01.org.example:stranger",
        name: "iqn.2026-01.org.example:stranger",
        ..Attempt::default()
    });
    assert_eq!(wrong, unknown);
    assert_eq!(wrong.1, 0x0201);
}

/// Case X05: where a host may use MD5, an unknown name that offers nothing else is challenged as it.
#[test]
fn x05_unknown_name_is_challenged_by_md5_as_a_host() {
    for name in [NAME, "iqn.2026-01.org.example:stranger"] {
        let mut world = one_way(true);
        let initiator = Initiator::new(world.open_as(peer(Auth::Required)));
        let names = [("InitiatorName", name), ("TargetName", TARGET), ("AuthMethod", "CHAP")];
        ask(&mut world, &initiator, &names);
        let response = ask(&mut world, &initiator, &[("CHAP_A", "5")]);
        assert_eq!((response.login_status(), response.value("CHAP_A")), (0, Some("5")), "{name}");
        world.end_all();
    }
}

/// Case X05: where only another host may use MD5, a known name is challenged as an unknown one, and its
/// secret does not let it in by MD5.
#[test]
fn x05_known_name_without_md5_is_challenged_as_an_unknown_one() {
    const WINDOWS: &str = "iqn.1991-05.com.microsoft:laptop";
    let policy = || {
        let weak = Host {
            id: WINDOWS.to_owned(),
            key: KeyId::new(8),
            ..host(vec![chap_initiator(secret(OTHER), true)])
        };
        let strong = host(vec![chap_initiator(secret(SECRET), false), chap_target(secret(OTHER))]);
        Policy { hosts: vec![Arc::new(strong), Arc::new(weak)] }
    };
    for name in [NAME, WINDOWS, "iqn.2026-01.org.example:stranger"] {
        let mut world = World::new();
        world.catalogue.set_policy(policy());
        let initiator = Initiator::new(world.open_as(peer(Auth::Required)));
        let names = [("InitiatorName", name), ("TargetName", TARGET), ("AuthMethod", "CHAP")];
        ask(&mut world, &initiator, &names);
        let response = ask(&mut world, &initiator, &[("CHAP_A", "5")]);
        assert_eq!((response.login_status(), response.value("CHAP_A")), (0, Some("5")), "{name}");
        world.end_all();
    }
    let answers = |initiator: &'static str, secret: &'static [u8], algorithms: &'static str| {
        let mut world = World::new();
        world.catalogue.set_policy(policy());
        let challenge = Some(Some(vec![3; 16]));
        let attempt = Attempt { initiator, name: initiator, algorithms, secret, challenge };
        let (initiator, response) = attempt.run(&mut world);
        let closed = world.conn(initiator.id).closed;
        (response.login_status(), response.value("CHAP_A").map(str::to_owned), closed)
    };
    let unknown = answers("iqn.2026-01.org.example:stranger", SECRET, "5");
    assert_eq!((unknown.0, &unknown.1), (0x0201, &None), "it fails at its end, after a challenge");
    assert_eq!(answers(NAME, SECRET, "5"), unknown);
    assert_eq!(answers(NAME, OTHER, "5"), unknown);
    assert_eq!(answers(NAME, SECRET, "5,7").0, 0);
    let one_way = Attempt {
        initiator: WINDOWS,
        name: WINDOWS,
        algorithms: "5",
        secret: OTHER,
        ..Attempt::default()
    };
    let mut world = World::new();
    world.catalogue.set_policy(policy());
    assert_eq!(one_way.status(&mut world), 0);
}

/// Case X15: another host's name without its key, also where the security stage is skipped.
#[test]
fn x15_login_without_chap_is_refused() {
    for (flags, method) in [
        (SECURITY, Some("None")),
        (SECURITY, None),
        (TRANSIT | 3, None),
        (TRANSIT | 1 << 2 | 3, None),
    ] {
        for names in [SHORT, &[("InitiatorName", NAME), ("SessionType", "Discovery")]] {
            let mut world = one_way(false);
            let id = world.open_as(peer(Auth::Required));
            let initiator = Initiator::new(id);
            let mut keys = names.to_vec();
            keys.extend(method.map(|method| ("AuthMethod", method)));
            world.send(id, &initiator.login_bytes(flags, &text_of(&keys)));
            let pdus = initiator.received(&mut world);
            assert_eq!(pdus.last().unwrap().login_status(), 0x0201, "{flags:x} {method:?}");
            assert!(!world.conn(id).is_established());
            world.end_all();
        }
    }
}

#[test]
fn chap_messages_out_of_order_are_refused() {
    let names = [("InitiatorName", NAME), ("TargetName", TARGET), ("AuthMethod", "CHAP")];
    for second in [
        &[("CHAP_N", NAME), ("CHAP_R", "0x00")][..],
        &[("CHAP_A", "7"), ("CHAP_A", "7")],
        &[("CHAP_A", "7"), ("CHAP_I", "256")],
        &[("CHAP_A", "7"), ("CHAP_R", "xyz")],
    ] {
        let mut world = one_way(false);
        let id = world.open_as(peer(Auth::Required));
        let initiator = Initiator::new(id);
        assert_eq!(ask(&mut world, &initiator, &names).login_status(), 0);
        let response = ask(&mut world, &initiator, second);
        let transits = response.header.flags & TRANSIT != 0;
        assert!(response.login_status() != 0 || !transits, "{second:?}");
        world.end_all();
    }
}

/// Case X16: a host is revoked.
#[test]
fn x16_revoked_host_is_disconnected() {
    let mut world = one_way(false);
    let (mut initiator, _) = Attempt::default().run(&mut world);
    assert_eq!(initiator.login(&mut world, &SHORT[3..]).login_status(), 0);
    world.catalogue.set_policy(Policy::default());
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(initiator.id).closed, Some(Reason::Refused));
    world.end_all();
}

#[test]
fn authentication_is_optional_without_keys() {
    let mut world = mutual();
    let id = world.open();
    let initiator = Initiator::new(id);
    let names = [("InitiatorName", NAME), ("TargetName", TARGET), ("AuthMethod", "CHAP,None")];
    assert_eq!(ask(&mut world, &initiator, &names).value("AuthMethod"), Some("None"));
    // An initiator that insists authenticates.
    let id = world.open();
    let initiator = Initiator::new(id);
    let names = [("InitiatorName", NAME), ("TargetName", TARGET), ("AuthMethod", "CHAP")];
    assert_eq!(ask(&mut world, &initiator, &names).value("AuthMethod"), Some("CHAP"));
    world.end_all();
}

/// A session at a listener without keys has the name of a host, and not its keys.
#[test]
fn unproven_name_does_not_replace_a_proven_session() {
    let mut world = one_way(false);
    let (mut initiator, _) = Attempt::default().run(&mut world);
    assert_eq!(initiator.login(&mut world, &SHORT[3..]).login_status(), 0);
    initiator.ready(&mut world);
    let local = Initiator::attached(&mut world);
    assert!(world.conn(initiator.id).is_open() && world.conn(local.id).is_open());
    assert_eq!(status(&initiator.command(&mut world, [0; 16], 0, 0, &[])), 0);
    world.end_all();
}

/// A name without its keys has the access of another registrant to a reserved disk.
#[test]
fn unproven_name_is_not_the_registrant_of_a_proven_one() {
    let mut world = one_way(false);
    let (mut initiator, _) = Attempt::default().run(&mut world);
    assert_eq!(initiator.login(&mut world, &SHORT[3..]).login_status(), 0);
    initiator.ready(&mut world);
    // REGISTER with key 1, then RESERVE as write exclusive.
    for (action, kind, byte) in [(0, 0, 15), (1, 1, 7)] {
        let (mut cdb, mut list) = ([0; 16], [0; 24]);
        (cdb[0], cdb[1], cdb[2], cdb[8], list[byte]) = (0x5f, action, kind, 24, 1);
        assert_eq!(status(&initiator.command(&mut world, cdb, WRITE, 24, &list)), 0, "{action}");
    }
    let mut local = Initiator::attached(&mut world);
    let write = |of: &mut Initiator, world: &mut World| {
        status(&of.command(world, write_10(0, 1), WRITE, 512, &[1; 512]))
    };
    assert_eq!((write(&mut initiator, &mut world), write(&mut local, &mut world)), (0, 0x18));
    world.end_all();
}

/// The status of a login to a target that is unavailable (RFC 7143 §11.13.5).
const UNAVAILABLE: u16 = 0x0301;

const DESK: &str = "iqn.2026-01.org.example:desk";

/// A target with a home, for two hosts.
fn world_with_a_home() -> World {
    let world = one_way(false);
    let mut home = Arc::into_inner(disk(DISK, Access::Writable, 512, 1 << 20)).unwrap();
    home.home = Some(Home { user: "alice".to_owned(), signing_key: None });
    world.catalogue.publish(Arc::new(home));
    let credentials = || vec![chap_initiator(secret(SECRET), false)];
    let desk = Host { id: DESK.to_owned(), key: KeyId::new(8), ..host(credentials()) };
    let hosts = vec![Arc::new(host(credentials())), Arc::new(desk)];
    world.catalogue.set_policy(Policy { hosts });
    world
}

/// Logs in. Returns the session, or the status of the refusal.
fn attach(world: &mut World, name: &'static str) -> Result<Initiator, u16> {
    let attempt = Attempt { initiator: name, name, ..Attempt::default() };
    let (mut initiator, response) = attempt.run(world);
    assert_eq!(response.login_status(), 0);
    match initiator.login(world, &SHORT[3..]).login_status() {
        0 => initiator.ready(world),
        refused => return Err(refused),
    }
    Ok(initiator)
}

fn write(world: &mut World, initiator: &mut Initiator) {
    assert_eq!(status(&initiator.command(world, write_10(0, 1), WRITE, 512, &[7; 512])), 0);
}

fn log_out(world: &mut World, initiator: &Initiator) {
    let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST | IMMEDIATE));
    (logout.itt, logout.cmd_sn) = (9.into(), initiator.cmd_sn.into());
    logout.flags = FINAL | opcode::logout::CLOSE_SESSION;
    world.send(initiator.id, &initiator.pdu(&logout, &[]));
    assert_eq!(initiator.received(world)[0].opcode(), opcode::LOGOUT_RESPONSE);
}

#[test]
fn home_is_free_once_its_initiator_has_logged_out() {
    let mut world = world_with_a_home();
    let mut laptop = attach(&mut world, NAME).unwrap();
    assert_eq!(attach(&mut world, DESK).unwrap_err(), UNAVAILABLE);
    write(&mut world, &mut laptop);
    log_out(&mut world, &laptop);
    attach(&mut world, DESK).unwrap();
    assert_eq!(attach(&mut world, NAME).unwrap_err(), UNAVAILABLE);
}

#[test]
fn home_is_kept_for_an_initiator_that_was_lost() {
    let mut world = world_with_a_home();
    let mut laptop = attach(&mut world, NAME).unwrap();
    write(&mut world, &mut laptop);
    world.disconnect(laptop.id);
    assert_eq!(attach(&mut world, DESK).unwrap_err(), UNAVAILABLE);
    // It comes back with the same ISID, and once more before the loss is noticed.
    let mut back = attach(&mut world, NAME).unwrap();
    write(&mut world, &mut back);
    let again = attach(&mut world, NAME).unwrap();
    assert!(!world.conn(back.id).is_open());
    log_out(&mut world, &again);
    attach(&mut world, DESK).unwrap();
}
