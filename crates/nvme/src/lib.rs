//! NVMe/TCP as sans-I/O state machines, for both sides of a connection: bytes in; bytes, disk
//! requests and completions out. No sockets, threads or clocks.
//!
//! Implements the NVM Express Base Specification 2.0, the NVM Command Set Specification 1.0 and the
//! NVMe/TCP Transport Specification 1.0, with DH-HMAC-CHAP authentication and TLS PSKs.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | data structures of the specifications |
//! | [`tcp`] | PDUs: layout, parser, builder, protocol violations |
//! | [`command`] | typed commands, parsed from submission queue entries |
//! | [`status`] | status codes |
//! | [`auth`] | DH-HMAC-CHAP, and the derivation of TLS PSKs |
//! | [`target`] | controllers, as an [`export::Session`] for each connection |
//! | [`host`] | the host side of a connection, and controller initialization |
//! | [`nqn`] | NVMe Qualified Names |
//!
//! # Example
//!
//! A host connects to the discovery controller of a target. The loop stands for the network.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use export::{Auth, Catalogue, Peer, Pool, Segment, Session};
//! use nvme::host::{self, Options};
//! use nvme::target::{Port, Target};
//! use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, DISCOVERY_NQN};
//!
//! // The target, with a session for one connection of a listener without authentication.
//! let now = Instant::now();
//! let target = Target::new(Arc::new(Catalogue::default()));
//! let peer = Peer::unix(Auth::None);
//! let mut session = target.session(peer, Port::Any, Pool::new(1 << 20).open(), now);
//!
//! // The host, with the Admin queue of a dynamic controller.
//! let hostnqn = "nqn.2026-01.org.example:host";
//! let data = ConnectData::emit([1; 16], CNTLID_DYNAMIC, DISCOVERY_NQN, hostnqn)?;
//! let mut queue = host::Queue::new(Options::admin(), data);
//!
//! // ICReq, ICResp, Connect and its response. A session consumes whole elements of the stream;
//! // the rest is passed again with further bytes.
//! let (mut to_target, mut to_host) = (Vec::new(), Vec::new());
//! let append = |stream: &mut Vec<u8>, segment: Segment| stream.extend(segment.parts().concat());
//! let response = 'connected: loop {
//!     while let Some(step) = queue.poll() {
//!         match step {
//!             host::Step::Send(segment) => append(&mut to_target, segment),
//!             host::Step::Connected(response) => break 'connected response,
//!             step => return Err(format!("{step:?}").into()),
//!         }
//!     }
//!     let consumed = session.receive(now, &to_target);
//!     to_target.drain(..consumed);
//!     while let Some(step) = session.poll() {
//!         if let export::Step::Send(segment) = step {
//!             append(&mut to_host, segment);
//!         }
//!     }
//!     let consumed = queue.receive(&to_host);
//!     to_host.drain(..consumed);
//! };
//! assert!(!response.authentication_required && session.is_established());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod auth;
pub mod command;
pub mod host;
pub mod nqn;
pub mod status;
pub mod target;
pub mod tcp;
pub mod wire;

/// TCP port of NVM subsystems and their discovery controllers (IANA: nvme).
pub const PORT: u16 = 4420;

/// TCP port of dedicated discovery controllers (IANA: nvme-disc).
pub const DISCOVERY_PORT: u16 = 8009;
