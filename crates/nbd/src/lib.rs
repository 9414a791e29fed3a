//! The Network Block Device protocol (NBD) as sans-I/O state machines: [`server`] and [`client`].
//!
//! Both sides take received bytes and return steps: bytes to send, disk requests to execute,
//! results. Sockets, threads and time are the driver's. The server implements
//! [`export::Session`]; the client is polled the same way. [`wire`] has the structs and constants
//! of the protocol.
//!
//! Supported are the fixed newstyle negotiation, structured replies, extended headers,
//! `base:allocation`, and STARTTLS (the TLS channel itself is the driver's). Section names in this
//! documentation refer to the protocol text, `doc/proto.md` of the NBD project.
//!
//! # Example
//!
//! A client reads from a server. A buffer in each direction is the connection.
//!
//! ```
//! use std::os::unix::fs::FileExt;
//! use std::sync::Arc;
//! use std::time::Instant;
//!
//! use export::{
//!     Auth, Base, Catalogue, Export, Fault, Finished, Geometry, Identity, Peer, Pool, Session, Step,
//! };
//! use nbd::client::{self, Client, Options, Request};
//! use nbd::server::{Server, Start};
//!
//! // The server has one read-only export, `zero`.
//! let disk = std::fs::File::open("/dev/zero")?;
//! let geometry = Geometry::new(512, 4096).ok_or("not a block size")?;
//! let nqn = "nqn.2026-01.org.example:zero";
//! let export =
//!     Export::new("/dev/zero", nqn, Identity::default(), geometry, 1 << 20, disk.into());
//! let catalogue = Arc::new(Catalogue::default());
//! catalogue.publish(Arc::new(export));
//! let peer = Peer::unix(Auth::None);
//! let (pool, now) = (Pool::new(1 << 20), Instant::now());
//! let mut session = Server::new(catalogue).session(peer, Start::Hello, pool.open(), now);
//!
//! let mut client = Client::new(Options::new("zero"));
//! let memory = pool.open();
//! let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
//! let data = loop {
//!     // The driver of the server executes its steps.
//!     while let Some(step) = session.poll() {
//!         match step {
//!             Step::Send(segment) => to_client.extend(segment.parts().concat()),
//!             Step::Submit(mut request) => {
//!                 let Base::Raw(disk) = request.export().backing().base() else { unreachable!() };
//!                 let disk = std::fs::File::from(disk.try_clone()?);
//!                 let offset = request.offset();
//!                 let result = disk.read_exact_at(request.bytes_mut(), offset);
//!                 let Finished { ticket, outcome, .. } = request.finish(result.map_err(Fault::from));
//!                 session.complete(now, ticket, outcome);
//!             }
//!             Step::Close(reason) => return Err(format!("closed: {reason}").into()),
//!             Step::Report(_) | Step::Notify | Step::Halt => {}
//!         }
//!     }
//!     let consumed = client.receive(&to_client);
//!     to_client.drain(..consumed);
//!     // The driver of the client executes its steps.
//!     match client.poll() {
//!         Some(client::Step::Send(segment)) => to_server.extend(segment.parts().concat()),
//!         Some(client::Step::Opened(info)) => {
//!             assert_eq!((info.bytes, info.is_writable()), (1 << 20, false));
//!             let buffer = memory.take(4096).ok_or("no memory")?;
//!             let read = Request::Read { offset: 8192, buffer };
//!             client.submit(read, 1).map_err(|error| format!("{error:?}"))?;
//!         }
//!         Some(client::Step::Done(done)) => {
//!             assert_eq!((done.tag, done.result), (1, Ok(())));
//!             break done.buffer.ok_or("no data")?;
//!         }
//!         other => assert!(other.is_none(), "{other:?}"),
//!     }
//!     let consumed = session.receive(now, &to_server);
//!     to_server.drain(..consumed);
//! };
//! assert_eq!(data.bytes(), [0; 4096]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod credential;
pub mod server;
pub mod wire;
