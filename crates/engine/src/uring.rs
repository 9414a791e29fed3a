//! The fast driver: one io_uring per worker thread, for network and disk. The event loop is in
//! `worker`; the ownership of memory that the kernel uses is documented in `ring`.

mod blocking_pool;
mod connection;
mod disk_queue;
mod failed_session;
mod files;
mod ring;
mod rx_coalescing;
mod slots;
mod spin;
mod turn;
mod worker;

pub(crate) use disk_queue::DiskQueue;
pub(crate) use worker::{Workers, spawn};
