//! Files of a disk: finds what the path of a request names, lists folders, and locates files.
//!
//! The parsers of `filesystem` read when they need it. Their calls are repeated until all that they need is in a
//! [`Cache`], and each reads a bounded part of the disk; so do requests in all. As the parsers run on the thread that serves
//! other connections, too, a search pauses after a bounded amount of work.

use std::ops::Range;
use std::sync::Arc;

use export::Export;
use filesystem::{
    Cursor, EntryKind, Extent, FileEntry, FileError, PartKind, Recognized, Refusal, Volume,
    partitions, recognize,
};

use crate::cache::{Cache, Incomplete};
use crate::layouts::Layout;
use crate::request::{Request, percent_decoded};
use crate::slots::Slot;

/// The most entries of a page, and the most bytes of their names.
const MAX_ENTRIES: usize = 500;
const MAX_NAMES: usize = 64 << 10;

/// The most partitions in a list.
pub(crate) const MAX_PARTITIONS: usize = 256;

/// The most disk requests, and the most work, until there is something to send.
const MAX_READS: u32 = 16 << 10;
const MAX_WORK: u64 = 512 << 20;

/// The work after which a search pauses, so that other connections are served: bytes that parsers read from the cache, and
/// that are read from the disk. A call of a parser is not interrupted; it reads [`MAX_COPIED`](crate::cache::MAX_COPIED)
/// bytes at most.
const TURN_WORK: u64 = 256 << 10;

/// What a call of a parser counts at least.
const CALL_WORK: u64 = 1 << 10;

/// Maximum number of requests for files at a time: each has a cache of a mebibyte.
pub(crate) const MAX_WALKS: usize = 16;

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Number of a partition; 0 for the whole disk. `None`: the list of partitions.
    pub(crate) partition: Option<u32>,
    /// The names on the path from the root directory.
    pub(crate) names: Vec<Vec<u8>>,
    /// Whether the path ends with a slash, as paths of folders do.
    pub(crate) has_slash: bool,
    /// Entries of the folder that earlier pages have.
    pub(crate) skip: usize,
}

/// Folders on a path, at most: a folder may contain itself, and each page has the path in each of its links.
const MAX_DEPTH: usize = 64;

/// Returns the disk and what on it a request is for; `None` if its path is not one of files.
pub(crate) fn target(request: &Request, exports: &[Arc<Export>]) -> Option<(Arc<Export>, Target)> {
    let parts: Option<Vec<_>> =
        request.raw_path.strip_prefix('/')?.split('/').map(percent_decoded).collect();
    let mut parts = parts?.into_iter();
    let (name, number) = (parts.next()?, parts.next()?);
    let export = exports.iter().find(|export| export.short.as_bytes() == name)?.clone();
    let mut names: Vec<_> = parts.collect();
    // The slash at the end of folders.
    let has_slash = names.pop_if(|name| name.is_empty()).is_some();
    if names.len() > MAX_DEPTH {
        return None;
    }
    let number = std::str::from_utf8(&number).ok()?;
    let is_plain = number.bytes().all(|digit| digit.is_ascii_digit());
    let partition = match number {
        "" if names.is_empty() => None,
        number => Some(number.parse().ok().filter(|_| is_plain)?),
    };
    let skip = request.query.strip_prefix("from=").and_then(|from| from.parse().ok()).unwrap_or(0);
    Some((export, Target { partition, names, has_slash, skip }))
}

/// A partition in the list.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) number: u32,
    pub(crate) bytes: u64,
    pub(crate) contents: Recognized,
}

/// A page of a folder.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub(crate) entries: Vec<FileEntry>,
    /// Entries of this page and earlier ones, if there are more.
    pub(crate) next: Option<usize>,
    pub(crate) is_clean: bool,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Found {
    Partitions(Vec<Partition>),
    Folder(Folder),
    /// A folder, whose path must end with a slash.
    FolderWithoutSlash,
    File(FileEntry),
    /// A part of the file, and whether it is the last one.
    Extents(Vec<Extent>, bool),
}

/// Why there is nothing yet.
#[derive(Debug)]
pub(crate) enum Pause {
    /// This part of the disk must be read first.
    Read(Range<u64>),
    /// Other connections are to be served first.
    Turn,
    Failed(FileError),
}

