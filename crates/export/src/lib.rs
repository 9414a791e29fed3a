//! The vocabulary shared by the protocols and the drivers of storagetm: exports, access control,
//! disk requests, buffers, and the [`Session`] interface between protocol and driver.
//!
//! | type | is |
//! |---|---|
//! | [`Export`] | a disk that is served: names, identifiers, block sizes, statistics |
//! | [`Backing`] | the open files behind an export |
//! | [`Catalogue`] | the exports served now, and their policy |
//! | [`Policy`] | the authorized hosts, their credentials, and what each may use |
//! | [`Peer`] | the other end of a connection, and what it has proven |
//! | [`Grant`] | the access of one connection to one export; the only maker of [`Admitted`] |
//! | [`Request`], [`Admitted`] | a disk request before and after it was checked |
//! | [`Fence`] | orders the writes of an ended connection before those of all others |
//! | [`Reservations`] | which hosts are registered, and what the reservation of one permits |
//! | [`Fault`] | the closed list of ways in which a disk request fails |
//! | [`Session`] | the protocol of one connection as a sans-I/O state machine |
//! | [`Segment`] | data to be sent: a small inline head, perhaps a body and a tail |
//! | [`Budget`], [`Pool`], [`Account`] | limits on payload memory: process, thread, connection |
//! | [`Buffer`] | a page-aligned payload buffer from a pool |
//! | [`TokenBucket`], [`NetworkBuckets`] | rate limits on what unauthenticated peers can cause |
//! | [`Extents`] | allocation status of ranges of a disk |
//!
//! # Example
//!
//! A protocol authorizes its peer, has a request checked and passes it to the driver. The driver
//! executes it and returns the outcome.
//!
//! ```
//! use std::os::unix::fs::FileExt;
//! use std::sync::Arc;
//!
//! use export::{
//!     Auth, Base, Caller, Catalogue, Export, Fault, Finished, Geometry, Identity, Op,
//!     Peer, Pool, Request, Ticket,
//! };
//!
//! // The program serves a disk of eight blocks. Exports are read-only unless told otherwise.
//! let disk = std::fs::File::open("/dev/zero")?;
//! let geometry = Geometry::new(512, 4096).ok_or("not a block size")?;
//! let nqn = "nqn.2026-01.org.example:zero";
//! let export =
//!     Export::new("/dev/zero", nqn, Identity::default(), geometry, 8 * 512, disk.into());
//! let catalogue = Catalogue::default();
//! catalogue.publish(Arc::new(export));
//!
//! // A peer of a listener without authentication asks for it.
//! let peer = Peer::unix(Auth::None);
//! let caller = Caller { peer: &peer, host: "nqn.2026-01.org.example:host", proven: None };
//! let grant = catalogue.grant(&caller, &nqn.into()).map_err(|refusal| format!("{refusal:?}"))?;
//!
//! // The protocol makes a request with memory from the connection's account.
//! let account = Pool::new(1 << 20).open();
//! let read = |lba, number| Request {
//!     op: Op::Read,
//!     lba,
//!     blocks: 2,
//!     buffer: account.take(2 * 512),
//!     ticket: Ticket::new(number),
//! };
//! assert_eq!(grant.admit(read(7, 0)).unwrap_err().fault, Fault::OutOfRange);
//! let mut admitted = grant.admit(read(0, 1)).map_err(|denied| denied.fault.to_string())?;
//!
//! // The driver executes it.
//! let Base::Raw(disk) = admitted.export().backing().base() else { unreachable!() };
//! let disk = std::fs::File::from(disk.try_clone()?);
//! let offset = admitted.offset();
//! let result = disk.read_exact_at(admitted.bytes_mut(), offset).map_err(Fault::from);
//! let Finished { ticket, outcome, .. } = admitted.finish(result);
//!
//! // The session completes the request that it made.
//! assert_eq!((ticket, outcome.result), (Ticket::new(1), Ok(())));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod backing;
mod block_map;
mod budget;
mod buffer;
mod catalogue;
mod connections;
mod event;
#[allow(clippy::module_inception, reason = "the crate is named for its first word")]
mod export;
mod extent;
mod fault;
mod fence;
mod geometry;
mod id;
mod overlay;
mod peer;
mod policy;
mod request;
mod rescue;
mod reservation;
mod secret;
mod segment;
mod session;
mod settling;
mod token_bucket;
mod virtual_disk;

pub use backing::{Backing, Base, BaseLayout, Layout};
pub use block_map::{BlockMap, PersistStep, Source};
pub use budget::{Budget, Purpose, Share};
pub use buffer::{Account, Buffer, InPlace, Kept, PAGE, Pool};
pub use catalogue::Catalogue;
pub use connections::{Association, Keeper, Usage};
pub use event::{Event, MAX_TEXT, PairingRequest};
pub use export::{Access, Cache, Exclusive, Export, Home, Identity, RemovalLock};
pub use extent::{Extent, Extents};
pub use fault::Fault;
pub use fence::Fence;
pub use geometry::{AtomicWrites, Geometry};
pub use id::ExportId;
pub use overlay::{MAX_STATES, Overlay, OverlayHost, OverlayLayout, OverlayState, Reserved};
pub use peer::{Auth, Channel, Network, Peer, Tenant, Transport};
pub use policy::{Caller, Credential, Host, KeyId, Policy, Proof, Refusal, Rule};
pub use request::{Admitted, Denied, Finished, Grant, Op, Outcome, Request, Ticket};
pub use rescue::{RescueLayout, RescueReader, RescueState, RescueTrouble, RescuedDisk};
pub use reservation::{
    MAX_REGISTRANTS, Registrant, Registration, Reservation, ReservationCommand, ReservationError,
    ReservationNotice, ReservationStore, ReservationType, Reservations, SavedReservations,
};
pub use secret::Secret;
pub use segment::{Body, Head, Segment};
pub use session::{DirectRecv, Notice, Reason, Session, Step};
pub use settling::Settling;
pub use token_bucket::{NetworkBuckets, TokenBucket, TokenRate};
pub use virtual_disk::{RunTable, Stored, VirtualDisk};
