//! What the screen shows: a [`Model`] of what is lent becomes lines of text. It knows no terminal, no clock and no disk.
//!
//! Everything that a disk, a peer or a path says of itself goes through [`printable`] before it becomes text.

#![forbid(unsafe_code)]

pub mod attach;
mod board;
pub mod code;
mod model;
mod printable;
mod size;
mod view;

pub use board::{board, columns};
pub use model::{Asking, Disk, Host, Model, Pairing, Question, Station};
pub use printable::{host_name, printable, printable_lines};
pub use size::{binary, decimal, size};
pub use view::{Style, view};
