//! Gives rights away, for a process that talks to strangers: its user, its capabilities, the file system, the network
//! that it does not have yet, and nearly all system calls. What it holds open it keeps.
//!
//! Does not know what the process does with what is left. A kernel that lacks a part is no reason to stop: what could not
//! be given away comes back as a sentence, so that somebody can be told.
//!
//! The order matters. [`drop_privileges`] and [`restrict_files`] hold for the calling thread and for those that it starts, so they
//! come first; [`restrict_syscalls`] holds for all threads, and comes when everything has been opened that ever is.

mod landlock;
mod privileges;
mod seccomp;

pub use landlock::restrict_files;
pub use privileges::{drop_privileges, protect_memory, set_cloexec_on_all};
pub use seccomp::{deny_dangerous_syscalls, restrict_syscalls};
