//! NVMe/TCP's protocol data units: their layouts, cutting them out of a byte stream, and making them. It knows no
//! command beyond its 64 bytes, and no socket. Both sides use it.
//!
//! Sections are those of the NVMe/TCP Transport Specification 1.0.

mod deframe;
mod digest;
mod frame;
pub mod pdu;
mod violation;

pub use deframe::{Deframer, Pdu, Piece, Side};
pub use digest::{Crc32c, crc32c};
pub use frame::Framer;
pub use violation::Violation;
