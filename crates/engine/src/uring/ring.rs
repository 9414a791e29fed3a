//! An io_uring instance behind an interface without unsafe. It knows sockets and disk requests, and no session.
//!
//! # Who owns the memory that the kernel reads and writes
//!
//! A ring entry names memory by address, and the kernel uses it until the entry's completion is posted. So everything an
//! entry names must stay where it is, untouched, until then. This file has one rule for it: **what an entry names is
//! owned by a value in `pending` from before the entry is pushed until its completion is reaped.** Nothing
//! outside this file reaches a value while it is there, so nobody can touch, move or free what it owns:
//!
//! - a [`Job`] owns its request, and that owns the payload's buffer and the disk's descriptor. A buffer's pages are an
//!   allocation of their own, which stays when the `Job` itself is moved;
//! - a [`Receiving`] and a [`Sending`] are boxed; they own the message header and vectors that the entry names, the
//!   memory that the vectors name (the stage, a landing's buffer, the segments) and a share of the socket;
//! - a [`Bell`] owns the eight bytes that its eventfd is read into.
//!
//! The key of the value is the entry's `user_data`, and each entry has one completion: it finds its own value.
//! Dropping the ring while entries are under way would free what they name: then it is leaked instead.

#![allow(unsafe_code, reason = "the one file of the crate that hands addresses to the kernel")]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use libc::{iovec, msghdr};
use rustix::io::Errno;

use super::receiving::Receiving;
use super::sending::Sending;
use super::slots::{Key, Slots};
use crate::disk::{Call, Job};
use crate::mailbox::Mailbox;

/// Entries of the submission queue: a turn that has more to say enters the kernel more than once.
const ENTRIES: u32 = 512;

/// Entries of the completion queue. More completions than this at once are kept by the kernel, more slowly.
const COMPLETIONS: u32 = 8192;

/// Threads of the kernel that may wait for disks at once: several disks may hang before the others notice.
const DISK_THREADS: u32 = 64;

/// What the engine needs of the kernel. All are older than Linux 6.1.
const NEEDED: [u8; 7] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::Recv::CODE,
    opcode::RecvMsg::CODE,
    opcode::SendMsg::CODE,
];

/// The ring, and what its entries name.
pub(crate) struct Ring {
    ring: IoUring,
    pending: ManuallyDrop<Slots<Pending>>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
}

enum Pending {
    Disk(Key, Job),
    Receive(Box<Receiving>),
    Send(Box<Sending>),
    Bell(Box<Bell>),
}

/// Something that ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// A disk request of that connection.
    Disk(Key, Job),
    /// Bytes came, or none any more (`Ok(0)`).
    Received(Box<Receiving>, Result<usize, Errno>),
    /// That many bytes were sent; the rest of the batch is to be sent again.
    Sent(Box<Sending>, Result<usize, Errno>),
    /// The mailbox was written to.
    Bell,
}

impl Ring {
    /// Opens a ring for this thread.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or lacks a part that is needed.
    pub(crate) fn open() -> io::Result<Self> {
        let ring = build()?;
        let parameters = ring.params();
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let complete = parameters.is_feature_ext_arg()
            && parameters.is_feature_nodrop()
            && parameters.is_feature_submit_stable()
            && parameters.is_feature_fast_poll()
            && NEEDED.iter().all(|&code| probe.is_supported(code));
        if !complete {
            return Err(Errno::OPNOTSUPP.into());
        }
        // Only since Linux 5.15; without it, the kernel's own bound holds.
        let _ = ring.submitter().register_iowq_max_workers(&mut [DISK_THREADS, 0]);
        Ok(Self { ring, pending: ManuallyDrop::default(), backlog: VecDeque::new() })
    }

    /// Begins or continues a disk request of the connection `owner`. It comes back when it has ended.
    pub(crate) fn carry_out(&mut self, owner: Key, job: Job) {
        let key = self.pending.insert(Pending::Disk(owner, job));
        self.start(key);
    }

    /// Receives into the landing, if there is one, and the stage.
    pub(crate) fn receive(&mut self, receiving: Box<Receiving>) {
        let key = self.pending.insert(Pending::Receive(receiving));
        self.start(key);
    }

    /// Sends what the batch still holds.
    pub(crate) fn send(&mut self, sending: Box<Sending>) {
        let key = self.pending.insert(Pending::Send(sending));
        self.start(key);
    }

