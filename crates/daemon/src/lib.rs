//! Serves disks: exports and hot-plug, listeners, the worker process and its supervisor, status.
#![forbid(unsafe_code)]

pub mod admission;
pub mod certificates;
pub mod choice;
mod contents;
mod demo;
pub mod device;
pub mod examine;
pub mod flush;
pub mod follow;
pub mod happening;
pub mod ledger;
pub mod lend;
pub mod listen;
pub mod listeners;
pub mod mailbox;
pub mod settings;
pub mod size;
pub mod tally;
pub mod worker;
