//! Examines the contents of a disk: allocated ranges, file owners, partition table. The data are
//! untrusted, so a process without privileges (`storagetm inspect`) parses them; it reads the disk
//! through a socket to this process.

mod child;
mod protocol;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use filesystem::{Loaders, RangeOwner, Ranges, Survey, Usage};
use linux::gpt::{Edit, Fitted, Patch, Shape};
use linux::medium::ReadAt;

pub(crate) use child::work;
use ipc::spawn;
use protocol::{Findings, MAX_READ, Message, Reply, Request, Task};

/// Timeout of the child's messages: it waits for nothing but this process.
const REPLY_TIMEOUT: Duration = Duration::from_secs(600);

/// Read budget: passes over the disk, minimum cost of a read, and a constant; so that a cyclic
/// structure on the disk cannot keep the child busy forever.
const MAX_PASSES: u64 = 4;
const MIN_READ_COST: u64 = 128;
const EXTRA_BYTES: u64 = 64 << 20;
/// After a failed read, reads are split at multiples of this, so that only unreadable data is
/// missing.
const PAGE: u64 = 4096;

/// Returns the allocated ranges of a disk of `bytes` bytes.
///
/// # Errors
/// Fails with a sentence if the disk cannot be read, or if the child exceeds a limit.
pub(crate) fn usage(disk: &dyn ReadAt, bytes: u64) -> Result<Usage, String> {
    match run_request(disk, &Request { bytes, task: Task::Usage })? {
        Findings::Usage(usage) => Ok(usage),
        _ => Err(NO_ANSWER.to_owned()),
    }
}

/// Returns the files and structures that `ranges` belong to.
///
/// # Errors
/// As [`usage`].
pub(crate) fn owners(
    disk: &dyn ReadAt,
    bytes: u64,
    ranges: &Ranges,
) -> Result<BTreeSet<RangeOwner>, String> {
    match run_request(disk, &Request { bytes, task: Task::Owners(ranges.clone()) })? {
        Findings::Owners(found) => Ok(found),
        _ => Err(NO_ANSWER.to_owned()),
    }
}

/// Returns the partition table and the contents of a disk; `block` is its logical block size, if
/// known.
///
/// # Errors
/// As [`usage`].
pub(crate) fn survey(disk: &dyn ReadAt, bytes: u64, block: Option<u32>) -> Result<Survey, String> {
    match run_request(disk, &Request { bytes, task: Task::Survey(block.unwrap_or(0)) })? {
        Findings::Survey(survey) => Ok(survey),
        _ => Err(NO_ANSWER.to_owned()),
    }
}

/// Returns the boot loaders on the EFI system partition of a disk, if it has one.
///
/// # Errors
/// As [`usage`].
pub(crate) fn loaders(disk: &dyn ReadAt, bytes: u64) -> Result<Option<Loaders>, String> {
    match run_request(disk, &Request { bytes, task: Task::Loaders })? {
        Findings::Loaders(loaders) => Ok(loaders),
        _ => Err(NO_ANSWER.to_owned()),
    }
}

/// Returns the patches that adapt the partition table of a disk of shape `from` to one of shape
/// `to`, with further changes, or the reason why it cannot be adapted.
///
/// # Errors
/// As [`usage`].
pub(crate) fn fit(
    disk: &dyn ReadAt,
    from: Shape,
    to: Shape,
    edit: Edit,
) -> Result<Result<Fitted, String>, String> {
    let task = Task::Fit(from.block, to, edit);
    match run_request(disk, &Request { bytes: from.bytes, task })? {
        Findings::Fit(Ok(fitted))
            if fitted.patches.iter().all(|patch| is_of_table(patch, from, to)) =>
        {
            Ok(Ok(fitted))
        }
        Findings::Fit(Err(reason)) => Ok(Err(reason)),
        _ => Err(NO_ANSWER.to_owned()),
    }
}

/// Maximum size of a partition table at each end of a disk.
const MAX_TABLE: u64 = 2 << 20;

/// Validates a patch from the child: it must lie at an end of the new disk, or erase the old
/// backup.
fn is_of_table(patch: &Patch, from: Shape, to: Shape) -> bool {
    let len = patch.bytes.len() as u64;
    let Some(end) = patch.offset.checked_add(len) else { return false };
    let at_end = end <= to.bytes && to.bytes.saturating_sub(patch.offset) <= MAX_TABLE;
    let blanks = end <= from.bytes && patch.bytes.iter().all(|byte| *byte == 0);
    len > 0 && len <= MAX_TABLE && (end <= MAX_TABLE || at_end || blanks)
}

const NO_ANSWER: &str = "the process that looks at the disk's contents gave no answer";

fn run_request(disk: &dyn ReadAt, request: &Request) -> Result<Findings, String> {
    let cannot = |error: io::Error| format!("the disk's contents cannot be looked at: {error}");
    let (mut child, socket) = spawn().map_err(cannot)?;
    let reply = serve_reads(&socket, disk, request);
    drop(socket);
    let _ = child.kill();
    let _ = child.wait();
    match reply {
        Ok(Reply::Findings(findings)) => Ok(findings),
        Ok(Reply::Error(sentence)) => Err(sentence),
        // The child ended, was killed, or sent an invalid message.
        Err(_) => Err(NO_ANSWER.to_owned()),
    }
}

