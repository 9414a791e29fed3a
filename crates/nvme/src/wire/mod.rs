//! The figures of the NVMe specifications as structs, byte for byte.
//!
//! A struct here has the size, the order and the (lower case) field names of its figure; bit fields
//! are read through named accessors. Nothing here knows what a value means to a controller: that is
//! [`crate::command`] and above.

pub mod auth;
pub mod command;
pub mod completion;
pub mod dataset;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod text;

pub use command::{Fuse, Sgl, Sqe};
pub use completion::Cqe;
