//! Setting a ring up: its mode, and the restrictions.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::super::files::FileTable;

/// Entries of the submission queue. If it is full, the kernel is entered early.
const ENTRIES: u32 = 512;

/// Entries of the completion queue. The kernel keeps further completions on a slower overflow list.
const COMPLETIONS: u32 = 8192;

/// Size of the fixed file table, if the process may open that many: sockets, disks and an eventfd.
const FILES: u32 = 4096;

/// Register operations that remain permitted: `IORING_REGISTER_FILES_UPDATE`,
/// `IORING_UNREGISTER_FILES` and `IORING_REGISTER_BUFFERS_UPDATE`.
const RUNTIME_REGISTER_OPS: [u8; 3] = [6, 3, 16];

/// The operations that the engine needs; all others are denied. All exist since before Linux 6.1.
pub(super) const REQUIRED_OPS: [u8; 9] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::Recv::CODE,
    opcode::RecvMsg::CODE,
    opcode::SendMsg::CODE,
];

/// Sets up the ring with the best mode that the kernel supports: deferred task work (Linux 6.1),
/// cooperative task work (5.19), or the default.
pub(super) fn build() -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest.setup_cqsize(COMPLETIONS).setup_submit_all().setup_clamp().setup_r_disabled();
    let oldest = newest.clone();
    newest.setup_coop_taskrun().setup_taskrun_flag();
    let middle = newest.clone();
    newest.setup_single_issuer().setup_defer_taskrun();
    let mut result = newest.build(ENTRIES);
    let mut first = IoUring::builder();
    first.setup_r_disabled();
    for older in [middle, oldest, first] {
        match &result {
            Err(error) if Errno::from_io_error(error) == Some(Errno::INVAL) => {
                result = older.build(ENTRIES);
            }
            _ => break,
        }
    }
    result
}

/// Registers an empty file table and the restrictions, and enables the ring.
pub(super) fn restrict(ring: &IoUring) -> io::Result<FileTable> {
    let max = getrlimit(Resource::Nofile).current.and_then(|max| u32::try_from(max).ok());
    let places = max.map_or(FILES, |max| max.min(FILES));
    ring.submitter().register_files(&vec![-1; places as usize])?;
    let mut rules: Vec<_> = REQUIRED_OPS.into_iter().map(Restriction::sqe_op).collect();
    rules.push(Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()));
    rules.extend(RUNTIME_REGISTER_OPS.map(Restriction::register_op));
    ring.submitter().register_restrictions(&mut rules)?;
    ring.submitter().register_enable_rings()?;
    Ok(FileTable::new(places))
}
