//! Copies disks: what is to be moved, in which order, how far it is, and whether it arrived.
//!
//! Knows no screen and no option, and makes no connection: it is given them.
//!
//! | word | is |
//! |---|---|
//! | [`Place`] | where a disk is: a file, a device, another machine |
//! | [`Lane`] | one way to the disk of a place, used by one thread |
//! | [`Job`] | one copy, from its first check to its [`Report`] |
//! | [`Map`] | how far a copy has come, as GNU ddrescue writes it down |

#![forbid(unsafe_code)]

mod begin;
mod compare;
mod errand;
mod forest;
mod health;
pub mod job;
pub mod lane;
pub mod map;
pub mod place;
mod plan;
mod pour;
mod prove;
mod rate;
mod run;
mod sample;
mod shared;
mod traffic;
pub mod wire;
mod worker;

pub use job::{
    End, Finish, Job, Outcome, Phase, Pipe, Progress, Refusal, Report, Settings, Trouble,
};
pub use lane::{
    Ended, Existing, Failed, FilePlace, Found, Lane, Lost, NbdPlace, NvmeHost, NvmePlace, Waits,
    Work, start_tls,
};
pub use map::Map;
pub use place::{Disk, Place, PlaceError};
pub use prove::read_now;
pub use wire::{Dial, DialError, DialSubsystem, Wire, any_subsystem};
