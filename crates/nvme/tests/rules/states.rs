//! Case X25: a table of the results of each message in each state of a queue.

use export::{Access, Reason};
use nvme::auth::AuthConfig;
use nvme::command::{FabricsCommand, IoCommand};
use nvme::status::Status;
use nvme::tcp::pdu::kind;
use nvme::wire::Sqe;
use zerocopy::IntoBytes;

use crate::raw_host::{
    ENABLE, PLAIN, capsule, configure, connect_data, connect_sqe, frame, h2c, ic_req, read, write,
    write_in_capsule,
};
use crate::world::{Id, Reply, World, disk};

/// A queue state, and whether it allows disk access.
struct State {
    name: &'static str,
    may: bool,
    prepare: fn() -> (World, Id),
}

fn fresh() -> World {
    World::small(1 << 20)
}

/// Returns a queue of a controller after Property Set of CC.
fn configured(cc: u32, admin_queue: bool) -> (World, Id) {
    let mut world = fresh();
    let (admin, io) = world.attached();
    assert_eq!(world.status(admin, &configure(cc).with_cid(3)), Status::SUCCESS);
    (world, if admin_queue { admin } else { io })
}

const STATES: [State; 11] = [
    State { name: "opening", may: false, prepare: || prepared(World::open) },
    State {
        name: "connecting",
        may: false,
        prepare: || prepared(|world| world.initialized(PLAIN)),
    },
    State {
        name: "waiting for lost writes",
        may: false,
        prepare: || {
            let mut world = fresh();
            let (admin, io) = world.attached();
            world.conn(io).hold = true;
            world.send(io, &capsule(PLAIN, &write_in_capsule(5, 1), &[1; 512]));
            world.disconnect(admin);
            let id = world.initialized(PLAIN);
            let connect = capsule(PLAIN, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
            world.send(id, &connect);
            (world, id)
        },
    },
    State {
        name: "unproven",
        may: false,
        prepare: || {
            let mut world = World::with_keys(crate::auth::host(), AuthConfig::default());
            let id = world.initialized(PLAIN);
            world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
            (world, id)
        },
    },
    State {
        name: "admin, not enabled",
        may: false,
        prepare: || {
            prepared(|world| {
                let id = world.initialized(PLAIN);
                world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
                id
            })
        },
    },
    State { name: "admin", may: true, prepare: || prepared(|world| world.admin().0) },
    State { name: "admin, reset", may: false, prepare: || configured(0, true) },
    State { name: "admin, shut down", may: true, prepare: || configured(ENABLE | 1 << 14, true) },
    State { name: "I/O", may: true, prepare: || prepared(|world| world.attached().1) },
    State {
        name: "I/O, data to come",
        may: true,
        prepare: || {
            prepared(|world| {
                let io = world.attached().1;
                world.send(io, &capsule(PLAIN, &write(8, 1).with_cid(77), &[]));
                assert!(matches!(world.replies(io)[..], [Reply::R2t { .. }]));
                io
            })
        },
    },
    State { name: "I/O, shut down", may: false, prepare: || configured(ENABLE | 1 << 14, false) },
];

fn prepared(prepare: impl Fn(&mut World) -> Id) -> (World, Id) {
    let mut world = fresh();
    let id = prepare(&mut world);
    (world, id)
}

/// Sends a message. Returns its result.
fn outcome(world: &mut World, id: Id, message: &[u8]) -> String {
    world.received(id);
    world.send(id, message);
    let replies = world.replies(id);
    let closed = world.conn(id).closed;
    let word = |reply: &Reply| match reply {
        Reply::Accepted(_) => "accepted".to_owned(),
        Reply::Done(cqe) if cqe.outcome().is_success() => "done".to_owned(),
        Reply::Done(cqe) => format!("{:x}/{:02x}", cqe.outcome().sct(), cqe.outcome().sc()),
        Reply::Data { .. } => "data".to_owned(),
        Reply::R2t { .. } => "r2t".to_owned(),
        Reply::Terminated { fes, .. } => format!("term {fes}"),
    };
    let mut words: Vec<String> = replies.iter().map(word).collect();
    words.extend(closed.filter(|reason| *reason != Reason::Violation).map(|_| "end".to_owned()));
    if words.is_empty() { "nothing".to_owned() } else { words.join("+") }
}

/// Returns all types of PDUs, and three invalid ones.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let term = |kind| frame(PLAIN, kind, 0, &[0; 16], &[0; 8]);
    let keep_alive = Sqe { opcode: 0x18, ..nvme::command::AdminCommand::KeepAlive.emit() };
    let identify = nvme::command::AdminCommand::identify(1, 0).emit();
    let disconnect = FabricsCommand::Disconnect { recfmt: 0 }.emit();
    let auth = FabricsCommand::AuthReceive { secp: 0xe9, spsp: 1, al: 64 }.emit();
    let command = |sqe: &Sqe| capsule(PLAIN, &sqe.with_cid(9), &[]);
    vec![
        ("ICReq", ic_req(PLAIN)),
        ("ICResp", frame(PLAIN, kind::IC_RESP, 0, &[0; 120], &[])),
        ("H2CTermReq", term(kind::H2C_TERM_REQ)),
        ("C2HTermReq", term(kind::C2H_TERM_REQ)),
        (
            "Connect",
            capsule(PLAIN, &connect_sqe(0, 32).with_cid(9), connect_data(0xffff).as_bytes()),
        ),
        ("CC.EN", command(&configure(ENABLE))),
        ("auth", command(&auth)),
        ("Disconnect", command(&disconnect)),
        ("Keep Alive", command(&keep_alive)),
        ("Identify", command(&identify)),
        ("Read", command(&read(0, 1))),
        ("Write", capsule(PLAIN, &write_in_capsule(0, 1).with_cid(9), &[3; 512])),
        ("Flush", command(&IoCommand::Flush { nsid: 1 }.emit())),
        ("response", frame(PLAIN, kind::CAPSULE_RESP, 0, &[0; 16], &[])),
        ("data", h2c(PLAIN, 77, 0, 0, &[5; 512], true)),
        ("C2HData", frame(PLAIN, kind::C2H_DATA, 0, &[0; 16], &[0; 8])),
        ("R2T", frame(PLAIN, kind::R2T, 0, &[0; 16], &[])),
        ("08h", frame(PLAIN, 0x08, 0, &[0; 16], &[])),
        ("0Ah", frame(PLAIN, 0x0a, 0, &[0; 16], &[])),
        ("FFh", frame(PLAIN, 0xff, 0, &[0; 16], &[])),
    ]
}

