//! The ring entry of a disk request.

use std::ops::Range;

use export::Buffer;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::super::files::FixedFile;
use super::length;
use crate::disk::{Call, Job};

/// Builds the entry of the next call of a request. Called by the ring only, which owns the request until
/// completion. The buffer is referred to by its registration, if it has one.
pub(super) fn disk_entry(job: &mut Job, files: &[FixedFile]) -> squeue::Entry {
    let registered = job.buffer_mut().and_then(registration);
    let registered = |bytes: &[u8]| {
        let (index, memory) = registered.as_ref()?;
        memory.contains(&bytes.as_ptr()).then_some(*index)
    };
    let (_, file, call) = job.call();
    // The kernel fails an entry with a file that does not exist.
    let fd = Fixed(files.get(file).map_or(u32::MAX, FixedFile::index));
    match call {
        Call::Read { offset, into } => {
            let (memory, len) = (into.as_mut_ptr(), length(into));
            match registered(into) {
                Some(index) => {
                    opcode::ReadFixed::new(fd, memory, len, index).offset(offset).build()
                }
                None => opcode::Read::new(fd, memory, len).offset(offset).build(),
            }
        }
        Call::Write { offset, from, flags } => {
            let (memory, len) = (from.as_ptr(), length(from));
            // Bits of `RWF_*`, which are few.
            let flags = flags.bits().cast_signed();
            // Linux refuses RWF_ATOMIC with a registered buffer.
            let is_atomic = flags & libc::RWF_ATOMIC != 0;
            match registered(from).filter(|_| !is_atomic) {
                Some(index) => {
                    let write = opcode::WriteFixed::new(fd, memory, len, index);
                    write.offset(offset).rw_flags(flags).build()
                }
                None => opcode::Write::new(fd, memory, len).offset(offset).rw_flags(flags).build(),
            }
        }
        Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, len } => {
            let mode = i32::try_from(mode.bits()).unwrap_or(0);
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        }
    }
}

/// Returns the index of the registration of a buffer's memory, and that memory.
pub(super) fn registration(buffer: &mut Buffer) -> Option<(u16, Range<*const u8>)> {
    let (memory, kept) = buffer.memory_mut()?;
    let index = kept.as_ref()?.downcast_ref::<FixedFile>()?.index();
    Some((u16::try_from(index).ok()?, memory.as_ptr_range()))
}
