//! Case X25: the result of each option and request in each phase of a connection, as a table.

use export::{Auth, Notice, Reason};
use nbd::server::Start;
use nbd::wire::meta::{BASE_ALLOCATION, MetaRequest};
use nbd::wire::option::{self, InfoRequest};
use nbd::wire::request;

use crate::messages::{
    HELLO, Mode, RequestHeader, attach, flags, go, kinds, option, read, replies, write,
};
use crate::world::{Id, World, peer};

/// A connection in a phase, the form of its messages, and whether requests may reach the disk.
struct State {
    mode: Option<Mode>,
    may_submit: bool,
    setup: fn() -> (World, Id),
}

fn small_world() -> World {
    World::small(1 << 20, 512)
}

fn in_transmission(mode: Mode) -> (World, Id) {
    let mut world = small_world();
    let id = attach(&mut world, mode);
    (world, id)
}

fn option_phase(auth: Auth, key: Option<u64>) -> (World, Id) {
    let mut world = small_world();
    let id = world.open_as(peer(auth, key), Start::Hello);
    world.send(id, &flags());
    (world, id)
}

/// Before the client flags; options, with TLS missing and not required; a choice delayed by lost
/// writes; transmission, in each form; inside the payload of a write; after DISC; during shutdown.
const STATES: [State; 10] = [
    State {
        mode: None,
        may_submit: false,
        setup: || {
            let mut world = small_world();
            let id = world.open();
            (world, id)
        },
    },
    State { mode: None, may_submit: false, setup: || option_phase(Auth::Required, None) },
    State { mode: None, may_submit: true, setup: || option_phase(Auth::None, None) },
    State {
        mode: None,
        may_submit: false,
        setup: || {
            let (mut world, old) = in_transmission(Mode::Simple);
            world.conn(old).hold = true;
            world.send(old, &write(Mode::Simple, 1, 0, &[1; 512]));
            world.disconnect(old);
            let id = world.open();
            world.send(id, &[&flags()[..], &go("sda")].concat());
            (world, id)
        },
    },
    State { mode: Some(Mode::Simple), may_submit: true, setup: || in_transmission(Mode::Simple) },
    State {
        mode: Some(Mode::Structured),
        may_submit: true,
        setup: || in_transmission(Mode::Structured),
    },
    State {
        mode: Some(Mode::Extended),
        may_submit: true,
        setup: || in_transmission(Mode::Extended),
    },
    State {
        mode: Some(Mode::Simple),
        may_submit: true,
        setup: || {
            let (mut world, id) = in_transmission(Mode::Simple);
            world.send(id, &write(Mode::Simple, 1, 0, &[1; 8192])[..100]);
            (world, id)
        },
    },
    State {
        mode: Some(Mode::Simple),
        may_submit: false,
        setup: || {
            let (mut world, id) = in_transmission(Mode::Simple);
            world.conn(id).hold = true;
            world.send(id, &read(1, 0, 512).bytes(Mode::Simple));
            world.send(id, &RequestHeader::new(request::DISC, 1, 0, 0).bytes(Mode::Simple));
            (world, id)
        },
    },
    State {
        mode: Some(Mode::Simple),
        may_submit: false,
        setup: || {
            let (mut world, id) = in_transmission(Mode::Simple);
            world.conn(id).hold = true;
            world.send(id, &read(1, 0, 512).bytes(Mode::Simple));
            world.notify(Notice::Stopping);
            (world, id)
        },
    },
];

