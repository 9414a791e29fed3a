//! Data structures of the NVMe specifications.
//!
//! Each struct has the size, order and (lower case) field names of its figure in the specification.
//! Bit fields have accessors.

pub mod auth;
pub mod command;
pub mod completion;
pub mod dataset;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod reservation;
pub mod text;

pub use command::{Fuse, Sgl, Sqe};
pub use completion::Cqe;