/// Starts the child, with a socket that has timeouts.
fn spawn() -> io::Result<(Child, UnixStream)> {
    let (child, own) = spawn::with_socket("inspect")?;
    own.set_read_timeout(Some(REPLY_TIMEOUT))?;
    own.set_write_timeout(Some(REPLY_TIMEOUT))?;
    Ok((child, own))
}

/// Serves the child's reads until it replies.
fn serve_reads(mut socket: &UnixStream, disk: &dyn ReadAt, request: &Request) -> io::Result<Reply> {
    request.emit(&mut socket)?;
    let mut left = request.bytes.saturating_mul(MAX_PASSES).saturating_add(EXTRA_BYTES);
    let mut careful = false;
    loop {
        match Message::parse(&mut socket)? {
            Message::Reply(reply) => return Ok(reply),
            Message::Read { offset, len } => {
                let len = len.min(MAX_READ);
                // Every read has a minimum cost.
                let cost = (len as u64).max(MIN_READ_COST);
                left = left.checked_sub(cost).ok_or(ErrorKind::InvalidData)?;
                let mut bytes = vec![0; len];
                let page = usize::try_from(PAGE - offset % PAGE).unwrap_or(len).min(len);
                let mut read = |len: usize| match bytes.get_mut(..len) {
                    Some(bytes) if offset < request.bytes => disk.read_at(bytes, offset),
                    _ => Ok(0),
                };
                let mut got = read(if careful { page } else { len });
                if got.is_err() && !careful {
                    careful = true;
                    got = read(page);
                }
                protocol::send_data(
                    &mut socket,
                    got.map(|got| bytes.get(..got).unwrap_or_default()),
                )?;
            }
        }
    }
}

#[cfg(test)]
mod test {
    use std::thread;

    use super::*;

    struct Bytes(&'static [u8]);

    impl ReadAt for Bytes {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buffer, offset)
        }
    }

    /// Both sides connected directly, without a process.
    fn run_inspection(disk: &'static [u8], request: &Request) -> Reply {
        let (own, other) = UnixStream::pair().unwrap();
        let child = thread::spawn(move || child::run_inspection(&other));
        let reply = serve_reads(&own, &Bytes(disk), request).unwrap();
        child.join().unwrap().unwrap();
        reply
    }

    #[test]
    fn x44_a_process_that_reads_for_ever_is_given_up() {
        let (own, other) = UnixStream::pair().unwrap();
        let child = thread::spawn(move || {
            let mut other = &other;
            Request::parse(&mut other).unwrap();
            let mut into = [0; MAX_READ];
            while (Message::Read { offset: 0, len: MAX_READ }).emit(&mut other).is_ok() {
                if protocol::receive_data(&mut other, &mut into).is_err() {
                    break;
                }
            }
        });
        let request = Request { bytes: 4096, task: Task::Usage };
        let error = serve_reads(&own, &Bytes(&[7; 4096]), &request);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidData);
        drop(own);
        child.join().unwrap();
    }

    /// A disk with a GPT, with the page after the table unreadable.
    struct Failing(Vec<u8>);

    const BAD: std::ops::Range<u64> = 64 << 10..68 << 10;

    impl ReadAt for Failing {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            match offset < BAD.end && offset + buffer.len() as u64 > BAD.start {
                true => Err(io::Error::other("input/output error")),
                false => self.0[..].read_at(buffer, offset),
            }
        }
    }

    #[test]
    fn one_unreadable_page_does_not_hide_the_partition_table() {
        let mut disk = vec![0; 4 << 20];
        let start = linux::gpt::Gpt::new(4096, 1024, [1; 16], &[]).start();
        disk[..start.len()].copy_from_slice(&start);
        let (own, other) = UnixStream::pair().unwrap();
        let child = thread::spawn(move || child::run_inspection(&other));
        let request = Request { bytes: 4 << 20, task: Task::Survey(512) };
        let reply = serve_reads(&own, &Failing(disk), &request).unwrap();
        child.join().unwrap().unwrap();
        let Reply::Findings(Findings::Survey(survey)) = reply else { panic!("{reply:?}") };
        assert_eq!((survey.table, survey.block), (Some(linux::partition::Scheme::Gpt), 4096));
    }

    #[test]
    fn disk_without_file_system_is_all_used_and_unowned() {
        let disk: &'static [u8] = &[7; 1 << 20];
        let request = Request { bytes: 1 << 20, task: Task::Usage };
        let Reply::Findings(Findings::Usage(usage)) = run_inspection(disk, &request) else {
            panic!("a usage")
        };
        assert_eq!((usage.used, usage.parts.len()), (Ranges::of(0..1 << 20), 1));
        let request = Request { task: Task::Owners(Ranges::of(512..1024)), ..request };
        let Reply::Findings(Findings::Owners(found)) = run_inspection(disk, &request) else {
            panic!("owners")
        };
        let found: Vec<RangeOwner> = found.into_iter().collect();
        assert_eq!(found, [RangeOwner { partition: 0, owner: filesystem::Owner::Unknown }]);
    }
}
