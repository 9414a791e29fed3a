//! Cases of the threat model, from without: the program as it is started, and peers on a real network that is theirs
//! alone. Each test has its case's number in its name. What is tested nearer to the code is not repeated here.

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
#[path = "cases/revocation.rs"]
mod revocation;
#[path = "cases/scene.rs"]
mod scene;
#[path = "cases/secrets.rs"]
mod secrets;
#[path = "cases/tap.rs"]
mod tap;