    /// Sends what the socket takes at once of the batch, without the ring. Gives how many bytes that is.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if it takes none now; else the connection is broken.
    pub(crate) fn send_now(sending: &mut Sending) -> Result<usize, Errno> {
        let (socket, header) = sending.message();
        // SAFETY: the header, its vectors and what they name belong to `sending`, which is borrowed until this returns.
        let sent =
            unsafe { libc::sendmsg(socket, header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        let Ok(sent) = usize::try_from(sent) else {
            return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
        };
        sending.sent(sent);
        Ok(sent)
    }

    /// Waits for the mailbox's bell.
    pub(crate) fn listen(&mut self, mailbox: Arc<Mailbox>) {
        let key = self.pending.insert(Pending::Bell(Box::new(Bell { count: [0; 8], mailbox })));
        self.start(key);
    }

    fn start(&mut self, key: Key) {
        let Some(pending) = self.pending.get_mut(key) else { return };
        let entry = match pending {
            Pending::Disk(_, job) => disk_entry(job),
            Pending::Receive(receiving) => receiving.entry(),
            Pending::Send(sending) => sending.entry(),
            Pending::Bell(bell) => bell.entry(),
        };
        self.push(entry.user_data(key.number()));
    }

    /// Takes an entry whose `user_data` is the key of the value that owns all that it names.
    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        // Whatever goes wrong here goes wrong again on the next entry into the kernel, and is told there.
        let _ = self.enter(None);
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: all that the entry names is owned by a value in `pending` until the completion is reaped, see above.
        unsafe { self.ring.submission().push(entry).is_ok() }
    }

    /// Tells the kernel what is to be done, and lets it finish what it can; with a `timeout`, waits that long for
    /// something to end.
    ///
    /// # Errors
    /// What the kernel says; an interrupted or expired wait is no error.
    pub(crate) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
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

    /// Whether entries wait to be told to the kernel.
    pub(crate) fn has_news(&mut self) -> bool {
        !self.backlog.is_empty() || !self.ring.submission().is_empty()
    }

    /// Whether something has ended. A look at memory.
    pub(crate) fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether the kernel has something that ends with the next [`Ring::enter`]. A look at memory.
    pub(crate) fn is_called(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// The next thing that ended.
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
            Pending::Disk(_, job) => {
                job.advance(result);
                job.result().is_none()
            }
            Pending::Receive(_) | Pending::Send(_) => {
                matches!(result, Err(Errno::INTR | Errno::AGAIN))
            }
            Pending::Bell(_) => false,
        };
        if again {
            self.start(key);
            return None;
        }
        Some(match self.pending.remove(key)? {
            Pending::Disk(owner, job) => Done::Disk(owner, job),
            Pending::Receive(receiving) => Done::Received(receiving, result),
            Pending::Send(mut sending) => {
                sending.sent(result.unwrap_or(0));
                Done::Sent(sending, result)
            }
            Pending::Bell(_) => Done::Bell,
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.pending.is_empty() {
            // SAFETY: dropped here and nowhere else; nothing is under way, so the kernel uses none of it.
            unsafe { ManuallyDrop::drop(&mut self.pending) };
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} under way)", self.pending.len())
    }
}

/// The newest ways that this kernel knows: work is done when this thread asks for it (Linux 6.1), or at least without
/// interrupting it (5.19), or as ever.
fn build() -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest.setup_cqsize(COMPLETIONS).setup_submit_all().setup_clamp();
    let oldest = newest.clone();
    newest.setup_coop_taskrun().setup_taskrun_flag();
    let middle = newest.clone();
    newest.setup_single_issuer().setup_defer_taskrun();
    let mut result = newest.build(ENTRIES);
    for older in [middle, oldest, IoUring::builder()] {
        match &result {
            Err(error) if Errno::from_io_error(error) == Some(Errno::INVAL) => {
                result = older.build(ENTRIES);
            }
            _ => break,
        }
    }
    result
}

fn disk_entry(job: &mut Job) -> squeue::Entry {
    let fd = Fd(job.admitted().export().as_fd().as_raw_fd());
    match job.call() {
        Call::Read { offset, into } => {
            opcode::Read::new(fd, into.as_mut_ptr(), length(into)).offset(offset).build()
        }
        Call::Write { offset, from, durable } => {
            opcode::Write::new(fd, from.as_ptr(), length(from))
                .offset(offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, len } => {
            let mode = i32::try_from(mode.bits()).unwrap_or(0);
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        }
    }
}

/// The length of a piece as the ring has it; one of 4 GiB would only be cut, and continued as any short transfer.
pub(super) fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

struct Bell {
    count: [u8; 8],
    mailbox: Arc<Mailbox>,
}

impl Bell {
    fn entry(&mut self) -> squeue::Entry {
        let fd = Fd(self.mailbox.as_fd().as_raw_fd());
        opcode::Read::new(fd, self.count.as_mut_ptr(), length(&self.count)).build()
    }
}

/// A message header that names `vectors`.
pub(super) fn header(vectors: &mut [iovec]) -> msghdr {
    // SAFETY: integers and pointers, for all of which zero is a value.
    let mut header: msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len() as _;
    header
}
