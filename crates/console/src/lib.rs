//! Renders the screen: a [`Model`] becomes lines of text, for a window of a given size ([`screen`])
//! or complete, as plain text ([`text`]). Keys change the [`State`] of the screen.
//!
//! All text from disks, peers and paths is sanitized by [`printable`].

#![forbid(unsafe_code)]

pub mod attach;
pub mod code;
#[cfg(test)]
mod example;
mod instructions;
mod model;
mod page;
mod printable;
mod screen;
mod size;
mod state;
mod table;
mod text;
mod width;

pub use model::{AccessRequest, Disk, Host, Link, Model, Pairing, TargetMode, Unavailable};
pub use page::Style;
pub use printable::{host_name, printable, printable_lines};
pub use screen::{frame, screen};
pub use size::{binary, decimal, parse_size, size};
pub use state::{Action, Answer, Key, State, View};
pub use text::{splash, text};
pub use width::columns;