#[derive(Debug)]
enum State {
    Start,
    Partitions {
        left: Vec<(u32, Range<u64>)>,
        done: Vec<Partition>,
    },
    Identify(u32, Range<u64>),
    Open(PartKind, Range<u64>),
    /// Looks for the name at this depth.
    Find {
        depth: usize,
        folder: FileEntry,
        from: Cursor,
        similar: Option<FileEntry>,
    },
    Check {
        depth: usize,
        entry: FileEntry,
    },
    List(List),
    Locate {
        file: FileEntry,
        from: Cursor,
        wanted: Range<u64>,
    },
    Done,
}

/// A page that is being made.
#[derive(Debug)]
struct List {
    folder: FileEntry,
    /// Where the next entries are.
    from: Option<Cursor>,
    /// The entries that are known, the next one last.
    more: Vec<FileEntry>,
    /// Number of entries before the next one.
    seen: usize,
    /// Bytes of the names on the page.
    names: usize,
    found: Folder,
}

/// What a path leads to.
enum Checked {
    Next(State),
    Found(Found),
}

/// The search for what a request is for.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) request: Request,
    pub(crate) target: Target,
    /// The entity tag of the disk.
    pub(crate) tag: Option<String>,
    /// The number of the disk request in flight, and what it reads.
    pub(crate) reading: Option<(u32, Range<u64>)>,
    /// What is known of the disk.
    pub(crate) layout: Layout,
    /// Whether a page was made, which waits for memory.
    pub(crate) has_page: bool,
    cache: Cache,
    bytes: u64,
    volume: Option<Volume>,
    state: State,
    /// Disk requests and work since there was something to send, and work in this turn.
    reads: u32,
    work: u64,
    turn: u64,
    is_pausing: bool,
    _slot: Slot,
}

impl Walk {
    /// Starts the search on a disk of `bytes`.
    pub(crate) fn new(request: Request, target: Target, bytes: u64, slot: Slot) -> Self {
        Self {
            request,
            target,
            tag: None,
            reading: None,
            layout: Layout::default(),
            has_page: false,
            cache: Cache::new(bytes),
            bytes,
            volume: None,
            state: State::Start,
            reads: 0,
            work: 0,
            turn: 0,
            is_pausing: false,
            _slot: slot,
        }
    }

    /// Goes on until something is found.
    ///
    /// # Errors
    /// A part of the disk must be read first, or there is nothing that can be read, or the turn is over.
    pub(crate) fn run(&mut self) -> Result<Found, Pause> {
        while self.turn < TURN_WORK {
            let before = self.cache.work();
            let result = self.step();
            self.count(self.cache.work() - before + CALL_WORK);
            if let Some(found) = result? {
                (self.reads, self.work) = (0, 0);
                return Ok(found);
            }
            if self.work >= MAX_WORK {
                return Err(Pause::Failed(Refusal::TooMuch.into()));
            }
        }
        self.is_pausing = true;
        Err(Pause::Turn)
    }

    /// Returns whether it waits for a new turn.
    pub(crate) fn is_pausing(&self) -> bool {
        self.is_pausing
    }

    /// Goes on in a new turn.
    pub(crate) fn begin_turn(&mut self) {
        (self.turn, self.is_pausing) = (0, false);
    }

    fn count(&mut self, work: u64) {
        (self.work, self.turn) = (self.work + work, self.turn + work);
    }

    /// Starts to look for the extents of these bytes of a file.
    pub(crate) fn locate(&mut self, file: FileEntry, wanted: Range<u64>) {
        self.state = State::Locate { file, from: Cursor::default(), wanted };
    }

    /// Adds a part of the disk; without `data` if it could not be read.
    pub(crate) fn read(&mut self, range: &Range<u64>, data: Option<&[u8]>) {
        self.reading = None;
        // The disk may have answered at once.
        self.count(range.end - range.start);
        self.cache.insert(range, data);
    }

    /// Makes one call of a parser. Returns what is found.
    fn step(&mut self) -> Result<Option<Found>, Pause> {
        let mut state = std::mem::replace(&mut self.state, State::Done);
        match self.next(&mut state) {
            Ok(found) => {
                self.state = state;
                Ok(found)
            }
            Err(Pause::Read(_)) if self.reads >= MAX_READS => {
                Err(Pause::Failed(Refusal::TooMuch.into()))
            }
            Err(pause) => {
                self.reads += u32::from(matches!(pause, Pause::Read(_)));
                self.state = state;
                Err(pause)
            }
        }
    }

