//! [Varlink](https://varlink.org): services on Unix sockets that are called by JSON messages. Each
//! message ends with a NUL byte; replies can carry file descriptors, as sd-varlink passes them.
//!
//! | module | content |
//! |---|---|
//! | [`message`] | calls, replies, and how a byte stream is split into them; pure |
//! | [`service`] | the interface `org.varlink.service`: introspection, and its errors; pure |
//! | [`connection`] | the server's end of a connection, without blocking |
//! | [`client`] | calls a service |

#![forbid(unsafe_code)]

pub mod client;
pub mod connection;
pub mod message;
pub mod service;
