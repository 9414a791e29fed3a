//! Fuzz targets, one per module: each runs on arbitrary bytes and panics if an invariant is
//! violated. The ordinary tests replay the corpora with the same modules.
//!
//! With cargo-fuzz: `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir fuzz TARGET`. Without it, and
//! without sanitizers, in this directory: `RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module
//! -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
//! -Cllvm-args=-sanitizer-coverage-pc-table" cargo build --release --target
//! x86_64-unknown-linux-gnu`, then run the binary of the target with `-max_total_time=60
//! corpus/TARGET`. Fix a finding together with a named regression test, and add its input to the
//! corpus.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a broken promise ends the run")]

pub mod answers;
pub mod auth;
pub mod deframe;
pub mod files;
pub mod home;
pub mod host;
pub mod input;
pub mod iscsi;
pub mod iscsi_host;
pub mod nbd_client;
pub mod nbd_server;
pub mod pair;
pub mod qcow2;
pub mod scsi;
pub mod target;
pub mod unpack;
pub mod usage;
pub mod usb;
pub mod web;
pub mod wire;

#[path = "../../crates/nbd/tests/client/messages.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod nbd_client_messages;
#[path = "../../crates/nvme/tests/rules/raw_host.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod raw_host;
#[path = "../../crates/nvme/tests/rules/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod world;

#[path = "../../crates/nbd/tests/server/messages.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod nbd_messages;
#[path = "../../crates/nbd/tests/server/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod nbd_world;

#[path = "../../crates/iscsi/tests/target/initiator.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod iscsi_initiator;
#[path = "../../crates/iscsi/tests/target/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod iscsi_world;
#[path = "../../crates/iscsi/tests/pair/rogue.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod rogue;

#[path = "../../crates/scsi/tests/disk/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod scsi_world;

#[path = "../../crates/usb/tests/bulk_only/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod usb_world;

#[path = "../../crates/web/tests/server/world.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod web_world;
