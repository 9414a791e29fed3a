//! Serves disks: exports and hot-plug, listeners, the worker process and its supervisor, status.
#![forbid(unsafe_code)]

pub mod access_control;
pub mod certificates;
mod contents;
mod demo;
pub mod device;
pub mod disk_filter;
pub mod event;
pub mod examine;
pub mod flush;
pub mod homes;
pub mod hotplug;
pub mod inbox;
pub mod lend;
pub mod listen;
pub mod listeners;
pub mod messages;
pub mod overlay;
pub mod rate_limit;
pub mod reported;
pub mod settings;
pub mod size;
pub mod status;
pub mod worker;