/// The name of a message, and its encoding in each form.
type Message = (&'static str, Box<dyn Fn(Mode) -> Vec<u8>>);

fn messages() -> Vec<Message> {
    let request = InfoRequest::emit("sda", &[]);
    let contexts = MetaRequest::emit("sda", &[BASE_ALLOCATION]);
    let fixed = |name, bytes: Vec<u8>| -> Message { (name, Box::new(move |_| bytes.clone())) };
    let say = |name, command, len| -> Message {
        (name, Box::new(move |mode| RequestHeader::new(command, 9, 0, len).bytes(mode)))
    };
    vec![
        fixed("flags", flags().to_vec()),
        fixed("NAME", option(option::EXPORT_NAME, b"sda")),
        fixed("ABORT", option(option::ABORT, &[])),
        fixed("LIST", option(option::LIST, &[])),
        fixed("PEEK", option(option::PEEK_EXPORT, &[])),
        fixed("STARTTLS", option(option::STARTTLS, &[])),
        fixed("INFO", option(option::INFO, &request)),
        fixed("GO", option(option::GO, &request)),
        fixed("STRUCT", option(option::STRUCTURED_REPLY, &[])),
        fixed("LIST_META", option(option::LIST_META_CONTEXT, &contexts)),
        fixed("SET_META", option(option::SET_META_CONTEXT, &contexts)),
        fixed("EXTENDED", option(option::EXTENDED_HEADERS, &[])),
        fixed("option 12", option(12, &[])),
        fixed("option 0", option(0, &[])),
        say("READ", request::READ, 512),
        ("WRITE", Box::new(|mode| write(mode, 9, 0, &[7; 512]))),
        say("DISC", request::DISC, 0),
        say("FLUSH", request::FLUSH, 0),
        say("TRIM", request::TRIM, 512),
        say("CACHE", request::CACHE, 512),
        say("ZEROES", request::WRITE_ZEROES, 512),
        say("STATUS", request::BLOCK_STATUS, 512),
        say("resize", 8, 512),
        say("command 9", 9, 0),
        fixed("rubbish", b"GET / HTTP/1.1\r\nHost: storagetm\r\n\r\n".to_vec()),
    ]
}

/// Formats the result of a message: types of option replies or errors of replies, and why the
/// connection was closed.
fn outcome(world: &mut World, id: Id, state: &State, message: &[u8]) -> String {
    let greeter_after_hello = world.received(id).len() >= HELLO;
    assert!(greeter_after_hello || state.mode.is_some());
    world.send(id, message);
    let received = world.received(id);
    let mut results: Vec<String> = if state.mode.is_some() {
        // Only the simple reply to a read has data.
        let len = if received.len() > 512 { 512 } else { 0 };
        let done = replies(&received, |_| len).into_iter().filter(|reply| reply.done);
        done.map(|reply| reply.error.to_string()).collect()
    } else if received.is_empty() || received[..8] == option::REPLY_MAGIC.to_be_bytes() {
        let kind = |kind: u32| match kind & option::ERROR {
            0 => kind.to_string(),
            _ => format!("e{}", kind & !option::ERROR),
        };
        kinds(&received).into_iter().map(kind).collect()
    } else {
        vec!["size".to_owned()]
    };
    let end = |reason| match reason {
        Reason::Violation => "broke",
        Reason::Peer => "bye",
        Reason::Refused => "refused",
        _ => "end",
    };
    results.extend(world.conn(id).closed.map(|reason| end(reason).to_owned()));
    if results.is_empty() { "-".to_owned() } else { results.join("+") }
}

/// A row for each message, a column for each of [`STATES`].
const TABLE: &str = "
flags     -        -        -        -        broke    broke    broke    -        -        broke
NAME      broke    refused  size     -        broke    broke    broke    -        -        broke
ABORT     broke    1+bye    1+bye    -        broke    broke    broke    -        -        broke
LIST      broke    e5       2+1      -        broke    broke    broke    -        -        broke
PEEK      broke    e5       e1       -        broke    broke    broke    -        -        broke
STARTTLS  broke    e5       e2       -        broke    broke    broke    -        -        broke
INFO      broke    e5       3+3+1    -        broke    broke    broke    -        -        broke
GO        broke    e5       3+3+1    -        broke    broke    broke    -        -        broke
STRUCT    broke    e5       1        -        broke    broke    broke    -        -        broke
LIST_META broke    e5       e3       -        broke    broke    broke    -        -        broke
SET_META  broke    e5       e3       -        broke    broke    broke    -        -        broke
EXTENDED  broke    e5       1        -        broke    broke    broke    -        -        broke
option 12 broke    e5       e1       -        broke    broke    broke    -        -        broke
option 0  broke    e5       e1       -        broke    broke    broke    -        -        broke
READ      broke    broke    broke    -        0        0        0        -        -        108
WRITE     broke    broke    broke    -        0        0        0        -        -        108
DISC      broke    broke    broke    -        bye      bye      bye      -        -        -
FLUSH     broke    broke    broke    -        0        0        0        -        -        108
TRIM      broke    broke    broke    -        0        0        0        -        -        108
CACHE     broke    broke    broke    -        0        0        0        -        -        108
ZEROES    broke    broke    broke    -        0        0        0        -        -        108
STATUS    broke    broke    broke    -        22       0        0        -        -        22
resize    broke    broke    broke    -        22       22       22       -        -        22
command 9 broke    broke    broke    -        22       22       22       -        -        22
rubbish   broke    broke    broke    -        broke    broke    broke    -        -        broke
";

#[test]
fn x25_message_in_each_phase_has_the_tabulated_result() {
    let mut table = String::from("\n");
    for (name, message) in messages() {
        let mut row = format!("{name:9}");
        for (number, state) in STATES.iter().enumerate() {
            let (mut world, id) = (state.setup)();
            let before = world.conn(id).submitted;
            let mut message = message(state.mode.unwrap_or(Mode::Simple));
            if state.mode.is_some() {
                // Padded to a complete header.
                message.resize(message.len().max(32), 0);
            }
            let outcome = outcome(&mut world, id, state, &message);
            row.push_str(&format!(" {outcome:8}"));
            let request = world.conn(id).submitted != before;
            assert!(!request || state.may_submit, "{name} in {number} reaches the disk");
            world.end_all();
        }
        table.push_str(row.trim_end());
        table.push('\n');
    }
    assert!(table == TABLE, "{table}");
}
