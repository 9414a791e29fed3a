//! Files of disks: searches, whose reads are disk requests of the session, and the responses to them.

use std::ops::Range;
use std::sync::Arc;

use export::{Body, Buffer, Denied, Export, Fault, Head, Op, Pool, Segment, Step, Ticket};
use filesystem::{FileEntry, FileError, OpaqueReason, Refusal};

use super::{Phase, Progress, Response, Session};
use crate::content::Content;
use crate::files::{Found, Pause, Target, Walk};
use crate::listing;
use crate::request::{Method, Request, percent_decoded};
use crate::response::{self, Code, percent_encoded};
use crate::transfer::Transfer;

impl Session {
    /// Answers with files of a disk: starts to look for them.
    pub(super) fn respond_with_files(
        &mut self,
        request: &Request,
        export: &Arc<Export>,
        target: Target,
    ) {
        let Some(slot) = self.server.walks.get(self.peer.network()) else {
            let head = (request.keep_alive, request.method == Method::Head);
            let text = response::busy("There are too many requests for files now.\n", head);
            return self.begin(request, text, None);
        };
        if !self.attach(export) {
            let is_head = request.method == Method::Head;
            let text = response::of_code(Code::Unavailable, request.keep_alive, is_head);
            return self.begin(request, text, None);
        }
        let bytes = export.bytes();
        let mut walk = Walk::new(request.clone(), target, bytes, slot);
        walk.tag = self.server.versions.tag(export, bytes);
        walk.layout = self.server.layouts.get(walk.tag.as_deref());
        self.phase = Phase::Responding(Response {
            text: Vec::new(),
            sent: 0,
            transfer: None,
            walk: Some(Box::new(walk)),
            has_begun: false,
            keep_alive: request.keep_alive,
            is_head: request.method == Method::Head,
        });
    }

    /// Goes on with a search. Submits a read of what it needs.
    pub(super) fn walk(&mut self) -> Progress {
        let Phase::Responding(response) = &mut self.phase else { return Progress::Waiting };
        let Some(walk) = &mut response.walk else { return Progress::More };
        if walk.reading.is_some() {
            return Progress::Waiting;
        }
        if walk.has_page {
            return self.send_page();
        }
        match walk.run() {
            Ok(found) => self.found(found),
            Err(Pause::Read(range)) => return self.submit_read(range),
            Err(Pause::Turn) => return Progress::Waiting,
            Err(Pause::Failed(error)) => self.files_failed(&error),
        }
        Progress::More
    }

    /// Sends a page as a whole, in memory of the account, for which the search keeps its slot.
    fn send_page(&mut self) -> Progress {
        let Phase::Responding(response) = &mut self.phase else { return Progress::Waiting };
        let len = response.text.len();
        if len > Pool::MAX_BUFFER {
            self.files_failed(&Refusal::TooMuch.into());
            return Progress::More;
        }
        let Some(mut buffer) = self.account.take(len) else { return Progress::Waiting };
        buffer.bytes_mut().copy_from_slice(&response.text);
        let segment = Segment::with_body(Head::new(&[]), Body::Whole(buffer), 0, len);
        self.steps.push_back(Step::Send(segment));
        self.moved = true;
        (response.text, response.walk) = (Vec::new(), None);
        Progress::Complete
    }

    /// Submits the read of a part of the disk for a search.
    fn submit_read(&mut self, range: Range<u64>) -> Progress {
        let Some(disk) = &self.disk else {
            self.failed(Fault::Gone);
            return Progress::More;
        };
        let geometry = disk.grant.export().geometry;
        let (shift, mask) = (geometry.shift(), u64::from(geometry.block()) - 1);
        // Blocks may be larger than the parts that are asked for.
        let range = range.start & !mask..range.end;
        let past = range.end.saturating_add(mask) & !mask;
        let len = usize::try_from(past - range.start).unwrap_or(usize::MAX);
        let Some(buffer) = self.account.take(len) else { return Progress::Waiting };
        let number = self.last.wrapping_add(1);
        let (lba, blocks) = (range.start >> shift, (past - range.start) >> shift);
        let (buffer, ticket) = (Some(buffer), Ticket::new(number));
        let request = export::Request { op: Op::Read, lba, blocks, buffer, ticket };
        match disk.grant.admit(request) {
            Ok(admitted) => {
                (self.last, self.moved) = (number, true);
                self.in_flight += 1;
                self.steps.push_back(Step::Submit(admitted));
                if let Phase::Responding(Response { walk: Some(walk), .. }) = &mut self.phase {
                    walk.reading = Some((number, range));
                }
                Progress::Waiting
            }
            Err(denied) => {
                let Denied { fault, .. } = *denied;
                self.failed(fault);
                Progress::More
            }
        }
    }

