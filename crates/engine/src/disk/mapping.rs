//! A disk in memory, mapped into the address space: data is sent from the mapping and copied into it,
//! without a system call and a copy of the page cache per request.
//!
//! # Access to shared memory
//!
//! The file can be changed, and made shorter, by other processes at any time. Therefore
//!
//! - no reference to the mapped memory exists. The kernel reads it when an `iovec` of
//!   [`Mapping::iovec`] is sent, and [`copy`], which is assembly, writes it;
//! - pages beyond the end of the file, and holes of a full file system, fail. In a system call that is
//!   `EFAULT`. In `copy` it raises `SIGBUS`, whose handler lets `copy` return that it has failed.
//!
//! A mapping with a page that failed [is not used any more](Mapping::set_failed): the system calls on
//! the file return what is wrong with it.

#![allow(unsafe_code, reason = "maps a file, and handles SIGBUS of the copy into it")]

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::Arc;

use export::{Access, Export};
use guarded::{copy, handle_sigbus, stream};
use libc::iovec;

use super::backing::Mappable;

/// How many bytes of a file a read fault maps, if they are in memory: the default of Linux.
const FAULT_AROUND: usize = 64 << 10;

/// From this length on, written data goes to memory past the processor's caches: it would displace what is
/// in them, and the old content would be read into them first.
const STREAMED: usize = 64 << 10;
/// The alignment that this needs.
const STREAM_ALIGNMENT: usize = 16;

/// The mapping of a file by one thread.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Whether it stands for a disk of zeros, of any size, which discards what is written.
    is_zero: bool,
    /// Whether a page has failed. Outlives the mapping, so that the file is not mapped again.
    has_failed: Rc<Cell<bool>>,
    /// Keeps the export, and so its files, in use as long as they are mapped.
    _export: Arc<Export>,
}