/// A row for each message, a column for each of [`STATES`]: status code type and code, or FES.
const TABLE: &str = "
ICReq      accepted  term 2    term 2    term 2    term 2    term 2    term 2    term 2    term 2    term 2    term 2
ICResp     term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
H2CTermReq end       end       end       end       end       end       end       end       end       end       end
C2HTermReq term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
Connect    term 2    done      term 2    1/91      0/0c      0/0c      0/0c      0/0c      0/0c      0/0c      0/0c
CC.EN      term 2    0/0c      term 2    1/91      done      done      done      done      0/0c      0/0c      0/0c
auth       term 2    0/0c      term 2    0/02      0/01      0/01      0/01      0/01      0/0c      0/0c      0/0c
Disconnect term 2    0/0c      term 2    1/91      1/85      1/85      1/85      1/85      done+end  done+end  done+end
Keep Alive term 2    0/0c      term 2    1/91      done      done      done      done      0/01      0/01      0/0c
Identify   term 2    0/0c      term 2    1/91      0/0c      data+done 0/0c      0/0c      0/01      0/01      0/0c
Read       term 2    0/0c      term 2    1/91      0/0c      data+done 0/0c      0/0c      data+done data+done 0/0c
Write      term 2    0/0c      term 2    1/91      0/01      0/01      0/01      0/01      done      done      0/0c
Flush      term 2    0/0c      term 2    1/91      0/01      0/01      0/01      0/01      done      done      0/0c
response   term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
data       term 2    term 2    term 2    term 2    term 2    term 2    term 2    term 2    term 2    done      term 2
C2HData    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
R2T        term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
08h        term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
0Ah        term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
FFh        term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1    term 1
";

#[test]
fn x25_each_pdu_in_each_state_matches_the_table() {
    let mut table = String::from("\n");
    for (name, message) in messages() {
        let mut row = format!("{name:10}");
        for state in &STATES {
            let (mut world, id) = (state.prepare)();
            let before = world.conn(id).submitted;
            let outcome = outcome(&mut world, id, &message);
            row.push_str(&format!(" {outcome:9}"));
            let asked = world.conn(id).submitted != before;
            assert!(!asked || state.may, "{}: {name} reaches the disk", state.name);
            world.end_all();
        }
        table.push_str(row.trim_end());
        table.push('\n');
    }
    assert!(table == TABLE, "{table}");
}

/// Every opcode and Fabrics command type completes once; unknown ones never reach the disk.
#[test]
fn x25_every_opcode_in_every_state_completes_once() {
    for state in &STATES {
        for (opcode, fctype) in (0..=255).map(|op| (op, 0)).chain((0..=255).map(|f| (0x7f, f))) {
            let (mut world, id) = (state.prepare)();
            let mut sqe = Sqe { opcode, ..read(0, 1) }.with_cid(9);
            if opcode == 0x7f {
                sqe = Sqe { opcode, ..FabricsCommand::Disconnect { recfmt: 0 }.emit() }.with_cid(9);
                sqe.nsid.set(fctype);
            }
            let before = world.conn(id).submitted;
            let outcome = outcome(&mut world, id, &capsule(PLAIN, &sqe, &[]));
            let asked = world.conn(id).submitted != before;
            assert!(!asked || state.may, "{}: {opcode:02x} {fctype:02x}", state.name);
            // Asynchronous Event Request stays pending, and some commands wait for data.
            let known =
                ["nothing", "done", "done+end", "end", "data", "data+done", "r2t", "term 2"];
            let status = outcome.len() == 4 && outcome.as_bytes()[1] == b'/';
            let ends = outcome.ends_with("+end") && outcome.as_bytes().get(1) == Some(&b'/');
            assert!(
                status || ends || known.contains(&&outcome[..]),
                "{}: {opcode:02x} {fctype:02x}: {outcome}",
                state.name
            );
            world.end_all();
        }
    }
}

/// A read-only disk is never written.
#[test]
fn x25_no_message_in_any_state_writes_a_read_only_disk() {
    for state in &STATES {
        for (name, message) in messages() {
            let (mut world, id) = (state.prepare)();
            let bytes = world.disk.clone();
            world.publish_small(disk(Access::ReadOnly, 512));
            world.notify(export::Notice::StateChanged);
            world.send(id, &message);
            assert!(world.disk == bytes, "{}: {name}", state.name);
            world.end_all();
        }
    }
}