    /// Advances the state by one call, and returns what is found. The state stays as it is if a part of the disk is
    /// missing.
    fn next(&mut self, state: &mut State) -> Result<Option<Found>, Pause> {
        match state {
            State::Start => *state = self.start()?,
            State::Partitions { left, done } => return self.recognize(left, done),
            State::Identify(number, place) => {
                let kind = self.attempt(|disk| Volume::identify(disk, place))?;
                self.layout.kinds.push((*number, kind));
                *state = State::Open(kind, place.clone());
            }
            State::Open(kind, place) => {
                let volume = self.attempt(|disk| Volume::open_as(disk, place, *kind))?;
                let entry = volume.root();
                self.volume = Some(volume);
                *state = State::Check { depth: 0, entry };
            }
            State::Find { depth, folder, from, similar } => {
                *state = self.find(*depth, folder, from, similar.as_ref())?;
            }
            State::Check { depth, entry } => match self.check(*depth, entry)? {
                Checked::Next(next) => *state = next,
                Checked::Found(found) => return Ok(Some(found)),
            },
            State::List(list) => return self.list(list),
            State::Locate { file, from, wanted } => return self.extents(file, from, wanted),
            State::Done => return Err(Pause::Failed(Refusal::NotFound.into())),
        }
        Ok(None)
    }

    /// Calls a parser. What it returns counts only if nothing was missing.
    fn attempt<T>(&self, parse: impl FnOnce(&Cache) -> Result<T, FileError>) -> Result<T, Pause> {
        match self.cache.call(parse) {
            Ok(result) => result.map_err(Pause::Failed),
            Err(Incomplete::Missing(missing)) => Err(Pause::Read(missing)),
            Err(Incomplete::TooMuch) => Err(Pause::Failed(Refusal::TooMuch.into())),
        }
    }

    fn volume(&self) -> Result<&Volume, Pause> {
        self.volume.as_ref().ok_or_else(|| Pause::Failed(Refusal::NotFound.into()))
    }

    fn start(&mut self) -> Result<State, Pause> {
        let known = self.layout.partitions.clone();
        let mut all = match known {
            Some(all) => all,
            None => self.attempt(|disk| Ok(partitions(disk, self.bytes)?))?,
        };
        self.layout.partitions.get_or_insert_with(|| all.clone());
        let Some(wanted) = self.target.partition else {
            all.reverse();
            return Ok(State::Partitions { left: all, done: Vec::new() });
        };
        let place = all.into_iter().find(|(number, _)| *number == wanted).map(|(_, place)| place);
        let place = place.ok_or_else(|| Pause::Failed(Refusal::NotFound.into()))?;
        let kind = self.layout.kinds.iter().find(|(number, _)| *number == wanted);
        Ok(match kind {
            Some((_, kind)) => State::Open(*kind, place),
            None => State::Identify(wanted, place),
        })
    }

    /// Recognizes one more partition.
    fn recognize(
        &self,
        left: &mut Vec<(u32, Range<u64>)>,
        done: &mut Vec<Partition>,
    ) -> Result<Option<Found>, Pause> {
        let Some((number, place)) = left.last().filter(|_| done.len() < MAX_PARTITIONS) else {
            return Ok(Some(Found::Partitions(std::mem::take(done))));
        };
        let contents = self.attempt(|disk| Ok(recognize(disk, place)?))?;
        done.push(Partition { number: *number, bytes: place.end - place.start, contents });
        left.pop();
        Ok(None)
    }

    /// Looks for a name in the next entries of a folder.
    fn find(
        &self,
        depth: usize,
        folder: &FileEntry,
        from: &Cursor,
        similar: Option<&FileEntry>,
    ) -> Result<State, Pause> {
        let volume = self.volume()?;
        let name = self.target.names.get(depth).map(Vec::as_slice).unwrap_or_default();
        let (entries, next) = self.attempt(|disk| volume.entries(disk, folder, from))?;
        let by = |exact| entries.iter().find(|entry| volume.is_named(entry, name) == Some(exact));
        let similar = similar.or_else(|| by(false));
        match (by(true), next, similar) {
            (Some(entry), ..) | (None, None, Some(entry)) => {
                Ok(State::Check { depth: depth + 1, entry: entry.clone() })
            }
            (None, Some(from), similar) => {
                Ok(State::Find { depth, folder: folder.clone(), from, similar: similar.cloned() })
            }
            (None, None, None) => Err(Pause::Failed(Refusal::NotFound.into())),
        }
    }