impl Mapping {
    /// Maps a file that belongs to `export`, for writing as well if both permit it. `has_failed` is set
    /// once a page fails.
    ///
    /// # Errors
    /// Fails if the length is zero, or if the address space or the descriptor do not permit it.
    pub(super) fn new(
        export: &Arc<Export>,
        mappable: &Mappable<'_>,
        has_failed: Rc<Cell<bool>>,
    ) -> io::Result<Self> {
        handle_sigbus()?;
        let Mappable { file, len, huge, .. } = *mappable;
        let writable = mappable.writable && export.access == Access::Writable;
        let protection =
            if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::Other)?;
        let mapping = Self { base, len, is_zero: false, has_failed, _export: export.clone() };
        let advice = [Some(libc::MADV_DONTDUMP), huge.then_some(libc::MADV_HUGEPAGE)];
        for advice in advice.into_iter().flatten() {
            // SAFETY: neither changes the contents of the mapping. Failures do no harm.
            unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, advice) };
        }
        Ok(mapping)
    }

    /// Makes the mapping, whose bytes are zero, stand for a disk of zeros.
    pub(crate) fn set_zero(&mut self, is_zero: bool) {
        self.is_zero = is_zero;
    }

    /// Returns the index of the byte at `offset` if the mapping has `len` bytes from there on, and
    /// none has failed.
    pub(crate) fn index(&self, offset: u64, len: u64) -> Option<usize> {
        let offset = if self.is_zero { 0 } else { offset };
        let end = offset.checked_add(len)?;
        let fits = end <= self.len as u64 && !self.has_failed.get();
        usize::try_from(offset).ok().filter(|_| fits)
    }

    /// Copies `bytes` to `start`. Returns false if a page fails; then any part of them was copied.
    pub(crate) fn write(&self, start: usize, bytes: &[u8]) -> bool {
        let Some(at) = self.at(start, bytes.len()) else { return false };
        if self.is_zero {
            return true;
        }
        // Reading a byte first maps the pages around it as well (`fault_around_bytes`); a write
        // faults on each page.
        let mut byte = 0;
        let touched = (0..bytes.len()).step_by(FAULT_AROUND).all(|offset| {
            // SAFETY: as below; `offset` is within the range.
            unsafe { copy(&raw mut byte, at.wrapping_add(offset), 1) }
        });
        let is_aligned = at.addr().is_multiple_of(STREAM_ALIGNMENT);
        let by = if bytes.len() >= STREAMED && is_aligned { stream } else { copy };
        // SAFETY: `at` is valid for that many bytes as long as the file is, see `copy`; it is aligned if
        // `stream` needs it.
        let done = touched && unsafe { by(at, bytes.as_ptr(), bytes.len()) };
        if !done {
            self.set_failed();
        }
        done
    }

    /// Fills `into` from `start`. Returns false if a page fails; then any part was filled.
    pub(crate) fn read(&self, start: usize, into: &mut [u8]) -> bool {
        let Some(at) = self.at(start, into.len()) else { return false };
        // SAFETY: as in `write`.
        let done = unsafe { copy(into.as_mut_ptr(), at, into.len()) };
        if !done {
            self.set_failed();
        }
        done
    }

    /// Returns an `iovec` of `len` bytes at `start`, for system calls that read it. Valid as long as
    /// `self`.
    pub(crate) fn iovec(&self, start: usize, len: usize) -> Option<iovec> {
        let at = self.at(start, len)?;
        Some(iovec { iov_base: at.cast(), iov_len: len })
    }

    /// Returns the index of the byte at this address, if it is in the mapping.
    pub(crate) fn index_of(&self, address: *const u8) -> Option<usize> {
        let index = address.addr().checked_sub(self.base.as_ptr().addr())?;
        (index < self.len).then_some(index)
    }

    /// Makes [`Mapping::index`] return `None` from now on.
    pub(crate) fn set_failed(&self) {
        self.has_failed.set(true);
    }

    fn at(&self, start: usize, len: usize) -> Option<*mut u8> {
        let fits = start.checked_add(len)? <= self.len;
        fits.then(|| self.base.as_ptr().wrapping_add(start))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The copy that `SIGBUS` makes fail, and the handler.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod guarded {
    use std::arch::global_asm;
    use std::io;
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use libc::{c_int, c_void, siginfo_t};

    // `usize storagetm_mapping_copy(u8 *into, const u8 *from, usize len)` copies, and returns 0. Only
    // instructions between `_begin` and `_end` access memory; if one faults, the
    // handler continues at `_failed`, which returns 1. It uses no stack.
    // `storagetm_mapping_stream` does the same with stores past the caches, and then copies what is left of
    // the last 64 bytes; `into` must be aligned to 16 bytes.
    #[cfg(target_arch = "x86_64")]
    global_asm!(
        ".pushsection .text.storagetm_mapping_copy,\"ax\",@progbits",
        ".p2align 4",
        ".globl storagetm_mapping_copy",
        ".globl storagetm_mapping_copy_begin",
        ".globl storagetm_mapping_copy_end",
        ".globl storagetm_mapping_copy_failed",
        ".globl storagetm_mapping_stream",
        "storagetm_mapping_stream:",
        "mov rcx, rdx",
        "and edx, 63",
        "and rcx, -64",
        "add rsi, rcx",
        "add rdi, rcx",
        "neg rcx",
        "storagetm_mapping_copy_begin:",
        "jz 2f",
        "1: movdqu xmm0, [rsi + rcx]",
        "movdqu xmm1, [rsi + rcx + 16]",
        "movdqu xmm2, [rsi + rcx + 32]",
        "movdqu xmm3, [rsi + rcx + 48]",
        "movntdq [rdi + rcx], xmm0",
        "movntdq [rdi + rcx + 16], xmm1",
        "movntdq [rdi + rcx + 32], xmm2",
        "movntdq [rdi + rcx + 48], xmm3",
        "add rcx, 64",
        "jnz 1b",
        "sfence",
        "2:",
        "storagetm_mapping_copy:",
        "mov rcx, rdx",
        "rep movsb",
        "storagetm_mapping_copy_end:",
        "xor eax, eax",
        "ret",
        "storagetm_mapping_copy_failed:",
        "mov eax, 1",
        "ret",
        ".popsection",
    );
    #[cfg(target_arch = "aarch64")]
    global_asm!(
        ".pushsection .text.storagetm_mapping_copy,\"ax\",@progbits",
        ".p2align 4",
        ".globl storagetm_mapping_copy",
        ".globl storagetm_mapping_copy_begin",
        ".globl storagetm_mapping_copy_end",
        ".globl storagetm_mapping_copy_failed",
        "storagetm_mapping_copy:",
        "storagetm_mapping_copy_begin:",
        "subs x2, x2, #64",
        "b.lo 2f",
        "1: ldp x3, x4, [x1]",
        "ldp x5, x6, [x1, #16]",
        "ldp x7, x8, [x1, #32]",
        "ldp x9, x10, [x1, #48]",
        "add x1, x1, #64",
        "stp x3, x4, [x0]",
        "stp x5, x6, [x0, #16]",
        "stp x7, x8, [x0, #32]",
        "stp x9, x10, [x0, #48]",
        "add x0, x0, #64",
        "subs x2, x2, #64",
        "b.hs 1b",
        "2: adds x2, x2, #64",
        "b.eq 4f",
        "3: ldrb w3, [x1], #1",
        "strb w3, [x0], #1",
        "subs x2, x2, #1",
        "b.ne 3b",
        "4:",
        "storagetm_mapping_copy_end:",
        "mov x0, #0",
        "ret",
        "storagetm_mapping_copy_failed:",
        "mov x0, #1",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        fn storagetm_mapping_copy(into: *mut u8, from: *const u8, len: usize) -> usize;
        #[cfg(target_arch = "x86_64")]
        fn storagetm_mapping_stream(into: *mut u8, from: *const u8, len: usize) -> usize;
        // Not functions to be called: their addresses delimit the instructions.
        fn storagetm_mapping_copy_begin();
        fn storagetm_mapping_copy_end();
        fn storagetm_mapping_copy_failed();
    }

    /// Copies `len` bytes. Returns whether all could be: false after `SIGBUS`.
    ///
    /// # Safety
    /// Both ranges must be valid for `len` bytes, and not overlap; one of them may be mapped, and have
    /// pages beyond the end of its file.
    pub(super) unsafe fn copy(into: *mut u8, from: *const u8, len: usize) -> bool {
        // SAFETY: the caller's promise. A page beyond the end of a file raises SIGBUS, which is handled.
        unsafe { storagetm_mapping_copy(into, from, len) == 0 }
    }

    /// Copies `len` bytes past the caches, where that is written for the architecture. Returns as [`copy`].
    ///
    /// # Safety
    /// As for [`copy`]; `into` must be aligned to 16 bytes.
    pub(super) unsafe fn stream(into: *mut u8, from: *const u8, len: usize) -> bool {
        // SAFETY: the caller's promise.
        #[cfg(target_arch = "x86_64")]
        return unsafe { storagetm_mapping_stream(into, from, len) == 0 };
        // SAFETY: the caller's promise.
        #[cfg(not(target_arch = "x86_64"))]
        return unsafe { copy(into, from, len) };
    }

    /// The type of a register in the context of a signal: bits, whatever its sign.
    #[cfg(target_arch = "x86_64")]
    type ProgramCounter = libc::greg_t;
    #[cfg(target_arch = "aarch64")]
    type ProgramCounter = libc::c_ulonglong;

    /// The handler of `SIGBUS` that was installed before this one: its address, or a constant.
    static EARLIER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

    /// Installs the handler, once.
    ///
    /// # Errors
    /// Fails if the system call fails.
    pub(super) fn handle_sigbus() -> io::Result<()> {
        static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
        let failed =
            INSTALLED.get_or_init(|| install().err().map(|e| e.raw_os_error().unwrap_or(0)));
        failed.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
    }

    fn install() -> io::Result<()> {
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
        let mut earlier = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: integers and pointers, for which zero is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both structures are valid, and the handler calls only what a handler may call.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, earlier.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the kernel; zeroed before.
        let earlier = unsafe { earlier.assume_init() };
        let has_context = earlier.sa_flags & libc::SA_SIGINFO != 0;
        let plain = [libc::SIG_DFL, libc::SIG_IGN].contains(&earlier.sa_sigaction);
        let kept = if has_context || plain { earlier.sa_sigaction } else { libc::SIG_DFL };
        EARLIER.store(kept, Ordering::Relaxed);
        Ok(())
    }

    /// Continues a [`copy`] that has faulted where it returns that. For any other `SIGBUS`, does what
    /// would have been done without this handler.
    extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO.
        let at = unsafe { program_counter(context.cast()) };
        let [begin, end, failed] = [
            storagetm_mapping_copy_begin as unsafe extern "C" fn(),
            storagetm_mapping_copy_end,
            storagetm_mapping_copy_failed,
        ]
        .map(|label| label as usize);
        // SAFETY: points into the context, which the kernel restores the registers from.
        let counter = unsafe { &mut *at };
        let current = usize::try_from(*counter).unwrap_or(0);
        if (begin..end).contains(&current)
            && let Ok(failed) = ProgramCounter::try_from(failed)
        {
            *counter = failed;
            return;
        }
        // SAFETY: the kernel passes valid information to a handler with SA_SIGINFO.
        if unsafe { (*info).si_code } <= 0 {
            // Sent by a process: nothing faults again, so the signal is sent again for its default
            // action, which takes place when the handler returns.
            // SAFETY: both may be called by a handler.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
            return;
        }
        match EARLIER.load(Ordering::Relaxed) {
            plain @ (libc::SIG_DFL | libc::SIG_IGN) => {
                // SAFETY: restores the earlier disposition; the instruction faults again, and the signal
                // is then treated by it.
                unsafe { libc::signal(signal, plain) };
            }
            earlier => {
                // SAFETY: the address of the handler with SA_SIGINFO that was installed before.
                let earlier: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(earlier) };
                earlier(signal, info, context);
            }
        }
    }

    /// Returns where the address of the interrupted instruction is in the context of a signal.
    ///
    /// # Safety
    /// `context` must be that of a signal handler.
    #[cfg(target_arch = "x86_64")]
    unsafe fn program_counter(context: *mut libc::ucontext_t) -> *mut ProgramCounter {
        // SAFETY: the caller's promise; the index is that of a register.
        unsafe { &raw mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] }
    }

    #[cfg(target_arch = "aarch64")]
    unsafe fn program_counter(context: *mut libc::ucontext_t) -> *mut ProgramCounter {
        // SAFETY: the caller's promise.
        unsafe { &raw mut (*context).uc_mcontext.pc }
    }
}

