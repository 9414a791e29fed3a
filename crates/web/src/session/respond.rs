//! The response to a request: whether it is admitted, what it is for, its conditions and its range.

use std::sync::Arc;
use std::time::Instant;

use export::{Auth, Caller, Event, Export, Reason};

use super::{Attachment, Phase, Response, Session, report};
use crate::content::Content;
use crate::login::{self, Admission};
use crate::request::{Method, Request};
use crate::response::{self, Code};
use crate::transfer::Transfer;
use crate::{files, page};

impl Session {
    /// Answers a request, where authentication is required only with the code or in a session.
    pub(super) fn respond_if_admitted(&mut self, request: &Request, now: Instant) {
        if self.peer.auth == Auth::None {
            self.established = true;
            return self.respond(request);
        }
        // Without TLS there are no codes.
        if self.peer.channel.is_none() {
            return self.respond(request);
        }
        let access = &self.server.access;
        let generation = access.generation();
        let was_admitted = self.established && self.generation == generation;
        match login::admit(access, (&self.peer, was_admitted), request, now) {
            Admission::Admitted => {
                (self.generation, self.established) = (generation, true);
                self.respond(request);
            }
            Admission::Public => self.respond(request),
            Admission::Respond { text, is_wrong } => {
                if is_wrong {
                    let (peer, reason) = (self.peer.clone(), "a wrong code");
                    let (host, wanted) = (String::new(), String::new());
                    self.steps.push_back(report(Event::Refused { peer, host, wanted, reason }));
                }
                self.begin(request, text, None);
            }
        }
    }

    fn respond(&mut self, request: &Request) {
        let is_head = request.method == Method::Head;
        let exports = self.visible();
        let machine = &self.server.machine;
        let text = |media_type: &str, content: &str| {
            let head = response::Head::new(Code::Ok, request.keep_alive);
            response::of_text(head, media_type, content, is_head)
        };
        let of_code = |code| response::of_code(code, request.keep_alive, is_head);
        let text = match request.path.as_deref() {
            _ if !request.is_own_host => of_code(Code::Misdirected),
            // Without TLS there are neither keys nor codes.
            _ if self.peer.auth == Auth::Required && self.peer.channel.is_none() => {
                of_code(Code::KeyRequired)
            }
            _ if matches!(request.method, Method::Other | Method::Post) => {
                of_code(Code::MethodNotAllowed)
            }
            Some("/") => {
                let page = page::html(machine, &exports, self.peer.channel.is_some());
                text("text/html; charset=utf-8", &page)
            }
            Some(page::STYLE_PATH) => text("text/css; charset=utf-8", page::STYLE),
            Some("/disks.json") => text("application/json", &page::json(machine, &exports)),
            path => {
                if let Some((export, target)) = files::target(request, &exports) {
                    return self.respond_with_files(request, &export, target);
                }
                let path = path.unwrap_or_default();
                let name = path.strip_prefix('/').unwrap_or_default();
                let named = |ending: &str| {
                    let name = name.strip_suffix(ending)?;
                    exports.iter().find(|export| export.short == name)
                };
                match (named(".raw"), named(".raw.zst"), named("")) {
                    (Some(export), ..) => return self.respond_with_disk(request, export),
                    (None, Some(export), _) => return self.respond_compressed(request, export),
                    (None, None, Some(export)) => {
                        let path = format!("/{}/", response::percent_encoded(&export.short));
                        response::moved(&path, request.keep_alive, is_head)
                    }
                    (None, None, None) => of_code(Code::NotFound),
                }
            }
        };
        self.begin(request, text, None);
    }

    /// Answers with the disk, or a part of it.
    fn respond_with_disk(&mut self, request: &Request, export: &Arc<Export>) {
        let bytes = export.bytes();
        let tag = self.server.versions.tag(export, bytes);
        let name = format!("{}.raw", export.short);
        let (text, wanted) = Content { name: &name, bytes, tag: tag.as_deref() }.response(request);
        match wanted.is_empty() {
            true => self.begin(request, text, None),
            false => self.transfer(request, export, text, Transfer::new(wanted)),
        }
    }

    /// Answers with the whole disk, compressed. How long that is, is not known before, so there are no
    /// ranges, and it is sent in chunks; without them a client could not tell a cut from the end.
    fn respond_compressed(&mut self, request: &Request, export: &Arc<Export>) {
        if !request.takes_chunks {
            let text = response::of_code(Code::ChunksRequired, false, false);
            return self.begin(request, text, None);
        }
        let text = response::compressed(&export.short, request.keep_alive);
        if request.method == Method::Head {
            return self.begin(request, text, None);
        }
        let bytes = export.bytes();
        let Some(encoder) = self.server.encoders.get(self.peer.network(), bytes) else {
            let text =
                "There are too many compressed downloads now; the disk without .zst can be read.\n";
            return self.begin(request, response::busy(text, (request.keep_alive, false)), None);
        };
        let transfer = Transfer::compressed(0..bytes, encoder);
        self.transfer(request, export, text, transfer);
    }

    /// Answers with bytes of the disk.
    fn transfer(
        &mut self,
        request: &Request,
        export: &Arc<Export>,
        text: Vec<u8>,
        transfer: Transfer,
    ) {
        if self.attach(export) {
            return self.begin(request, text, Some(transfer));
        }
        let text = response::of_code(Code::Unavailable, request.keep_alive, false);
        self.begin(request, text, None);
    }

    /// Attaches a disk, and detaches the one before. Returns whether it is there.
    pub(super) fn attach(&mut self, export: &Arc<Export>) -> bool {
        let is_attached =
            self.disk.as_ref().is_some_and(|disk| Arc::ptr_eq(disk.grant.export(), export));
        if is_attached {
            return true;
        }
        self.detach(Reason::Ended);
        let caller = Caller { peer: &self.reader, host: "", proven: None };
        let grant = self.server.catalogue.grant_reader(&caller, &export.short).ok();
        // The head is that of `export`, which another one may have replaced since.
        let Some(grant) = grant.filter(|grant| Arc::ptr_eq(grant.export(), export)) else {
            return false;
        };
        let (export, peer) = (grant.export().clone(), self.peer.clone());
        let (host, proven, no_room) = (String::new(), None, false);
        self.steps.push_back(report(Event::Attached { export, peer, host, proven, no_room }));
        self.disk = Some(Attachment { grant, read: 0 });
        true
    }

    pub(super) fn begin(&mut self, request: &Request, text: Vec<u8>, transfer: Option<Transfer>) {
        let (keep_alive, is_head) = (request.keep_alive, request.method == Method::Head);
        let text = response::dated(text, (self.server.clock)());
        self.phase = Phase::Responding(Response {
            text,
            sent: 0,
            transfer,
            walk: None,
            has_begun: false,
            keep_alive,
            is_head,
        });
    }

    /// Returns the exports that the peer may see.
    pub(super) fn visible(&self) -> Vec<Arc<Export>> {
        let caller = Caller { peer: &self.reader, host: "", proven: None };
        self.server.catalogue.visible(&caller)
    }
}
