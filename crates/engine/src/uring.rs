//! The fast driver: one thread, one ring, network and disk in the same ring. What a turn of it is stands in `worker`,
//! who owns which memory in `ring`.

mod blocking_pool;
mod broken;
mod connection;
mod files;
mod receiving;
mod ring;
mod rx_coalescing;
mod sending;
mod slots;
mod spin;
mod worker;

pub(crate) use worker::{Workers, spawn};
