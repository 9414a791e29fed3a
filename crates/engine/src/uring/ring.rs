//! A safe interface to io_uring.
//!
//! # Ownership of memory that the kernel reads and writes
//!
//! A ring entry refers to memory by address, and the kernel uses it until the completion of the
//! entry is posted. Everything that an entry refers to must therefore stay in place, untouched,
//! until then. Invariant: **what an entry refers to is owned by a value in `pending` from before
//! the entry is pushed until its completion is reaped.** No code outside this file has access to a
//! value while it is there, so that nothing it owns can be used, moved or freed:
//!
//! - a [`Job`] owns its request, which owns the payload buffer and the disk's descriptors. The pages
//!   of a buffer are an allocation of their own, which stays in place when the `Job` is moved;
//! - a [`Receiving`] and a [`Sending`] are boxed; they own the message header and the vectors that
//!   the entry refers to, the memory that the vectors refer to (receive buffer, buffer of the
//!   direct receive, segments), and a reference to the socket;
//! - an [`Incoming`] is boxed; it owns the memory that a part of a transfer is received into: a boxed
//!   array, or the buffer of a direct receive;
//! - an [`Outgoing`] is boxed; it owns the message that a part is sent of;
//! - a [`Wake`] owns the eight bytes that its eventfd is read into;
//! - each of them owns a reference to the [`FixedFile`]s of the entry, whose indices are not reused
//!   before.
//!
//! The memory of large payload buffers is registered with the ring, which saves finding and pinning its
//! pages for each request. The index of the registration is kept with the memory, and is dropped with
//! it; the kernel holds the pages until the index is cleared, so that a registration may outlive its
//! memory without being used. The kernel checks that an entry refers to registered memory.
//!
//! The key of the value is the entry's `user_data`, and each entry has exactly one completion.
//! Dropping the ring while entries are in flight would free memory that they refer to; it is leaked
//! instead.
//!
//! # Restrictions of the ring
//!
//! Before the ring is enabled, the kernel is told which operations it may execute: those of
//! [`REQUIRED_OPS`], on fixed files only. Whatever is written into the ring's memory later, it
//! cannot open a file, create a socket, or reach a descriptor that is not in the table.

#![allow(unsafe_code, reason = "the one file of the crate that hands addresses to the kernel")]

mod disk;
mod receiving;
mod sending;
mod setup;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::{Rc, Weak};
use std::sync;
use std::sync::Arc;
use std::time::Duration;

use export::{Buffer, Export};
use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use libc::{iovec, msghdr};
use rustix::io::Errno;

use super::files::{FileTable, FixedFile};
use super::slots::{Key, Slots};
use crate::disk::Job;
use crate::inbox::Inbox;
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use disk::disk_entry;
pub(super) use receiving::{LARGE, Receiving};
pub(super) use sending::Sending;
use setup::{REQUIRED_OPS, build, restrict};

/// Kernel threads for blocking operations: several disks may hang before others are affected.
const DISK_THREADS: u32 = 64;

/// Size of the table of registered buffers.
const BUFFERS: u32 = 1024;

/// Smaller payload buffers are not registered: one page is found as fast as a registration.
const MIN_REGISTERED: usize = 16 << 10;

/// The ring, and the values that its entries refer to.
pub(crate) struct Ring {
    ring: IoUring,
    pending: ManuallyDrop<Slots<Pending>>,
    /// Entries that did not fit into the submission queue.
    backlog: VecDeque<squeue::Entry>,
    files: FileTable,
    /// Indices of registered buffers.
    buffers: FileTable,
    /// Whether buffers are registered: not if the kernel has no such table (before Linux 5.19), nor
    /// when the process may not lock more memory (`RLIMIT_MEMLOCK`), until some of it is freed.
    registers: bool,
    /// Disks in the file table.
    disks: Vec<(sync::Weak<Export>, Weak<[FixedFile]>)>,
    inbox: Arc<Inbox>,
    wake_fd: Rc<FixedFile>,
}

enum Pending {
    Disk(Key, Job, Rc<[FixedFile]>),
    Receive(Box<Receiving>),
    Send(Box<Sending>),
    Incoming(Box<Incoming>, Rc<FixedFile>),
    Outgoing(Box<Outgoing>, Rc<FixedFile>),
    Wake(Box<Wake>),
}