/// Nothing is mapped on architectures for which the copy was not written.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod guarded {
    pub(super) fn handle_sigbus() -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    pub(super) unsafe fn copy(_: *mut u8, _: *const u8, _: usize) -> bool {
        false
    }

    pub(super) unsafe fn stream(_: *mut u8, _: *const u8, _: usize) -> bool {
        false
    }
}

#[cfg(test)]
mod test {
    use std::os::fd::AsFd;

    use export::{Geometry, Identity};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const LEN: usize = 1 << 18;

    fn map(file: impl AsFd, len: usize, access: Access) -> io::Result<Mapping> {
        let (geometry, identity) = (Geometry::new(512, 512).unwrap(), Identity::default());
        let copy = file.as_fd().try_clone_to_owned().unwrap();
        let mut export = Export::new("disk", "nqn", identity, geometry, len as u64, copy.into());
        export.access = access;
        let (file, writable) = (file.as_fd(), true);
        let mappable = Mappable { file, len, holes: 0, writable, huge: true, is_zero: false };
        Mapping::new(&Arc::new(export), &mappable, Rc::default())
    }

    #[test]
    fn written_bytes_are_in_the_file() {
        let file = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, LEN as u64).unwrap();
        let mapping = map(&file, LEN, Access::Writable).unwrap();
        for (start, len) in [(0, 1), (1, 63), (63, 64), (200, 65), (4095, 4098), (LEN - 130, 130)]
            .into_iter()
            .chain([
                (0, LEN),
                (512, STREAMED),
                (16, STREAMED + 63),
                (8, STREAMED),
                (48, 2 * STREAMED + 1),
            ])
        {
            let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap() + 1).collect();
            assert!(mapping.write(start, &bytes));
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            assert!(mapping.read(start, &mut ours));
            assert_eq!(rustix::io::pread(&file, &mut theirs, start as u64), Ok(len));
            assert!(ours == bytes && theirs == bytes, "{start} {len}");
        }
        assert!(!mapping.write(LEN - 1, &[1; 2]) && !mapping.read(LEN, &mut [0]));
        assert!(mapping.iovec(LEN - 1, 2).is_none() && mapping.iovec(usize::MAX, 1).is_none());
        assert_eq!(mapping.index(LEN as u64 - 1, 1), Some(LEN - 1));
        assert_eq!((mapping.index(LEN as u64, 1), mapping.index(u64::MAX, 1)), (None, None));
    }

    #[test]
    fn copy_beyond_the_end_of_a_truncated_file_fails() {
        let file = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, LEN as u64).unwrap();
        let mapping = map(&file, LEN, Access::Writable).unwrap();
        assert!(mapping.write(0, &vec![1; LEN]));
        ftruncate(&file, 8192).unwrap();
        assert!(mapping.write(4096, &[2; 4096]));
        assert_eq!(mapping.index(0, 1), Some(0));
        assert!(!mapping.write(4096, &[2; 8192]));
        assert!(!mapping.read(LEN - 1, &mut [0]));
        assert_eq!(mapping.index(0, 1), None);
        assert!(!mapping.write(0, &vec![1; LEN]));
    }

    #[test]
    fn read_only_file_is_mapped_for_reading_only() {
        let path = std::env::temp_dir().join(format!("storagetm-mapping-{}", std::process::id()));
        std::fs::write(&path, [7; 4096]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(map(&file, 4096, Access::Writable).is_err());
        let mapping = map(&file, 4096, Access::ReadOnly).unwrap();
        let mut byte = [0];
        assert!(mapping.read(4095, &mut byte));
        assert_eq!(byte, [7]);
        assert!(map(&file, 0, Access::ReadOnly).is_err());
    }
}
