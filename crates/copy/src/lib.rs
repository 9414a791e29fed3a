//! Copies disks: planning, execution, progress and verification.
//!
//! The caller makes the connections to other machines ([`client::Dial`]).
//!
//! | term | meaning |
//! |---|---|
//! | [`Endpoint`] | a disk that is copied from or to: a file, a device, an export of another machine |
//! | [`Connection`] | asynchronous requests of one thread to an endpoint |
//! | [`Job`] | one copy, from its checks to its [`Report`] |
//! | [`Map`] | the progress of a copy, in the format of GNU ddrescue |

#![forbid(unsafe_code)]

mod backoff;
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
mod read_back;
mod read_behind;
mod reader;
mod run;
mod same_disk;
mod sample;
mod shared;
mod sync_io;
mod thread_io;
mod worker;

pub use connection::{
    Completion, Connection, ConnectionLost, FileEndpoint, Interest, IscsiEndpoint, LossCause,
    NbdEndpoint, NvmeEndpoint, NvmeHost, OpenMode, Request, RequestError,
};
pub use endpoint::{Disk, Endpoint, EndpointError};
pub use job::{
    Check, CheckFn, CopyError, End, Finish, Job, Outcome, Phase, Pipe, Progress, Refusal, Report,
    Settings, Unchecked,
};
pub use map::Map;
pub use reader::Reader;
pub use same_disk::read_sync;
