//! Messages between the two processes: integers are little-endian, and lengths precede the data.
//! The child is untrusted: its messages are validated like the disk's contents.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;

use filesystem::{Loaders, RangeOwner, Ranges, Survey, Usage};
use linux::gpt::{Edit, Fitted, Shape};

mod survey;
mod usage;

use usage::{owners, put_owners, put_usage, usage};

/// Maximum size of one read.
pub(super) const MAX_READ: usize = 1 << 20;
/// Maximum number of ranges, parts and owners in a reply, and length of a path.
const MAX_COUNT: u32 = 1 << 23;
const MAX_PATH: usize = 64 << 10;
/// Maximum size of a message: as much as the maximum number of ranges needs.
const MAX_MESSAGE: u64 = 256 << 20;
/// Smaller gaps between two ranges are merged.
const MIN_GAP: u64 = 64 << 10;

/// A request to the child.
#[derive(Debug)]
pub(super) struct Request {
    /// Size of the disk.
    pub(super) bytes: u64,
    pub(super) task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    /// The allocated ranges.
    Usage,
    /// The owners of these ranges.
    Owners(Ranges),
    /// The contents; the logical block size, 0 if unknown.
    Survey(u32),
    /// The patches that adapt the partition table of a disk with this block size to another disk,
    /// with further changes.
    Fit(u32, Shape, Edit),
    /// The boot loaders on the EFI system partition.
    Loaders,
}

/// A message from the child.
#[derive(Debug)]
pub(super) enum Message {
    /// A read request.
    Read { offset: u64, len: usize },
    /// The final reply.
    Reply(Reply),
}

#[derive(Debug)]
pub(super) enum Reply {
    Findings(Findings),
    /// A sentence.
    Error(String),
}

/// The results of the tasks.
#[derive(Debug)]
pub(super) enum Findings {
    Usage(Usage),
    Owners(BTreeSet<RangeOwner>),
    Survey(Survey),
    /// The patches, or why the table cannot be adapted.
    Fit(Result<Fitted, String>),
    Loaders(Option<Loaders>),
}

impl Request {
    pub(super) fn emit(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = self.bytes.to_le_bytes().to_vec();
        match &self.task {
            Task::Usage => bytes.push(0),
            Task::Owners(ranges) => {
                bytes.push(1);
                put_ranges(&mut bytes, ranges.iter());
            }
            Task::Survey(block) => {
                bytes.push(2);
                bytes.extend(block.to_le_bytes());
            }
            Task::Fit(block, shape, edit) => {
                bytes.push(3);
                bytes.extend(block.to_le_bytes());
                bytes.extend(shape.block.to_le_bytes());
                bytes.extend(shape.bytes.to_le_bytes());
                bytes.push(u8::from(edit.expand));
                bytes.push(u8::from(edit.ids.is_some()));
                bytes.extend(edit.ids.unwrap_or_default());
            }
            Task::Loaders => bytes.push(4),
        }
        to.write_all(&bytes)
    }

    pub(super) fn parse(from: &mut impl Read) -> io::Result<Self> {
        let bytes = u64_value(from)?;
        let task = match u8_value(from)? {
            0 => Task::Usage,
            1 => Task::Owners(ranges(from)?),
            2 => Task::Survey(u32_value(from)?),
            3 => {
                let (block, to) = (u32_value(from)?, u32_value(from)?);
                let to = Shape { block: to, bytes: u64_value(from)? };
                let (expand, has_ids) = (u8_value(from)? != 0, u8_value(from)? != 0);
                let mut ids = [0; 16];
                from.read_exact(&mut ids)?;
                Task::Fit(block, to, Edit { expand, ids: has_ids.then_some(ids) })
            }
            4 => Task::Loaders,
            _ => return Err(invalid()),
        };
        Ok(Self { bytes, task })
    }
}

impl Message {
    pub(super) fn emit(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        match self {
            Self::Read { offset, len } => {
                bytes.push(0);
                bytes.extend(offset.to_le_bytes());
                bytes.extend((*len as u64).to_le_bytes());
            }
            Self::Reply(Reply::Error(sentence)) => {
                bytes.push(1);
                put_text(&mut bytes, sentence);
            }
            Self::Reply(Reply::Findings(Findings::Usage(usage))) => {
                bytes.push(2);
                put_usage(&mut bytes, usage);
            }
            Self::Reply(Reply::Findings(Findings::Owners(found))) => {
                bytes.push(3);
                put_owners(&mut bytes, found);
            }
            Self::Reply(Reply::Findings(Findings::Survey(survey))) => {
                bytes.push(4);
                survey::put(&mut bytes, survey);
            }
            Self::Reply(Reply::Findings(Findings::Fit(Ok(fitted)))) => {
                bytes.push(5);
                survey::put_fitted(&mut bytes, fitted);
            }
            Self::Reply(Reply::Findings(Findings::Fit(Err(reason)))) => {
                bytes.push(6);
                put_text(&mut bytes, reason);
            }
            Self::Reply(Reply::Findings(Findings::Loaders(loaders))) => {
                bytes.push(7);
                survey::put_loaders(&mut bytes, loaders.as_ref());
            }
        }
        to.write_all(&bytes)
    }

