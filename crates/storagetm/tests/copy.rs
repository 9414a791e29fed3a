//! `storagetm copy` as a process, with real files, pipes, disks and servers.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "copy/agent.rs"]
mod agent;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "cases/alone.rs"]
mod alone;
#[path = "copy/words.rs"]
mod args;
#[path = "copy/buckets.rs"]
mod buckets;
#[path = "copy/cable.rs"]
mod cable;
#[path = "copy/contents.rs"]
mod contents;
#[path = "copy/ends.rs"]
mod ends;
#[path = "copy/fits.rs"]
mod fits;
#[path = "copy/hostile.rs"]
mod hostile;
#[path = "copy/iscsi.rs"]
mod iscsi;
#[path = "copy/keyed.rs"]
mod keyed;
#[path = "copy/kills.rs"]
mod kills;
#[path = "copy/overwriting.rs"]
mod overwriting;
#[path = "copy/packed.rs"]
mod packed;
#[path = "copy/places.rs"]
mod places;
#[path = "copy/port.rs"]
mod port;
#[path = "copy/qcow2.rs"]
mod qcow2;
#[path = "copy/refusals.rs"]
mod refusals;
#[path = "copy/scene.rs"]
mod scene;
#[path = "copy/servers.rs"]
mod servers;
#[path = "copy/signed.rs"]
mod signed;
#[path = "copy/target.rs"]
mod target;
#[path = "copy/web.rs"]
mod web;
#[path = "copy/web_maps.rs"]
mod web_maps;
#[path = "copy/web_nodes.rs"]
mod web_nodes;
