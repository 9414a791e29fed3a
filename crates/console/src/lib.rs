//! Renders the screen: a [`Model`] becomes lines of text, for a window of a given size ([`screen`])
//! or complete, as plain text ([`text`]). Keys change the [`State`] of the screen.
//!
//! All text from disks, peers and paths is escaped by [`escape_unprintable`].

#![forbid(unsafe_code)]

pub mod code;
mod escape;
#[cfg(test)]
mod example;
mod instructions;
mod model;
mod page;
mod reading;
mod screen;
mod size;
mod state;
mod table;
mod text;
mod width;

pub use escape::{escape_lines_to_ascii, escape_unprintable, short_host_nqn};
pub use model::{
    AccessRequest, Disk, Host, KeptByHost, KeptChanges, Link, Model, Pairing, ReadingAccess,
    TargetMode, Unavailable, UsbPort,
};
pub use page::Style;
pub use screen::{frame, screen};
pub use size::{binary, decimal, parse_size, size};
pub use state::{Action, Answer, Key, State, View};
pub use text::{splash, text};
pub use width::columns;
