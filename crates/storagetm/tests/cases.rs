//! Cases of the threat model, tested from outside: the program as a process, and peers on a network
//! namespace of their own. Each test has the number of its case in its name. What unit tests of a
//! crate cover is not repeated here.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "cases/alone.rs"]
mod alone;
#[path = "cases/disclosure.rs"]
mod disclosure;
#[path = "cases/flood.rs"]
mod flood;
#[path = "cases/full.rs"]
mod full;
#[path = "cases/host.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod host;
#[path = "cases/known.rs"]
mod known;
#[path = "cases/loopback.rs"]
mod loopback;
#[path = "cases/memory.rs"]
mod memory;
#[path = "cases/nbd.rs"]
mod nbd;
#[path = "serve/nbd_client.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod nbd_client;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "cases/refusal.rs"]
mod refusal;
#[path = "cases/reopen.rs"]
mod reopen;
#[path = "cases/reservations.rs"]
mod reservations;
#[path = "cases/revocation.rs"]
mod revocation;
#[path = "cases/scene.rs"]
mod scene;
#[path = "cases/secrets.rs"]
mod secrets;
#[path = "disks/small.rs"]
mod small;
#[path = "cases/tap.rs"]
mod tap;
#[path = "cases/web.rs"]
mod web;