/// A completed operation.
#[derive(Debug)]
pub(crate) enum Done {
    /// A disk request of this connection.
    Disk(Key, Job),
    /// Received bytes, or the end of the stream (`Ok(0)`).
    Received(Box<Receiving>, Result<usize, Errno>),
    /// Sent bytes. What remains of the batch must be sent again.
    Sent(Box<Sending>, Result<usize, Errno>),
    /// A part of a transfer from a USB endpoint.
    Incoming(Box<Incoming>, Result<usize, Errno>),
    /// A part of a message to a USB endpoint.
    Outgoing(Box<Outgoing>, Result<usize, Errno>),
    /// The inbox has a message.
    Wake,
}

impl Ring {
    /// Opens a ring for this thread, which also waits for the eventfd of `inbox`.
    ///
    /// # Errors
    /// Fails if the kernel has no io_uring, forbids it, or lacks a required operation or feature.
    pub(crate) fn open(inbox: Arc<Inbox>) -> io::Result<Self> {
        let ring = build()?;
        let parameters = ring.params();
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let complete = parameters.is_feature_ext_arg()
            && parameters.is_feature_nodrop()
            && parameters.is_feature_submit_stable()
            && parameters.is_feature_fast_poll()
            && REQUIRED_OPS.iter().all(|&code| probe.is_supported(code));
        if !complete {
            return Err(Errno::OPNOTSUPP.into());
        }
        // Since Linux 5.15; before, the kernel's default limit applies.
        let _ = ring.submitter().register_iowq_max_workers(&mut [DISK_THREADS, 0]);
        // Before the restrictions, which deny it.
        let registers = ring.submitter().register_buffers_sparse(BUFFERS).is_ok();
        let buffers = FileTable::new(BUFFERS);
        let files = restrict(&ring)?;
        let wake_fd = Rc::new(put(&ring, &files, inbox.as_fd())?);
        let (pending, backlog, disks) = (ManuallyDrop::default(), VecDeque::new(), Vec::new());
        Ok(Self { ring, pending, backlog, files, buffers, registers, disks, inbox, wake_fd })
    }

    /// Adds a file to the table. It is removed when the last reference is dropped.
    ///
    /// # Errors
    /// Fails if the table is full or memory cannot be allocated.
    pub(crate) fn put(&mut self, file: BorrowedFd<'_>) -> io::Result<Rc<FixedFile>> {
        self.sweep();
        put(&self.ring, &self.files, file).map(Rc::new)
    }

