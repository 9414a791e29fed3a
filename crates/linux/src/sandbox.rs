//! Gives rights away, for a process that talks to strangers: its user, its capabilities, the file system, the network
//! that it does not have yet, and nearly all system calls. What it holds open it keeps.
//!
//! Does not know what the process does with what is left. A kernel that lacks a part is no reason to stop: what could not
//! be given away comes back as a sentence, so that somebody can be told.
//!
//! The order matters. [`renounce`] and [`leave_files`] hold for the calling thread and for those that it starts, so they
//! come first; [`leave_calls`] holds for all threads, and comes when everything has been opened that ever is.

mod calls;
mod files;
mod rights;

pub use calls::{leave_calls, leave_deadly_calls};
pub use files::leave_files;
pub use rights::{hand_nothing_down, hide_memory, renounce};