    /// Takes the result of a read for a search. Returns whether it was one.
    pub(super) fn complete_read(
        &mut self,
        number: u32,
        result: Result<(), Fault>,
        buffer: Option<&Buffer>,
    ) -> bool {
        let Phase::Responding(Response { walk: Some(walk), .. }) = &mut self.phase else {
            return false;
        };
        let Some((_, range)) = walk.reading.take_if(|(reading, _)| *reading == number) else {
            return false;
        };
        match result {
            Ok(()) => walk.read(&range, buffer.map(Buffer::bytes)),
            // Other parts may be all that is needed.
            Err(Fault::Io) => walk.read(&range, None),
            Err(_) => {}
        }
        if let Err(fault) = result {
            self.report_fault(fault, (range.start, range.end - range.start));
            if fault != Fault::Io {
                self.failed(fault);
            }
        }
        true
    }

    /// Answers with what a search has found.
    fn found(&mut self, found: Found) {
        let Some(export) = self.disk.as_ref().map(|disk| disk.grant.export().clone()) else {
            return;
        };
        let Phase::Responding(response) = &mut self.phase else { return };
        let Some(walk) = &mut response.walk else { return };
        if !matches!(found, Found::Extents(..)) {
            self.server.layouts.keep(walk.tag.as_deref(), walk.layout.clone());
        }
        let page = match found {
            Found::Partitions(partitions) => listing::partitions(&export, &partitions),
            Found::Folder(folder) => listing::folder(&export, &walk.target, &folder),
            Found::FolderWithoutSlash => {
                // Encoded anew: it is a path on this machine, whatever was sent.
                let path = walk.request.raw_path.split('/').filter_map(percent_decoded);
                let path: Vec<_> = path.map(percent_encoded).collect();
                let path = format!("{}/", path.join("/"));
                let text = response::moved(&path, response.keep_alive, response.is_head);
                response.text = response::dated(text, (self.server.clock)());
                response.walk = None;
                return;
            }
            Found::File(file) => return self.respond_with_file(file),
            Found::Extents(extents, is_last) => {
                response.transfer = Some(Transfer::of(extents));
                if is_last {
                    response.walk = None;
                }
                return;
            }
        };
        let head = response::Head::new(Code::Ok, response.keep_alive);
        let text = response::of_text(head, "text/html; charset=utf-8", &page, response.is_head);
        response.text = response::dated(text, (self.server.clock)());
        walk.has_page = true;
    }

    /// Answers with a file, or a part of it, whose extents are then looked for.
    fn respond_with_file(&mut self, file: FileEntry) {
        let Phase::Responding(response) = &mut self.phase else { return };
        let Some(walk) = &mut response.walk else { return };
        let name = String::from_utf8_lossy(&file.name).into_owned();
        let content = Content { name: &name, bytes: file.bytes, tag: walk.tag.as_deref() };
        let (text, wanted) = content.response(&walk.request);
        response.text = response::dated(text, (self.server.clock)());
        if wanted.is_empty() {
            response.walk = None;
        } else {
            walk.locate(file, wanted);
        }
    }

    /// Ends a response with the reason why files cannot be read.
    fn files_failed(&mut self, error: &FileError) {
        let Phase::Responding(response) = &mut self.phase else { return };
        let FileError::Refused(refusal) = error else { return self.failed(Fault::Io) };
        if response.has_begun {
            return self.failed(Fault::Io);
        }
        let code = code_of(*refusal);
        let Some(disk) = &self.disk else { return self.failed(Fault::Gone) };
        let head = response::Head::new(code, response.keep_alive);
        let accepts_html = response.walk.as_ref().is_some_and(|walk| walk.request.accepts_html);
        let text = refusal.to_string();
        let text = match accepts_html {
            true => {
                let page = listing::problem(disk.grant.export(), &text);
                response::of_text(head, "text/html; charset=utf-8", &page, response.is_head)
            }
            false => {
                let text = format!("{text}\n");
                response::of_text(head, "text/plain; charset=utf-8", &text, response.is_head)
            }
        };
        response.text = response::dated(text, (self.server.clock)());
        response.walk = None;
    }
}

/// Returns the status for files that are not read: what is not there, what is not supported here, what nobody can read
/// without more than this disk, and what is wrong on it.
fn code_of(refusal: Refusal) -> Code {
    match refusal {
        Refusal::NotFound | Refusal::NoDirectory => Code::NotFound,
        Refusal::Opaque(OpaqueReason::Unknown | OpaqueReason::Feature)
        | Refusal::Compressed
        | Refusal::Elsewhere => Code::NotImplemented,
        Refusal::Encrypted | Refusal::NoContents => Code::Refused,
        Refusal::Opaque(OpaqueReason::Unclean | OpaqueReason::Damaged)
        | Refusal::Ambiguous
        | Refusal::Damaged
        | Refusal::TooMuch => Code::ServerError,
    }
}