    /// Checks what was found: a folder on the path, or what is asked for.
    fn check(&self, depth: usize, entry: &FileEntry) -> Result<Checked, Pause> {
        let volume = self.volume()?;
        let entry = match depth {
            0 => entry.clone(),
            _ => self.attempt(|disk| volume.check(disk, entry))?,
        };
        let is_last = depth >= self.target.names.len();
        Ok(match (entry.kind, is_last) {
            (EntryKind::Directory, true) if !self.target.has_slash => {
                Checked::Found(Found::FolderWithoutSlash)
            }
            (EntryKind::Directory, false) => {
                let (folder, from) = (entry, Cursor::default());
                Checked::Next(State::Find { depth, folder, from, similar: None })
            }
            (EntryKind::Directory, true) => {
                let found = Folder { is_clean: volume.is_clean(), ..Folder::default() };
                let (from, more) = (Some(Cursor::default()), Vec::new());
                Checked::Next(State::List(List {
                    folder: entry,
                    from,
                    more,
                    seen: 0,
                    names: 0,
                    found,
                }))
            }
            (_, true) if !self.target.has_slash => Checked::Found(Found::File(entry)),
            _ => return Err(Pause::Failed(Refusal::NoDirectory.into())),
        })
    }

    /// Adds one more entry of those that are known to a page, or gets some more, of which those of earlier pages are
    /// skipped.
    fn list(&self, list: &mut List) -> Result<Option<Found>, Pause> {
        let volume = self.volume()?;
        let Some(entry) = list.more.last() else {
            let Some(from) = &list.from else { return Ok(Some(list.end(None))) };
            let (mut entries, next) =
                self.attempt(|disk| volume.entries(disk, &list.folder, from))?;
            let skip = self.target.skip.saturating_sub(list.seen).min(entries.len());
            list.seen += skip;
            entries.drain(..skip);
            entries.reverse();
            (list.more, list.from) = (entries, next);
            return Ok(None);
        };
        if list.found.entries.len() >= MAX_ENTRIES || list.names >= MAX_NAMES {
            return Ok(Some(list.end(Some(list.seen))));
        }
        let entry = self.attempt(|disk| Ok(volume.details(disk, entry)))?;
        list.names += entry.name.len();
        list.found.entries.push(entry);
        list.seen += 1;
        list.more.pop();
        Ok(None)
    }

    /// Returns the next extents of the bytes that are wanted.
    fn extents(
        &self,
        file: &FileEntry,
        from: &mut Cursor,
        wanted: &Range<u64>,
    ) -> Result<Option<Found>, Pause> {
        let volume = self.volume()?;
        let (extents, next) = self.attempt(|disk| volume.extents(disk, file, from))?;
        let (mut at, mut found) = (from.offset(), Vec::new());
        for extent in extents {
            let end = at.saturating_add(extent.bytes());
            let part = at.max(wanted.start)..end.min(wanted.end);
            if part.start < part.end {
                found.push(cut(extent, &(part.start - at..part.end - at)));
            }
            at = end;
        }
        *from = next;
        let is_last = at >= wanted.end;
        Ok((is_last || !found.is_empty()).then_some(Found::Extents(found, is_last)))
    }
}

impl List {
    /// Ends the page: folders are first, sorted by name.
    fn end(&mut self, next: Option<usize>) -> Found {
        let mut found = std::mem::take(&mut self.found);
        let is_other = |entry: &FileEntry| entry.kind != EntryKind::Directory;
        found.entries.sort_by(|a, b| (is_other(a), &a.name).cmp(&(is_other(b), &b.name)));
        Found::Folder(Folder { next, ..found })
    }
}

/// Returns a part of an extent.
fn cut(extent: Extent, part: &Range<u64>) -> Extent {
    match extent {
        Extent::Disk(range) => Extent::Disk(range.start + part.start..range.start + part.end),
        Extent::Zeros(_) => Extent::Zeros(part.end - part.start),
        Extent::Bytes(bytes) => {
            let range = usize::try_from(part.start).ok().zip(usize::try_from(part.end).ok());
            let part = range.and_then(|(start, end)| bytes.get(start..end));
            Extent::Bytes(part.unwrap_or_default().to_vec())
        }
    }
}
