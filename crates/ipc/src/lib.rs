//! Helper processes: [`spawn`] runs this program again for one task, [`channel`] exchanges messages
//! and file descriptors.
#![forbid(unsafe_code)]

pub mod channel;
pub mod spawn;
