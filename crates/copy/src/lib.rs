//! Copies disks: what is to be moved, in which order, how far it is, and whether it arrived.
//!
//! Knows no screen and no option, and makes no connection: it is given them.

#![forbid(unsafe_code)]
