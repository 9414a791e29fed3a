//! Error values of replies in the transmission phase (NBD, Error values). Linux errno numbers on
//! every platform.

/// No error.
pub const OK: u32 = 0;
/// Operation not permitted: the export is read-only.
pub const EPERM: u32 = 1;
/// Input or output error.
pub const EIO: u32 = 5;
/// Cannot allocate memory.
pub const ENOMEM: u32 = 12;
/// Invalid argument.
pub const EINVAL: u32 = 22;
/// No space left on the device.
pub const ENOSPC: u32 = 28;
/// Value too large: the read cannot be answered unfragmented.
pub const EOVERFLOW: u32 = 75;
/// Operation not supported.
pub const ENOTSUP: u32 = 95;
/// The server is shutting down.
pub const ESHUTDOWN: u32 = 108;
