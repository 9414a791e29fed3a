//! Request heads (RFC 9112 §2 to §6).

use std::net::IpAddr;

use httparse::{EMPTY_HEADER, Error, Header, Status};

use crate::host;
use crate::response::Code;
use crate::{MAX_CONTENT, MAX_FIELDS, MAX_HEAD};

/// A rule that a request head violates. The connection is closed, because where the next request
/// begins is not certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// Not the syntax of HTTP/1.1 (RFC 9112 §2.2, §3, §5).
    HeadMalformed,
    /// Longer than [`MAX_HEAD`], or too many fields (RFC 6585 §5).
    HeadTooLong,
    /// The request line alone is longer than [`MAX_HEAD`] (RFC 9110 §15.5.15).
    TargetTooLong,
    /// Another major version (RFC 9110 §15.6.6).
    VersionUnknown,
    /// No `Host` field, or several, or a malformed one (RFC 9112 §3.2).
    HostInvalid,
    /// A malformed length of the content, or several (RFC 9112 §6.3).
    LengthInvalid,
    /// A GET or HEAD with content, which has no meaning (RFC 9110 §9.3.1).
    ContentUnexpected,
}

impl Violation {
    /// Returns the name for events.
    pub fn name(self) -> &'static str {
        match self {
            Self::HeadMalformed => "HeadMalformed",
            Self::HeadTooLong => "HeadTooLong",
            Self::TargetTooLong => "TargetTooLong",
            Self::VersionUnknown => "VersionUnknown",
            Self::HostInvalid => "HostInvalid",
            Self::LengthInvalid => "LengthInvalid",
            Self::ContentUnexpected => "ContentUnexpected",
        }
    }

    pub(crate) fn code(self) -> Code {
        match self {
            Self::HeadTooLong => Code::HeadTooLong,
            Self::TargetTooLong => Code::TargetTooLong,
            Self::VersionUnknown => Code::VersionUnknown,
            _ => Code::BadRequest,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    /// With a short content, or none.
    Post,
    Other,
}

/// A request, as far as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Whether it is for a name that [`host::is_own`] accepts.
    pub(crate) is_own_host: bool,
    /// The path, decoded and without a query; `None` if it cannot be decoded.
    pub(crate) path: Option<String>,
    /// The path as it was sent.
    pub(crate) raw_path: String,
    /// The query as it was sent, without the question mark.
    pub(crate) query: String,
    pub(crate) range: Option<String>,
    pub(crate) if_range: Option<String>,
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) cookie: Option<String>,
    /// Whether a browser says that the page of another site has caused the request.
    pub(crate) is_cross_site: bool,
    /// Whether the client shows HTML to a person.
    pub(crate) accepts_html: bool,
    pub(crate) content: Vec<u8>,
    /// Whether the client understands content in chunks (RFC 9112 §7.1).
    pub(crate) takes_chunks: bool,
    /// Whether another request may follow.
    pub(crate) keep_alive: bool,
}

/// Parses a request at the start of `bytes`, received at the address `local`. Returns it with its
/// length; `None` if it is incomplete.
pub(crate) fn parse(
    bytes: &[u8],
    local: Option<IpAddr>,
) -> Result<Option<(usize, Request)>, Violation> {
    let seen = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let len = match head.parse(seen) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) if seen.len() < MAX_HEAD => return Ok(None),
        Ok(Status::Partial) if !seen.contains(&b'\n') => return Err(Violation::TargetTooLong),
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Err(Violation::HeadTooLong),
        Err(Error::Version) => return Err(Violation::VersionUnknown),
        Err(_) => return Err(Violation::HeadMalformed),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Err(Violation::HeadMalformed);
    };
    let fields = &*head.headers;
    let content_len = content_len(fields)?;
    let (method, has_content) = match (method, content_len) {
        ("GET" | "HEAD", None | Some(1..)) => return Err(Violation::ContentUnexpected),
        ("GET", _) => (Method::Get, false),
        ("HEAD", _) => (Method::Head, false),
        ("POST", Some(..=MAX_CONTENT)) => (Method::Post, false),
        (_, content_len) => (Method::Other, content_len != Some(0)),
    };
    let end = match (method, content_len) {
        (Method::Post, Some(more)) => len.saturating_add(usize::try_from(more).unwrap_or(0)),
        _ => len,
    };
    let Some(content) = bytes.get(len..end) else { return Ok(None) };
    let (authority, path, query) = split(target);
    let is_own_host = is_own_host(fields, authority, minor, local)?;
    let keep_alive = minor == 1 && !has_content && !is_closing(fields);
    let request = Request {
        method,
        is_own_host,
        path: decoded(path),
        raw_path: path.to_owned(),
        query: query.to_owned(),
        range: joined(fields, "Range"),
        if_range: joined(fields, "If-Range"),
        if_match: joined(fields, "If-Match"),
        if_none_match: joined(fields, "If-None-Match"),
        authorization: joined(fields, "Authorization"),
        cookie: joined(fields, "Cookie"),
        is_cross_site: is_cross_site(fields),
        accepts_html: joined(fields, "Accept").is_some_and(|types| types.contains("text/html")),
        content: content.to_vec(),
        takes_chunks: minor == 1,
        keep_alive,
    };
    Ok(Some((end, request)))
}

