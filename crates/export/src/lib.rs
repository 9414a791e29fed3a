//! The vocabulary that all protocols and drivers of storagetm share. It knows no protocol, no socket and no clock.
//!
//! | word | is |
//! |---|---|
//! | [`Export`] | a disk as it is lent: its name, identity, geometry and the descriptor it is read through |
//! | [`Catalogue`] | the exports that are lent just now, and the policy |
//! | [`Policy`] | whom the owner lets in, with which keys, and to what |
//! | [`Secret`] | bytes that nobody else may know |
//! | [`Peer`] | who is at the other end of a connection |
//! | [`Grant`] | what a peer may do with one export; the only maker of [`Admitted`] |
//! | [`Fence`] | stands between the writes of one connection and those of all others |
//! | [`Admitted`] | a disk request that passed the gate; the only thing a driver carries out |
//! | [`Session`] | one connection's protocol: bytes in, [`Step`]s out |
//! | [`Segment`] | bytes to be sent: a small head, perhaps a body and a tail |
//! | [`Buffer`] | page-aligned memory of a bounded pool |
//! | [`Budget`] | how much of it there is in all, and for each host |
//! | [`Extent`] | a part of a disk that is all data, or all hole |
//! | [`Fault`] | the closed list of ways in which a disk request fails |

#![forbid(unsafe_code)]

mod budget;
mod buffer;
mod catalogue;
mod event;
#[allow(clippy::module_inception, reason = "the crate is named for its first word")]
mod export;
mod extent;
mod fault;
mod fence;
mod geometry;
mod peer;
mod policy;
mod request;
mod secret;
mod segment;
mod session;

pub use budget::{Budget, Purpose, Share};
pub use buffer::{Account, Buffer, PAGE, Pool};
pub use catalogue::Catalogue;
pub use event::{Event, PairingRequest};
pub use export::{Access, Cache, Exclusive, Export, Identity, Usage};
pub use extent::{Extent, Extents};
pub use fault::Fault;
pub use fence::Fence;
pub use geometry::Geometry;
pub use peer::{Auth, Channel, Network, Peer, Tenant};
pub use policy::{Caller, Host, KeyId, Policy, Refusal, Rule};
pub use request::{Admitted, Denied, Grant, Op, Outcome, Request, Ticket};
pub use secret::Secret;
pub use segment::{Body, Head, Segment};
pub use session::{DirectRecv, Notice, Reason, Session, Step};
