//! NVMe/TCP PDUs: layout, parser and builder, for both sides.
//!
//! Section numbers refer to the NVMe/TCP Transport Specification 1.0.

mod deframe;
mod digest;
mod frame;
pub mod pdu;
mod violation;

pub use deframe::{Deframer, Pdu, Piece, Side};
pub use digest::{Crc32c, crc32c};
pub use frame::Framer;
pub use violation::Violation;
