//! Sandboxes a process that handles untrusted peers: drops its user, capabilities, access to the
//! file system, new sockets, and nearly all system calls. Open descriptors stay usable.
//!
//! If the kernel lacks a feature, the rest is applied and the gap is returned as a sentence, to be
//! reported.
//!
//! The order matters. [`drop_privileges`] and [`restrict_files`] apply to the calling thread and
//! its children, so they are called first, before other threads exist; [`restrict_syscalls`]
//! applies to all threads, and is called when everything has been opened.

mod landlock;
mod privileges;
mod seccomp;

pub use landlock::restrict_files;
pub use privileges::{drop_privileges, protect_memory, set_cloexec_on_all};
pub use seccomp::{deny_dangerous_syscalls, restrict_syscalls};