/// Returns the values of a field.
fn values<'a>(fields: &'a [Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

/// Returns all values of a field as one list (RFC 9110 §5.3); `None` without one.
fn joined(fields: &[Header<'_>], name: &str) -> Option<String> {
    let all: Vec<_> = values(fields, name).map(String::from_utf8_lossy).collect();
    (!all.is_empty()).then(|| all.join(","))
}

/// Returns the length of the content in bytes (RFC 9112 §6.3); `None` if it is not known.
fn content_len(fields: &[Header<'_>]) -> Result<Option<u64>, Violation> {
    let mut lengths = values(fields, "Content-Length");
    let is_encoded = values(fields, "Transfer-Encoding").next().is_some();
    let Some(length) = lengths.next() else { return Ok((!is_encoded).then_some(0)) };
    let is_number = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    if !is_number || is_encoded || lengths.next().is_some() {
        return Err(Violation::LengthInvalid);
    }
    // A longer one is as unusable as the longest.
    let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
    Ok(Some(length.unwrap_or(u64::MAX)))
}

/// Returns whether a browser says that another site has caused the request: by Fetch Metadata, which it
/// sends by TLS; one without that by `Origin` (RFC 6454), which is sent with each POST.
fn is_cross_site(fields: &[Header<'_>]) -> bool {
    if let Some(site) = joined(fields, "Sec-Fetch-Site") {
        return !matches!(site.trim(), "same-origin" | "none");
    }
    let Some(origin) = joined(fields, "Origin") else { return false };
    let host = joined(fields, "Host").unwrap_or_default();
    origin.trim().strip_prefix("https://").is_none_or(|origin| origin != host.trim())
}

/// Returns whether the peer will send no other request (RFC 9112 §9.6).
fn is_closing(fields: &[Header<'_>]) -> bool {
    let options = joined(fields, "Connection").unwrap_or_default();
    options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// Splits a request target into its authority, if it is in absolute form, the path and the query (RFC
/// 9112 §3.2).
fn split(target: &str) -> (Option<&str>, &str, &str) {
    let is_web = |scheme: &str| ["http", "https"].iter().any(|it| scheme.eq_ignore_ascii_case(it));
    let absolute = target.split_once("://").filter(|(scheme, _)| is_web(scheme));
    let (authority, path) = match absolute {
        Some((_, rest)) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), path)
        }
        None => (None, target),
    };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = if path.is_empty() && authority.is_some() { "/" } else { path };
    (authority, path, query)
}

fn is_own_host(
    fields: &[Header<'_>],
    authority: Option<&str>,
    minor: u8,
    local: Option<IpAddr>,
) -> Result<bool, Violation> {
    let mut hosts = values(fields, "Host");
    let (field, other) = (hosts.next(), hosts.next());
    if other.is_some() || (field.is_none() && minor != 0) {
        return Err(Violation::HostInvalid);
    }
    // A client of HTTP/1.0 that does not name the host is not a browser.
    let Some(field) = field else { return Ok(authority.is_none()) };
    let is_own = |host: &str| host::is_own(host, local).ok_or(Violation::HostInvalid);
    let by_field = is_own(std::str::from_utf8(field).map_err(|_| Violation::HostInvalid)?)?;
    authority.map_or(Ok(by_field), is_own)
}

/// Decodes a value of a form (`application/x-www-form-urlencoded`). `None` if it is malformed, or not
/// UTF-8.
pub(crate) fn decoded_form(value: &str) -> Option<String> {
    decoded(&value.replace('+', " "))
}

/// Decodes the percent-encoding of a path (RFC 3986 §2.1). `None` if it is malformed, or not UTF-8.
fn decoded(path: &str) -> Option<String> {
    String::from_utf8(percent_decoded(path)?).ok()
}

/// Decodes the percent-encoding of a part of a path. `None` if it is malformed.
pub(crate) fn percent_decoded(path: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |at: usize| more.get(at).and_then(|&it| char::from(it).to_digit(16));
        let code = digit(0)? * 16 + digit(1)?;
        bytes.push(u8::try_from(code).ok()?);
        rest = more.get(2..)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod test {
    use super::*;

    fn of(head: &str) -> Result<Option<(usize, Request)>, Violation> {
        parse(head.as_bytes(), Some([127, 0, 0, 1].into()))
    }

    fn get(more: &str) -> Result<Request, Violation> {
        of(&format!("GET /sda.raw HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"))
            .map(|found| found.unwrap().1)
    }

    #[test]
    fn head_is_complete_with_the_empty_line() {
        let head = "GET /a%20b.raw?x=/y HTTP/1.1\r\nhOST: localhost\r\nrange: bytes=1-2\r\n\r\n";
        for len in 0..head.len() {
            assert_eq!(of(&head[..len]), Ok(None), "{len}");
        }
        let (len, request) = of(&format!("{head}GET")).unwrap().unwrap();
        assert_eq!(len, head.len());
        assert_eq!((request.method, request.keep_alive), (Method::Get, true));
        assert_eq!(
            (request.path.as_deref(), request.range.as_deref()),
            (Some("/a b.raw"), Some("bytes=1-2"))
        );
    }

    #[test]
    fn malformed_heads_are_violations() {
        let long =
            |name: &str| format!("GET /{} HTTP/1.1\r\n{name}: {}\r\n", "a", "a".repeat(MAX_HEAD));
        for (head, violation) in [
            ("\x16\x03\x01\r\n\r\n".to_owned(), Violation::HeadMalformed),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), Violation::HeadMalformed),
            ("GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n".to_owned(), Violation::HeadMalformed),
            ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n".to_owned(), Violation::HeadMalformed),
            ("PRI * HTTP/2.0\r\n\r\n".to_owned(), Violation::VersionUnknown),
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), Violation::HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), Violation::HostInvalid),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_owned(), Violation::HostInvalid),
            (format!("GET /{}", "a".repeat(MAX_HEAD)), Violation::TargetTooLong),
            (long("Host"), Violation::HeadTooLong),
            (
                format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1)),
                Violation::HeadTooLong,
            ),
            ("\r\n".repeat(MAX_HEAD), Violation::HeadTooLong),
        ] {
            assert_eq!(of(&head), Err(violation), "{:.60}", head);
        }
    }

    #[test]
    fn content_is_refused_and_never_read_as_a_request() {
        for (fields, violation) in [
            ("Content-Length: 5\r\n", Violation::ContentUnexpected),
            ("Transfer-Encoding: chunked\r\n", Violation::ContentUnexpected),
            ("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", Violation::LengthInvalid),
            ("Content-Length: 0\r\nContent-Length: 5\r\n", Violation::LengthInvalid),
            ("Content-Length: +5\r\n", Violation::LengthInvalid),
            ("Content-Length: 0, 5\r\n", Violation::LengthInvalid),
        ] {
            assert_eq!(get(fields), Err(violation), "{fields}");
        }
        assert!(get("Content-Length: 0\r\n").unwrap().keep_alive);
        let put = of("PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n").unwrap();
        let put = put.unwrap().1;
        assert_eq!((put.method, put.keep_alive), (Method::Other, false));
    }

    #[test]
    fn post_is_complete_with_its_content() {
        let head = "POST /code HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n";
        assert_eq!(of(&format!("{head}code=")), Ok(None));
        let (len, request) = of(&format!("{head}code=aGET")).unwrap().unwrap();
        assert_eq!((len, request.method), (head.len() + 6, Method::Post));
        assert_eq!(request.content, b"code=a");
        let long = head.replace(": 6", ": 99999999999999999999");
        assert_eq!(of(&long).unwrap().unwrap().1.method, Method::Other);
    }

    #[test]
    fn connection_is_kept_unless_the_peer_closes_it() {
        assert!(
            get("").unwrap().keep_alive && get("Connection: keep-alive\r\n").unwrap().keep_alive
        );
        assert!(!get("Connection: te, Close\r\n").unwrap().keep_alive);
        let old = of("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().1;
        assert_eq!((old.keep_alive, old.is_own_host), (false, true));
    }

    #[test]
    fn absolute_target_names_the_host() {
        let at = |target: &str| {
            let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let request = of(&head).unwrap().unwrap().1;
            (request.is_own_host, request.path)
        };
        assert_eq!(at("http://127.0.0.1:8080/a?b"), (true, Some("/a".to_owned())));
        assert_eq!(at("HTTPS://localhost"), (true, Some("/".to_owned())));
        assert_eq!(at("http://evil.example/a"), (false, Some("/a".to_owned())));
        assert_eq!(at("/http://evil.example/"), (true, Some("/http://evil.example/".to_owned())));
    }

    #[test]
    fn paths_are_decoded_once() {
        assert_eq!(decoded("/%2e%2E/%252f").as_deref(), Some("/../%2f"));
        for path in ["/%", "/%4", "/%zz", "/%ff", "/%+1"] {
            assert_eq!(decoded(path), None, "{path}");
        }
    }
}
