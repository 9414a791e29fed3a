//! Response heads and error texts.

use std::fmt::Write as _;
use std::time::SystemTime;

use export::Fault;
use jiff::Timestamp;

/// The status codes of responses (RFC 9110 §15, RFC 6585).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok,
    PartialContent,
    MovedPermanently,
    SeeOther,
    NotModified,
    BadRequest,
    Unauthorized,
    Reserved,
    KeyRequired,
    LoginRequired,
    /// A file that is not read.
    Refused,
    NotFound,
    MethodNotAllowed,
    PreconditionFailed,
    TargetTooLong,
    RangeNotSatisfiable,
    Misdirected,
    TooManyRequests,
    HeadTooLong,
    ServerError,
    /// A file system, or a form of files, that is not supported.
    NotImplemented,
    Unavailable,
    VersionUnknown,
    ChunksRequired,
}

impl Code {
    /// Returns the number and the reason phrase.
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::PartialContent => "206 Partial Content",
            Self::MovedPermanently => "301 Moved Permanently",
            Self::SeeOther => "303 See Other",
            Self::NotModified => "304 Not Modified",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Reserved | Self::KeyRequired | Self::LoginRequired | Self::Refused => {
                "403 Forbidden"
            }
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::PreconditionFailed => "412 Precondition Failed",
            Self::TargetTooLong => "414 URI Too Long",
            Self::RangeNotSatisfiable => "416 Range Not Satisfiable",
            Self::Misdirected => "421 Misdirected Request",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::HeadTooLong => "431 Request Header Fields Too Large",
            Self::ServerError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
            Self::VersionUnknown | Self::ChunksRequired => "505 HTTP Version Not Supported",
        }
    }

    /// Returns the text for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Ok
            | Self::PartialContent
            | Self::MovedPermanently
            | Self::SeeOther
            | Self::NotModified => "",
            Self::BadRequest => "The request is malformed.\n",
            Self::Unauthorized | Self::LoginRequired => {
                "The code on the screen of the machine that lends its disks is required, \
                 as the password of HTTP Basic.\n"
            }
            Self::Refused => "This cannot be read here.\n",
            Self::TooManyRequests => "There were too many wrong codes. Try again later.\n",
            Self::Reserved => "Another machine has reserved this disk.\n",
            Self::KeyRequired => {
                "This address requires a key. HTTP has none: use HTTPS, NVMe/TCP or NBD.\n"
            }
            Self::NotFound => "There is no such disk here. / lists those that there are.\n",
            Self::MethodNotAllowed => "Disks can only be read here: GET and HEAD.\n",
            Self::PreconditionFailed => "The disk may have changed.\n",
            Self::TargetTooLong => "The address is too long.\n",
            Self::RangeNotSatisfiable => "The disk is smaller.\n",
            Self::Misdirected => {
                "This machine does not answer under that name. Use its IP address, or localhost.\n"
            }
            Self::HeadTooLong => "The header fields are too long.\n",
            Self::ServerError => "The disk could not be read.\n",
            Self::NotImplemented => "This is not supported here.\n",
            Self::Unavailable => "The disk cannot be read now.\n",
            Self::VersionUnknown => "Only HTTP/1.1 and HTTP/1.0 are spoken here.\n",
            Self::ChunksRequired => "This takes HTTP/1.1; the disk without .zst does not.\n",
        }
    }
}

/// Returns the status of a read that failed before anything was sent.
pub(crate) fn code_of(fault: Fault) -> Code {
    match fault {
        Fault::Gone => Code::NotFound,
        Fault::Reserved => Code::Reserved,
        // Out of range: the disk has become smaller since the head was made.
        Fault::Busy | Fault::OutOfRange => Code::Unavailable,
        Fault::Io | Fault::NoSpace | Fault::ReadOnly | Fault::Misaligned | Fault::Unsupported => {
            Code::ServerError
        }
    }
}

/// A response head.
pub(crate) struct Head(String);

impl Head {
    /// Returns a head with the fields that all responses have.
    pub(crate) fn new(code: Code, keep_alive: bool) -> Self {
        let mut head = Self(format!("HTTP/1.1 {}\r\n", code.line()));
        head.field("Server", "storagetm");
        if !keep_alive {
            head.field("Connection", "close");
        }
        // Neither other pages in the browser nor caches may have it.
        head.field("X-Content-Type-Options", "nosniff");
        head.field("Cross-Origin-Resource-Policy", "same-origin");
        // Browsers send no `Origin` with a form of a page that forbids all referrers.
        head.field("Referrer-Policy", "same-origin");
        head
    }

    pub(crate) fn field(&mut self, name: &str, value: &str) {
        let _ = write!(self.0, "{name}: {value}\r\n");
    }

    /// Ends the head.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.push_str("\r\n");
        self.0.into_bytes()
    }
}

