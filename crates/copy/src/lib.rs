//! Copies disks: what is to be moved, in which order, how far it is, and whether it arrived.
//!
//! Knows no screen and no option, and makes no connection: it is given them.
//!
//! | word | is |
//! |---|---|
//! | [`Endpoint`] | where a disk is: a file, a device, another machine |
//! | [`Connection`] | one way to the disk of a place, used by one thread |
//! | [`Job`] | one copy, from its first check to its [`Report`] |
//! | [`Map`] | how far a copy has come, as GNU ddrescue writes it down |

#![forbid(unsafe_code)]

mod compare;
pub mod connection;
pub mod endpoint;
mod hash_tree;
mod health;
pub mod job;
pub mod map;
mod plan;
mod prepare;
mod rate;
mod run;
mod same_disk;
mod sample;
mod shared;
mod stream_copy;
mod sync_io;
mod thread_io;
pub mod transport;
mod worker;

pub use connection::{
    Completion, Connection, ConnectionLost, DiscoveredDisk, FileEndpoint, Interest, NbdEndpoint,
    NvmeEndpoint, NvmeHost, OpenMode, Request, RequestError, start_tls,
};
pub use endpoint::{Disk, Endpoint, EndpointError};
pub use job::{
    CopyError, End, Finish, Job, Outcome, Phase, Pipe, Progress, Refusal, Report, Settings,
};
pub use map::Map;
pub use same_disk::read_sync;
pub use transport::{Dial, DialError, DialSubsystem, Transport, any_subsystem};