    /// Returns the indices of the files of a disk in the table, which are added if necessary. They
    /// are in the order of [`Backing::descriptors`](export::Backing::descriptors).
    ///
    /// # Errors
    /// As for [`Ring::put`].
    pub(crate) fn put_disk(&mut self, disk: &Arc<Export>) -> io::Result<Rc<[FixedFile]>> {
        self.disks.retain(|(_, files)| files.strong_count() > 0);
        let known = self.disks.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(disk));
        if let Some(files) = known.and_then(|(_, files)| files.upgrade()) {
            return Ok(files);
        }
        self.sweep();
        let descriptors = disk.backing().descriptors();
        let files = descriptors.map(|file| put(&self.ring, &self.files, file.as_fd()));
        let files = files.collect::<io::Result<Rc<[FixedFile]>>>()?;
        self.disks.push((Arc::downgrade(disk), Rc::downgrade(&files)));
        Ok(files)
    }

    /// Removes files without references from the table.
    fn sweep(&mut self) {
        let clear = |index| self.ring.submitter().register_files_update(index, &[-1]).is_ok();
        self.files.sweep(clear);
        let nothing = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }];
        // SAFETY: removes a registration, and refers to no memory.
        let clear = |index| unsafe { self.update_buffer(index, &nothing) }.is_ok();
        if self.buffers.sweep(clear) {
            // Less memory is locked than before.
            self.registers = true;
        }
    }

    /// Replaces the registration with this index.
    ///
    /// # Safety
    /// Entries may use the index only for memory that a value in `pending` owns.
    unsafe fn update_buffer(&self, index: u32, memory: &[iovec; 1]) -> io::Result<()> {
        // SAFETY: the kernel pins the pages, and uses them for entries only, as the caller promises.
        unsafe { self.ring.submitter().register_buffers_update(index, memory, None) }
    }

    /// Registers the memory of the request's buffer, if it is large and not yet registered.
    fn register(&mut self, job: &mut Job) {
        let Some((memory, kept)) = job.buffer_mut().and_then(Buffer::memory_mut) else { return };
        if !self.registers || memory.len() < MIN_REGISTERED || kept.is_some() {
            return;
        }
        let Some(index) = self.buffers.allocate() else { return };
        // SAFETY: only `disk_entry` uses the index, for memory of the job in `pending`.
        if unsafe { self.update_buffer(index.index(), &[receiving::vector(memory)]) }.is_ok() {
            *kept = Some(Rc::new(index));
        } else {
            self.registers = false;
        }
    }

    /// Starts or continues a disk request of the connection `owner`; `files` are those of its
    /// disk. Returned by [`Ring::reap`] when complete.
    pub(crate) fn carry_out(&mut self, owner: Key, mut job: Job, files: Rc<[FixedFile]>) {
        self.register(&mut job);
        let key = self.pending.insert(Pending::Disk(owner, job, files));
        self.start(key);
    }

    /// Starts a receive.
    pub(crate) fn receive(&mut self, receiving: Box<Receiving>) {
        let key = self.pending.insert(Pending::Receive(receiving));
        self.start(key);
    }

    /// Starts to receive a part of a transfer from a USB endpoint. The kernel runs it on a thread of its
    /// own: such files can neither be polled nor read without waiting.
    pub(crate) fn receive_part(&mut self, incoming: Box<Incoming>, file: Rc<FixedFile>) {
        let key = self.pending.insert(Pending::Incoming(incoming, file));
        self.start(key);
    }

    /// Starts to send a part of a message to a USB endpoint, as [`Ring::receive_part`].
    pub(crate) fn send_part(&mut self, outgoing: Box<Outgoing>, file: Rc<FixedFile>) {
        let key = self.pending.insert(Pending::Outgoing(outgoing, file));
        self.start(key);
    }

    /// Starts to send the rest of the batch.
    pub(crate) fn send(&mut self, sending: Box<Sending>) {
        let key = self.pending.insert(Pending::Send(sending));
        self.start(key);
    }

    /// Sends from the batch what the socket takes immediately, by a system call. Returns the number
    /// of bytes.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if the socket takes none now; any other if the connection is broken.
    pub(crate) fn send_now(sending: &mut Sending) -> Result<usize, Errno> {
        let (socket, header) = sending.message();
        // SAFETY: the header, its vectors and the memory they refer to belong to `sending`, which
        // is borrowed until the call returns.
        let sent =
            unsafe { libc::sendmsg(socket, header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        let result = usize::try_from(sent)
            .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
        sending.ended(result);
        result
    }

    /// Returns whether a receive can wait for more than one byte. Kernels without the needed
    /// poll-first flag also lack the setup flag that is checked here.
    pub(crate) fn can_coalesce(&self) -> bool {
        self.ring.params().is_setup_single_issuer()
    }

    /// Sets the number of bytes that receives on a socket wait for (`SO_RCVLOWAT`), if
    /// [supported](Ring::can_coalesce). Receives in flight are re-evaluated.
    pub(crate) fn set_low_water_mark(socket: BorrowedFd<'_>, bytes: usize) {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(1);
        let (value, len) = ((&raw const bytes).cast(), size_of_val(&bytes));
        let (fd, len) = (socket.as_raw_fd(), u32::try_from(len).unwrap_or(0));
        // SAFETY: the value is an integer of this length, which is read before the call returns. A
        // failure leaves the mark as it was.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, len) };
    }

    /// Starts to wait for the eventfd of the inbox.
    pub(crate) fn arm_wake(&mut self) {
        let (inbox, file) = (self.inbox.clone(), self.wake_fd.clone());
        let wake = Wake { count: [0; 8], _inbox: inbox, file };
        let key = self.pending.insert(Pending::Wake(Box::new(wake)));
        self.start(key);
    }

    fn start(&mut self, key: Key) {
        let Some(pending) = self.pending.get_mut(key) else { return };
        let entry = match pending {
            Pending::Disk(_, job, files) => disk_entry(job, files),
            Pending::Receive(receiving) => receiving.entry(),
            Pending::Send(sending) => sending.entry(),
            Pending::Incoming(incoming, file) => {
                let place = incoming.place();
                let (memory, len) = (place.as_mut_ptr(), length(place));
                opcode::Read::new(Fixed(file.index()), memory, len).build()
            }
            Pending::Outgoing(outgoing, file) => {
                let part = outgoing.place();
                opcode::Write::new(Fixed(file.index()), part.as_ptr(), length(part)).build()
            }
            Pending::Wake(wake) => wake.entry(),
        };
        self.push(entry.user_data(key.number()));
    }

    /// Queues an entry. Its `user_data` is the key of the value that owns everything it refers to.
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        // An error will recur, and be reported, at the next `enter`.
        let _ = self.enter(None);
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: everything the entry refers to is owned by a value in `pending` until the
        // completion is reaped, see above.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Submits the queued entries and lets the kernel run deferred work. With a `timeout`, also
    /// waits that long for a completion.
    ///
    /// # Errors
    /// The error of the system call. An interrupted or expired wait is not an error.
    pub(crate) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.sweep();
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        let wait = timeout.filter(|_| self.backlog.is_empty());
        let result = match wait {
            None => self.ring.submitter().submit(),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timeout);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        };
        match result.map_err(|error| Errno::from_io_error(&error)) {
            // EBUSY and EAGAIN: completions must be reaped first.
            Ok(_) | Err(Some(Errno::INTR | Errno::TIME | Errno::BUSY | Errno::AGAIN)) => Ok(()),
            Err(errno) => Err(errno.unwrap_or(Errno::IO).into()),
        }
    }

    /// Returns what makes every later [`Ring::enter`] fail, called on any thread while the ring exists.
    #[cfg(test)]
    pub(crate) fn breaker(&self) -> impl FnOnce() + Send + use<> {
        let ring = self.ring.as_raw_fd();
        move || {
            let null = std::fs::File::open("/dev/null").unwrap();
            // SAFETY: replaces the descriptor, which stays open.
            assert_ne!(unsafe { libc::dup2(null.as_raw_fd(), ring) }, -1);
        }
    }

    /// Returns whether entries have not been submitted.
    pub(crate) fn has_unsubmitted(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    /// Returns whether there is a completion. Reads memory only.
    pub(crate) fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Returns whether the kernel has deferred work, to be run by [`Ring::enter`]. Reads memory
    /// only.
    pub(crate) fn has_task_work(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Returns the next completed operation.
    pub(crate) fn reap(&mut self) -> Option<Done> {
        loop {
            let entry = self.ring.completion().next()?;
            if let Some(done) = self.settle(Key::from_number(entry.user_data()), entry.result()) {
                return Some(done);
            }
        }
    }

    fn settle(&mut self, key: Key, result: i32) -> Option<Done> {
        let result = usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
        let again = match self.pending.get_mut(key)? {
            Pending::Disk(_, job, _) => {
                job.advance(result);
                job.result().is_none() && !job.needs_blocking_op()
            }
            Pending::Receive(_) | Pending::Send(_) => {
                matches!(result, Err(Errno::INTR | Errno::AGAIN))
            }
            Pending::Incoming(..) | Pending::Outgoing(..) | Pending::Wake(_) => false,
        };
        if again {
            self.start(key);
            return None;
        }
        Some(match self.pending.remove(key)? {
            Pending::Disk(owner, job, _) => Done::Disk(owner, job),
            Pending::Receive(receiving) => Done::Received(receiving, result),
            Pending::Send(mut sending) => {
                sending.ended(result);
                Done::Sent(sending, result)
            }
            Pending::Incoming(incoming, _) => Done::Incoming(incoming, result),
            Pending::Outgoing(outgoing, _) => Done::Outgoing(outgoing, result),
            Pending::Wake(_) => Done::Wake,
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.pending.is_empty() {
            // Otherwise the kernel releases the files up to a second after the ring is closed
            // (Linux 6.1), and the disks appear to be in use until then.
            let _ = self.ring.submitter().unregister_files();
            // SAFETY: dropped here and nowhere else; nothing is in flight, so the kernel uses none
            // of it.
            unsafe { ManuallyDrop::drop(&mut self.pending) };
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} under way)", self.pending.len())
    }
}

fn put(ring: &IoUring, files: &FileTable, file: BorrowedFd<'_>) -> io::Result<FixedFile> {
    let place = files.allocate().ok_or(Errno::MFILE)?;
    ring.submitter().register_files_update(place.index(), &[file.as_raw_fd()])?;
    Ok(place)
}

/// Returns the length as a 32-bit number. A buffer above 4 GiB would be transferred in parts.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

struct Wake {
    count: [u8; 8],
    /// Keeps the eventfd open.
    _inbox: Arc<Inbox>,
    file: Rc<FixedFile>,
}

impl Wake {
    fn entry(&mut self) -> squeue::Entry {
        let fd = Fixed(self.file.index());
        opcode::Read::new(fd, self.count.as_mut_ptr(), length(&self.count)).build()
    }
}

/// Returns a message header for `vectors`.
fn header(vectors: &mut [iovec]) -> msghdr {
    // SAFETY: integers and pointers, for which zero is a valid value.
    let mut header: msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len() as _;
    header
}

#[cfg(test)]
mod test {
    use export::{Account, Geometry, Grant, Identity, Op, Pool, Request, Ticket};
    use io_uring::types::Fd;
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::disk::registration;
    use super::*;

    /// Returns a ring, or `None` where io_uring is not available.
    fn ring() -> Option<Ring> {
        Ring::open(Inbox::new().unwrap()).ok()
    }

    /// Returns the result of an entry.
    fn result(ring: &mut Ring, entry: squeue::Entry) -> i32 {
        // SAFETY: the entries of these tests refer to static memory, or none.
        unsafe { ring.ring.submission().push(&entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        ring.ring.completion().next().unwrap().result()
    }

    /// Files of a ring that was dropped are released immediately, so that a disk can be opened
    /// exclusively.
    #[test]
    fn dropped_ring_holds_no_file() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(mut ring) = ring() else { return };
        let (ours, theirs) = io::pipe().unwrap();
        let file = ring.put(theirs.as_fd()).unwrap();
        drop(theirs);
        drop(ring);
        // Without unregistering, the kernel takes tens of milliseconds, sometimes a second; the
        // test allows one clock tick.
        let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let mut end = [PollFd::new(&ours, PollFlags::empty())];
        assert_eq!(poll(&mut end, Some(&tick)), Ok(1));
        drop(file);
    }

    /// Reads 64 KiB through the ring. Returns the buffer.
    fn read(ring: &mut Ring, grant: &Grant, account: &Account) -> Buffer {
        let (op, buffer, ticket) = (Op::Read, account.take(1 << 16), Ticket::new(0));
        let request = Request { op, lba: 0, blocks: 128, buffer, ticket };
        let files = ring.put_disk(grant.export()).unwrap();
        ring.carry_out(Key::from_number(0), Job::new(grant.admit(request).unwrap()), files);
        loop {
            ring.enter(Some(Duration::from_secs(5))).unwrap();
            if let Some(Done::Disk(_, job)) = ring.reap() {
                return job.finish().outcome.buffer.unwrap();
            }
        }
    }

    #[test]
    fn large_payload_buffers_are_registered_once() {
        let Some(mut ring) = ring().filter(|ring| ring.registers) else { return };
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&disk, &[7; 1 << 16]).unwrap();
        let geometry = Geometry::new(512, 512).unwrap();
        let export =
            Export::new("disk", "nqn", Identity::default(), geometry, 1 << 16, disk.into());
        let (grant, pool) = (Grant::new(Arc::new(export)), Pool::new(1 << 20));
        let account = pool.open();
        for _ in 0..2 {
            let mut buffer = read(&mut ring, &grant, &account);
            assert!(buffer.bytes().iter().all(|&byte| byte == 7));
            assert_eq!(registration(&mut buffer).unwrap().0, 0);
        }
        // The index is free again once the memory is.
        assert_eq!(ring.buffers.allocate().unwrap().index(), 1);
        pool.trim();
        ring.enter(None).unwrap();
        assert_eq!(ring.buffers.allocate().unwrap().index(), 0);
    }

    static BYTES: [u8; 4] = *b"data";

    /// X45, the ring's part: operations that the engine does not need are denied.
    #[test]
    fn x45_ring_denies_operations_it_does_not_need() {
        let Some(mut ring) = ring() else { return };
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
        let file = ring.put(disk.as_fd()).unwrap();
        let write = |file| opcode::Write::new(file, BYTES.as_ptr(), 4).build();
        assert_eq!(result(&mut ring, write(Fixed(file.index()))), 4);
        let denied = -Errno::ACCESS.raw_os_error();
        let entries = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(Fixed(file.index()), std::ptr::null(), 0).build(),
            opcode::Statx::new(Fd(0), c"".as_ptr(), std::ptr::null_mut()).build(),
            // An open descriptor that is not in the table.
            opcode::Write::new(Fd(disk.as_raw_fd()), BYTES.as_ptr(), 4).build(),
        ];
        for entry in entries {
            assert_eq!(result(&mut ring, entry), denied);
        }
        let empty = Fixed(file.index() + 1);
        let bad = -Errno::BADF.raw_os_error();
        assert_eq!(result(&mut ring, write(empty)), bad);
        let error = ring.ring.submitter().register_eventfd(disk.as_raw_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        // A file without references is removed by the next call.
        let place = Fixed(file.index());
        drop(file);
        ring.enter(None).unwrap();
        assert_eq!(result(&mut ring, write(place)), bad);
    }
}