/// Returns a response with its time (RFC 9110 §6.6.1), which is left out if it has no such date.
pub(crate) fn dated(mut text: Vec<u8>, time: SystemTime) -> Vec<u8> {
    let line = text.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    if let Some((at, date)) = line.zip(Timestamp::try_from(time).ok()) {
        let field = format!("Date: {}\r\n", date.strftime("%a, %d %b %Y %H:%M:%S GMT"));
        text.splice(at..at, field.into_bytes());
    }
    text
}

/// Returns a response with a text for people, without the text for a HEAD request.
pub(crate) fn of_code(code: Code, keep_alive: bool, is_head: bool) -> Vec<u8> {
    let mut head = Head::new(code, keep_alive);
    if code == Code::MethodNotAllowed {
        head.field("Allow", "GET, HEAD");
    }
    of_text(head, "text/plain; charset=utf-8", code.text(), is_head)
}

/// Returns the response for a path without the slash at its end.
pub(crate) fn moved(path: &str, keep_alive: bool, is_head: bool) -> Vec<u8> {
    let mut head = Head::new(Code::MovedPermanently, keep_alive);
    head.field("Location", path);
    of_text(head, "text/plain; charset=utf-8", "", is_head)
}

/// Returns the response if there are as many compressed downloads, or requests for files, as there may be.
pub(crate) fn busy(text: &str, (keep_alive, is_head): (bool, bool)) -> Vec<u8> {
    let mut head = Head::new(Code::Unavailable, keep_alive);
    head.field("Retry-After", "60");
    of_text(head, "text/plain; charset=utf-8", text, is_head)
}

/// Returns a response with this content, without it for a HEAD request.
pub(crate) fn of_text(mut head: Head, media_type: &str, content: &str, is_head: bool) -> Vec<u8> {
    head.field("Content-Type", media_type);
    head.field("Content-Length", &content.len().to_string());
    head.field("Cache-Control", "no-store");
    head.field("Content-Security-Policy", CONTENT_SECURITY_POLICY);
    let mut all = head.end();
    if !is_head {
        all.extend(content.as_bytes());
    }
    all
}

/// No scripts, no images, no frames: only the style sheet, and the form for the code.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; \
                                       form-action 'self'; frame-ancestors 'none'";

/// Returns the head of a response with a whole disk, compressed and in chunks.
pub(crate) fn compressed(name: &str, keep_alive: bool) -> Vec<u8> {
    let mut head = Head::new(Code::Ok, keep_alive);
    head.field("Content-Type", "application/zstd");
    head.field("Transfer-Encoding", "chunked");
    head.field("Accept-Ranges", "none");
    head.field("Content-Disposition", &disposition(&format!("{name}.raw.zst")));
    head.field("Content-Security-Policy", "sandbox");
    head.field("Cache-Control", "private, no-cache, no-transform");
    head.end()
}

/// Returns the `Content-Disposition` of a file to be saved (RFC 6266): its name in ASCII, and the
/// exact one if that differs.
pub(crate) fn disposition(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let exact = if plain == name {
        String::new()
    } else {
        format!("; filename*=UTF-8''{}", percent_encoded(name))
    };
    format!("attachment; filename=\"{plain}\"{exact}")
}

/// Percent-encodes all but letters, digits, `-`, `.` and `_`, which need no encoding in a path (RFC
/// 3986 §2.3) or a parameter (RFC 8187 §3.2.1).
pub(crate) fn percent_encoded(text: impl AsRef<[u8]>) -> String {
    let one = |byte: u8| match char::from(byte) {
        c if c.is_ascii_alphanumeric() || "-._".contains(c) => c.to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.as_ref().iter().map(|byte| one(*byte)).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_fault_has_an_error_status() {
        for fault in Fault::ALL {
            let line = code_of(fault).line();
            assert!(line.starts_with('4') || line.starts_with('5'), "{fault}: {line}");
        }
        assert_eq!(code_of(Fault::Reserved), Code::Reserved);
        assert_eq!(code_of(Fault::Io), Code::ServerError);
        // The disk has become smaller since the range was checked; it need not have been one.
        assert_eq!(code_of(Fault::OutOfRange), Code::Unavailable);
    }

    #[test]
    fn date_has_the_format_of_http() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
        let text = String::from_utf8(dated(Head::new(Code::Ok, true).end(), time)).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"));
    }

    #[test]
    fn file_names_cannot_break_out_of_the_field() {
        assert_eq!(disposition("sda.raw"), "attachment; filename=\"sda.raw\"");
        assert_eq!(
            disposition("a\"\r\nX: é/.raw"),
            "attachment; filename=\"a___X____.raw\"; filename*=UTF-8''a%22%0D%0AX%3A%20%C3%A9%2F.raw"
        );
    }
}
