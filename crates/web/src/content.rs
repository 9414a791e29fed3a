//! The response with the bytes of a disk or a file: whole, a part of it, or none.

use std::ops::Range;

use crate::range::{self, Wanted};
use crate::request::{Method, Request};
use crate::response::{Code, Head, disposition, of_code, of_text};
use crate::version;

/// A disk or a file in a response.
pub(crate) struct Content<'a> {
    /// The name of the file that it is saved to.
    pub(crate) name: &'a str,
    /// Its length in bytes.
    pub(crate) bytes: u64,
    pub(crate) tag: Option<&'a str>,
}

impl Content<'_> {
    /// Evaluates the conditions of a request (RFC 9110 §13.2.2). Returns the response, or the head of the bytes that
    /// are to follow; none of a HEAD request.
    pub(crate) fn response(&self, request: &Request) -> (Vec<u8>, Range<u64>) {
        let (keep_alive, is_head) = (request.keep_alive, request.method == Method::Head);
        let is_listed = |list: &String, weak| version::is_listed(list, self.tag, weak);
        if request.if_match.as_ref().is_some_and(|list| !is_listed(list, false)) {
            return (of_code(Code::PreconditionFailed, keep_alive, is_head), 0..0);
        }
        if request.if_none_match.as_ref().is_some_and(|list| is_listed(list, true)) {
            return (self.not_modified(keep_alive), 0..0);
        }
        let condition = request.if_range.as_deref().map(str::trim);
        let is_same = condition.is_none_or(|tag| self.tag == Some(tag));
        let field = request.range.as_deref().filter(|_| is_same && !is_head);
        let wanted = field.map_or(Wanted::Whole, |field| range::wanted(field, self.bytes));
        let (text, wanted) = match wanted {
            Wanted::Whole => (self.found(None, keep_alive), 0..self.bytes),
            Wanted::Part(part) => (self.found(Some(&part), keep_alive), part),
            Wanted::Unsatisfiable => (self.unsatisfiable(keep_alive), 0..0),
        };
        (text, if is_head { 0..0 } else { wanted })
    }

    /// Returns the head of a response with the whole disk, or with a part of it.
    fn found(&self, part: Option<&Range<u64>>, keep_alive: bool) -> Vec<u8> {
        let code = if part.is_some() { Code::PartialContent } else { Code::Ok };
        let mut head = Head::new(code, keep_alive);
        head.field("Content-Type", "application/octet-stream");
        let len = part.map_or(self.bytes, |part| part.end.saturating_sub(part.start));
        head.field("Content-Length", &len.to_string());
        if let Some(part) = part {
            let (first, last) = (part.start, part.end.saturating_sub(1));
            head.field("Content-Range", &format!("bytes {first}-{last}/{}", self.bytes));
        }
        head.field("Content-Disposition", &disposition(self.name));
        head.field("Content-Security-Policy", "sandbox");
        self.validators(&mut head);
        head.end()
    }

    /// Returns the head for a peer that has these bytes already.
    fn not_modified(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = Head::new(Code::NotModified, keep_alive);
        self.validators(&mut head);
        head.end()
    }

    /// Returns the response to a range beyond the end.
    fn unsatisfiable(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = Head::new(Code::RangeNotSatisfiable, keep_alive);
        head.field("Content-Range", &format!("bytes */{}", self.bytes));
        let code = Code::RangeNotSatisfiable;
        of_text(head, "text/plain; charset=utf-8", code.text(), false)
    }

    fn validators(&self, head: &mut Head) {
        head.field("Accept-Ranges", "bytes");
        head.field("Cache-Control", "private, no-cache, no-transform");
        if let Some(tag) = self.tag {
            head.field("ETag", tag);
        }
    }
}