    pub(super) fn parse(from: &mut impl Read) -> io::Result<Self> {
        let from = &mut from.take(MAX_MESSAGE);
        Ok(match u8_value(from)? {
            0 => {
                let (offset, len) = (u64_value(from)?, u64_value(from)?);
                Self::Read { offset, len: usize::try_from(len).unwrap_or(MAX_READ) }
            }
            1 => Self::Reply(Reply::Error(text(from)?)),
            2 => Self::Reply(Reply::Findings(Findings::Usage(usage(from)?))),
            3 => Self::Reply(Reply::Findings(Findings::Owners(owners(from)?))),
            4 => Self::Reply(Reply::Findings(Findings::Survey(survey::parse(from)?))),
            5 => Self::Reply(Reply::Findings(Findings::Fit(Ok(survey::parse_fitted(from)?)))),
            6 => Self::Reply(Reply::Findings(Findings::Fit(Err(text(from)?)))),
            7 => Self::Reply(Reply::Findings(Findings::Loaders(survey::parse_loaders(from)?))),
            _ => return Err(invalid()),
        })
    }
}

/// Sends data that were read, or that the read failed.
pub(super) fn send_data(to: &mut impl Write, got: io::Result<&[u8]>) -> io::Result<()> {
    match got {
        Ok(bytes) => {
            to.write_all(&(bytes.len() as u64).to_le_bytes())?;
            to.write_all(bytes)
        }
        Err(_) => to.write_all(&u64::MAX.to_le_bytes()),
    }
}

/// Receives data.
pub(super) fn receive_data(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let len = u64_value(from)?;
    // An I/O error of the disk, from which the parser may continue.
    let unreadable = || io::Error::from(rustix::io::Errno::IO);
    let len = usize::try_from(len).ok().filter(|_| len != u64::MAX).ok_or_else(unreadable)?;
    from.read_exact(into.get_mut(..len).ok_or_else(invalid)?)?;
    Ok(len)
}

/// Merges ranges with small gaps.
fn joined(ranges: &Ranges) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut all = ranges.iter().peekable();
    std::iter::from_fn(move || {
        let mut range = all.next()?;
        while let Some(next) = all.next_if(|next| next.start - range.end < MIN_GAP) {
            range.end = next.end;
        }
        Some(range)
    })
}

fn put_ranges(bytes: &mut Vec<u8>, ranges: impl Iterator<Item = Range<u64>>) {
    let at = bytes.len();
    put_count(bytes, 0);
    let mut count = 0_u32;
    for range in ranges {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.end.to_le_bytes());
        count = count.saturating_add(1);
    }
    bytes.splice(at..at + 4, count.to_le_bytes());
}

fn ranges(from: &mut impl Read) -> io::Result<Ranges> {
    Ok(list(from, MAX_COUNT, |from| Ok(u64_value(from)?..u64_value(from)?))?.into_iter().collect())
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = text.get(..text.floor_char_boundary(MAX_PATH)).unwrap_or_default();
    put_count(bytes, text.len());
    bytes.extend(text.as_bytes());
}

/// Strips control characters: the child is untrusted.
fn text(from: &mut impl Read) -> io::Result<String> {
    let len = usize::try_from(u32_value(from)?).ok().filter(|len| *len <= MAX_PATH);
    let mut bytes = vec![0; len.ok_or_else(invalid)?];
    from.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect())
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn u32_value(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads a count and as many elements, at most `max`.
fn list<R: Read, T>(
    from: &mut R,
    max: u32,
    mut one: impl FnMut(&mut R) -> io::Result<T>,
) -> io::Result<Vec<T>> {
    let count = u32_value(from)?;
    if count > max {
        return Err(invalid());
    }
    (0..count).map(|_| one(from)).collect()
}

fn u8_value(from: &mut impl Read) -> io::Result<u8> {
    let mut bytes = [0; 1];
    from.read_exact(&mut bytes)?;
    Ok(u8::from_le_bytes(bytes))
}

fn u64_value(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn invalid() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it makes no sense")
}

#[cfg(test)]
mod test {
    use super::*;
    use linux::gpt::{Expanded, Patch};

    use filesystem::{Content, OpaqueReason, Owner, Part, PartKind};

    #[test]
    fn survey_and_patches_round_trip() {
        let content = Content {
            partition: 1,
            kind: "vfat".to_owned(),
            label: Some("EFI".to_owned()),
            unit: Some(512),
        };
        let survey = Survey {
            table: Some(linux::partition::Scheme::Gpt),
            block: 4096,
            partitions: 1,
            backup_end: Some(1 << 40),
            contents: vec![content.clone(), Content { label: None, unit: None, ..content }],
            empty: false,
        };
        let said = Message::Reply(Reply::Findings(Findings::Survey(survey.clone())));
        let Message::Reply(Reply::Findings(Findings::Survey(heard))) = back(&said) else {
            panic!("a survey")
        };
        assert_eq!(heard, survey);
        let patches = vec![Patch { offset: 4096, bytes: vec![1, 2, 3] }];
        for expanded in [None, Some(Expanded { number: 7, from: 1 << 20, to: 1 << 40 })] {
            let fitted = Fitted { patches: patches.clone(), expanded };
            let said = Message::Reply(Reply::Findings(Findings::Fit(Ok(fitted.clone()))));
            let Message::Reply(Reply::Findings(Findings::Fit(heard))) = back(&said) else {
                panic!("patches")
            };
            assert_eq!(heard, Ok(fitted));
        }
    }

    #[test]
    fn loaders_round_trip() {
        let loaders = Loaders {
            partition: 1,
            has_fallback: true,
            paths: vec![r"\EFI\debian\shimx64.efi".to_owned(), r"\EFI\a\grubx64.efi".to_owned()],
        };
        for loaders in [None, Some(loaders)] {
            let said = Message::Reply(Reply::Findings(Findings::Loaders(loaders.clone())));
            let Message::Reply(Reply::Findings(Findings::Loaders(heard))) = back(&said) else {
                panic!("loaders")
            };
            assert_eq!(heard, loaders);
        }
    }

    fn back(said: &Message) -> Message {
        let mut bytes = Vec::new();
        said.emit(&mut bytes).unwrap();
        let mut from = &bytes[..];
        let back = Message::parse(&mut from).unwrap();
        assert!(from.is_empty());
        // Truncated anywhere it is an error, never a panic.
        (0..bytes.len()).for_each(|cut| assert!(Message::parse(&mut &bytes[..cut]).is_err()));
        back
    }

    #[test]
    fn messages_round_trip() {
        let used: Ranges = [0..10, 20..30, 1 << 20..2 << 20].into_iter().collect();
        let parts = vec![
            Part { number: 1, range: 0..5, kind: PartKind::Ntfs },
            Part { number: 7, range: 5..9, kind: PartKind::Opaque(OpaqueReason::Unclean) },
        ];
        let usage = Usage { used, parts: parts.clone() };
        let Message::Reply(Reply::Findings(Findings::Usage(usage))) =
            back(&Message::Reply(Reply::Findings(Findings::Usage(usage))))
        else {
            panic!("a usage")
        };
        // Small gaps count as used.
        let used: Vec<_> = usage.used.iter().collect();
        assert_eq!((used, usage.parts), (vec![0..30, 1 << 20..2 << 20], parts));
        let found = [Owner::File("/a\u{1b}[2J".to_owned()), Owner::Structure, Owner::Free];
        let found = found.map(|owner| RangeOwner { partition: 2, owner });
        let said = Message::Reply(Reply::Findings(Findings::Owners(found.into())));
        let Message::Reply(Reply::Findings(Findings::Owners(found))) = back(&said) else {
            panic!("owners")
        };
        assert_eq!(found.first().unwrap().owner, Owner::File("/a[2J".to_owned()));
    }

    #[test]
    fn compromised_child_cannot_write_escapes_or_fill_memory() {
        let said = Message::Reply(Reply::Error("\u{1b}[2Jno".to_owned()));
        let Message::Reply(Reply::Error(sentence)) = back(&said) else { panic!("trouble") };
        assert_eq!(sentence, "[2Jno");
        // Eight million owners, each with a path of the maximum length.
        let mut endless = Endless { said: 0 };
        assert!(Message::parse(&mut endless).is_err());
        assert!(endless.said <= MAX_MESSAGE);
    }

    struct Endless {
        said: u64,
    }

    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let one = [0, 0, 0, 0, 0, 0, 0, 1, 0];
            let head = [3, 0, 0, 0x80, 0];
            for u8_value in &mut *into {
                let at = usize::try_from(self.said).unwrap();
                let found = (9 + 0x1_0000) as usize;
                *u8_value = match at {
                    0..5 => head[at],
                    at => one.get((at - 5) % found).copied().unwrap_or(b'x'),
                };
                self.said += 1;
            }
            Ok(into.len())
        }
    }

    #[test]
    fn counts_are_bounded_before_what_they_count_is_read() {
        let survey = [&[4, 1][..], &[0; 17]].concat();
        for (head, max) in [(vec![5], 4_u32), (survey, 4096)] {
            for (count, kind) in
                [(max, ErrorKind::UnexpectedEof), (max + 1, ErrorKind::InvalidData)]
            {
                let bytes = [&head[..], &count.to_le_bytes()].concat();
                assert_eq!(Message::parse(&mut &bytes[..]).unwrap_err().kind(), kind, "{count}");
            }
        }
    }

    #[test]
    fn invalid_message_of_the_child_is_rejected() {
        assert!(Message::parse(&mut &[9][..]).is_err());
        assert!(Message::parse(&mut &[2, 0xff, 0xff, 0xff, 0xff][..]).is_err());
        assert!(Message::parse(&mut &[1, 0xff, 0xff, 0xff, 0x7f][..]).is_err());
        let unreadable = receive_data(&mut &[0xff; 8][..], &mut [0; 4]).unwrap_err();
        assert_eq!(unreadable.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        assert!(receive_data(&mut &[9, 0, 0, 0, 0, 0, 0, 0, 1][..], &mut [0; 4]).is_err());
    }
}
