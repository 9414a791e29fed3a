//! What servers answer: XML documents of two levels, and why they refuse a request.

use std::fmt;
use std::time::Duration;

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use crate::asked;
use crate::retries::retry_after;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// The most levels of elements, and the longest text of a message that is shown.
const MAX_DEPTH: usize = 8;
const MAX_TEXT: usize = 200;

/// A document: the name of its root, and the texts of the elements in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Document {
    root: String,
    fields: Vec<(String, String)>,
}

/// Why an answer is no document.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection was lost.
    Lost(ureq::Error),
    /// It is empty, or ends before its root does.
    Cut,
    /// It is malformed, too long, has a document type, or an entity that XML does not define.
    Malformed,
}

impl Document {
    /// Parses a document. Servers send white space before it while a request takes long.
    ///
    /// Returns `None` if it is malformed, has a document type, or an entity that XML does not define.
    pub(crate) fn parse(xml: &[u8]) -> Option<Self> {
        let mut reader = Reader::from_str(std::str::from_utf8(xml).ok()?.trim_start());
        let (mut root, mut fields, mut depth) = (None, Vec::<(String, String)>::new(), 0_usize);
        let name = |bytes: &str| bytes.to_owned();
        loop {
            let text = match reader.read_event().ok()? {
                Event::Eof => break,
                Event::DocType(_) => return None,
                Event::Start(tag) => {
                    match depth {
                        0 if root.is_some() => return None,
                        0 => root = Some(name(tag.local_name().as_ref())),
                        1 => fields.push((name(tag.local_name().as_ref()), String::new())),
                        MAX_DEPTH => return None,
                        _ => {}
                    }
                    depth += 1;
                    continue;
                }
                Event::End(_) => {
                    depth = depth.checked_sub(1)?;
                    continue;
                }
                Event::Text(text) => text.xml10_content().into_owned(),
                Event::CData(text) => text.xml10_content().into_owned(),
                Event::GeneralRef(entity) => match entity.resolve_char_ref().ok()? {
                    Some(character) => character.to_string(),
                    None => resolve_predefined_entity(&entity.xml10_content())?.to_owned(),
                },
                _ => continue,
            };
            match fields.last_mut().filter(|_| depth == 2) {
                Some((_, field)) => field.push_str(&text),
                None if depth == 0 && !text.trim().is_empty() => return None,
                None => {}
            }
        }
        Some(Self { root: root.filter(|_| depth == 0)?, fields })
    }

    /// Reads and parses the body of a response.
    ///
    /// # Errors
    /// Fails if the connection is lost, or if it is no document.
    pub(crate) fn read(response: &mut Response<Body>) -> Result<Self, Fault> {
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => Fault::Malformed,
            error => Fault::Lost(error),
        })?;
        let is_cut = is_cut(&body);
        Self::parse(&body).ok_or(if is_cut { Fault::Cut } else { Fault::Malformed })
    }

    /// Returns whether the root has this name.
    pub(crate) fn is(&self, root: &str) -> bool {
        self.root == root
    }

    /// Returns the text of the first element with this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(it, _)| it == name);
        field.map(|(_, text)| text.trim()).filter(|text| !text.is_empty())
    }
}

/// Returns whether what is malformed is the beginning of a document: nothing, or text without the end of its root.
fn is_cut(xml: &[u8]) -> bool {
    let text = String::from_utf8_lossy(xml);
    let mut reader = Reader::from_str(text.trim());
    let mut depth = 0_usize;
    loop {
        match reader.read_event() {
            Ok(Event::Start(_)) => depth += 1,
            Ok(Event::End(_)) => depth = depth.saturating_sub(1),
            Ok(Event::Text(text)) if depth == 0 && !text.xml10_content().trim().is_empty() => {
                return false;
            }
            Ok(Event::Eof) => return depth > 0 || text.trim().is_empty(),
            Ok(_) => {}
            Err(quick_xml::Error::Syntax(_)) => return true,
            Err(_) => return false,
        }
    }
}

/// Parses any data as a document, for a fuzzer.
///
/// # Panics
/// Panics if a message for a terminal has control characters.
pub(crate) fn parse_any(data: &[u8]) {
    let document = Document::parse(data);
    assert!(document.is_none() || !is_cut(data), "a document that is cut");
    let signed = Signed { is_signed: true, region: "us-east-1" };
    let status = StatusCode::BAD_REQUEST;
    let refusal = Refusal::new(status, &HeaderMap::new(), document.as_ref(), signed);
    assert!(!refusal.to_string().contains(char::is_control), "{refusal:?}");
}

/// Why a server refuses a request for an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    /// The code (S3, Error responses); empty if there is none, as in a response to HEAD.
    code: String,
    message: String,
    /// The region of the bucket.
    region: Option<String>,
    /// Whether the request was signed.
    is_signed: bool,
    /// Whether that is another region than the one it was signed for.
    is_elsewhere: bool,
    /// How long the server asks to wait before the next request.
    after: Option<Duration>,
}

/// How a request was sent that is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    pub(crate) is_signed: bool,
    /// The region that it was signed for.
    pub(crate) region: &'a str,
}

impl Refusal {
    /// Reads a response whose status is an error.
    pub(crate) fn read(mut response: Response<Body>, signed: Signed<'_>) -> Self {
        let document = Document::read(&mut response).ok();
        let (parts, _) = response.into_parts();
        Self::new(parts.status, &parts.headers, document.as_ref(), signed)
    }

    /// Returns the refusal in a document, which a success may have, too.
    pub(crate) fn new(
        status: StatusCode,
        headers: &HeaderMap,
        document: Option<&Document>,
        signed: Signed<'_>,
    ) -> Self {
        let document = document.filter(|document| document.is("Error"));
        let field = |name| document.and_then(|document| document.field(name)).map(plain);
        let region = headers.get("x-amz-bucket-region").and_then(|it| it.to_str().ok());
        let region = region.map(plain).or_else(|| field("Region"));
        let is_region = |text: &String| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let region = region.filter(is_region);
        Self {
            status,
            code: field("Code").unwrap_or_default(),
            message: field("Message").unwrap_or_default(),
            is_elsewhere: region.as_ref().is_some_and(|region| region != signed.region),
            region,
            is_signed: signed.is_signed,
            after: retry_after(headers),
        }
    }

    /// Returns how long the server asks to wait before the next request.
    pub(crate) fn after(&self) -> Option<Duration> {
        self.after
    }

    /// Returns whether the same request may succeed later (S3, Error responses).
    pub(crate) fn is_temporary(&self) -> bool {
        let codes = ["SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable"];
        // Data that was damaged on its way is sent again.
        let damaged = ["BadDigest", "XAmzContentSHA256Mismatch"];
        let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        codes.contains(&&*self.code)
            || damaged.contains(&&*self.code)
            || later.contains(&self.status)
            || self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED
    }

    /// Returns whether a request is refused for what it has and servers need not understand.
    pub(crate) fn is_unsupported(&self) -> bool {
        [StatusCode::BAD_REQUEST, StatusCode::NOT_IMPLEMENTED].contains(&self.status)
            && ["", "InvalidArgument", "InvalidRequest", "NotImplemented"].contains(&&*self.code)
    }

    /// Returns whether a permission is missing. To a request without a body in the answer, servers give no other reason.
    pub fn is_denied(&self) -> bool {
        self.code() == "AccessDenied"
    }

    /// Returns the code, or what it is by the status.
    fn code(&self) -> &str {
        match (self.code.as_str(), self.status.as_u16()) {
            // The answer to HEAD that is signed for another region.
            ("", 400) if self.is_elsewhere => "AuthorizationHeaderMalformed",
            ("", 301 | 307 | 308) => "PermanentRedirect",
            ("", 403) => "AccessDenied",
            ("", 404) => "NoSuchKey",
            ("", 412) => "PreconditionFailed",
            (code, _) => code,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code();
        let text = match code {
            "NoSuchBucket" => "there is no such bucket",
            "NoSuchKey" => "the bucket has no such object, or there is no such bucket",
            "AccessDenied" if self.is_signed => {
                "access denied: the access key has no permission for this"
            }
            "AccessDenied" => {
                "access denied without credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            }
            "InvalidAccessKeyId" => "the server does not know this access key ID",
            "SignatureDoesNotMatch" => {
                "the secret access key is not that of the access key ID, or the clock of this machine is wrong"
            }
            "RequestTimeTooSkewed" => {
                "the clocks of this machine and of the server differ by more than 15 minutes: set the clock"
            }
            "ExpiredToken" | "TokenRefreshRequired" => {
                "the session token has expired: get new credentials"
            }
            "PreconditionFailed" => "the object was created by another program meanwhile",
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                return match &self.region {
                    Some(region) => write!(
                        f,
                        "the bucket is in the region {region}: set AWS_REGION={region} ({code})"
                    ),
                    None => write!(
                        f,
                        "the bucket is in another region: set AWS_REGION, or AWS_ENDPOINT_URL_S3 ({code})"
                    ),
                };
            }
            _ => {
                write!(f, "the server answers {}", self.status)?;
                let parts = [code, &self.message];
                let mut parts = parts.into_iter().filter(|part| !part.is_empty());
                parts.try_for_each(|part| write!(f, ": {part}"))?;
                return f.write_str(&asked(self.after));
            }
        };
        write!(f, "{text} ({code})")
    }
}

/// Returns the beginning of a text of a server, without control characters.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn texts_of_the_second_level_are_found() {
        let xml = "  \n<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error xmlns=\"x\"><Code>A&amp;B</Code>\
                   <Message><![CDATA[c < d]]>&#33;</Message><List><Code>no</Code></List><Empty/></Error>\n";
        let document = Document::parse(xml.as_bytes()).unwrap();
        assert!(document.is("Error"));
        assert_eq!(document.field("Code"), Some("A&B"));
        assert_eq!(document.field("Message"), Some("c < d!"));
        assert_eq!(document.field("Empty"), None);
        assert_eq!(document.field("List"), None);
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(50_000);
        for xml in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b></b>x",
            "<a></a><b></b>",
            "<a></a>text",
            "<a><b>&other;</b></a>",
            "<!DOCTYPE a [<!ENTITY b \"ccc\">]><a><b>&b;</b></a>",
            &deep,
            &format!("{deep}{}", "</a>".repeat(50_000)),
        ] {
            assert_eq!(Document::parse(xml.as_bytes()), None, "{:.40}", xml);
        }
        assert_eq!(Document::parse(b"<a>\xff</a>"), None);
    }

    fn refusal(status: u16, xml: &str, region: Option<&'static str>) -> Refusal {
        let mut headers = HeaderMap::new();
        let region = region.map(ureq::http::HeaderValue::from_static);
        region.into_iter().for_each(|region| {
            headers.insert("x-amz-bucket-region", region);
        });
        let document = Document::parse(xml.as_bytes());
        let (status, signed) = (
            StatusCode::from_u16(status).unwrap(),
            Signed { is_signed: true, region: "us-east-1" },
        );
        Refusal::new(status, &headers, document.as_ref(), signed)
    }

    #[test]
    fn refusals_name_what_to_do() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        for (status, code, word) in [
            (404, "NoSuchBucket", "no such bucket"),
            (403, "AccessDenied", "no permission"),
            (403, "SignatureDoesNotMatch", "clock"),
            (400, "ExpiredToken", "new credentials"),
            (403, "RequestTimeTooSkewed", "set the clock"),
            (400, "Other", "the server answers 400 Bad Request: Other: m"),
        ] {
            let text = refusal(status, &error(code), None).to_string();
            assert!(text.contains(word) && text.contains(code), "{text}");
        }
        let unsigned = Refusal { is_signed: false, ..refusal(403, "", None) };
        assert!(unsigned.to_string().contains("AWS_ACCESS_KEY_ID"));
        let head = |region| refusal(400, "", Some(region)).to_string();
        assert!(head("eu-west-1").contains("AWS_REGION=eu-west-1"));
        assert!(head("us-east-1").contains("400 Bad Request"));
        for (xml, header) in [
            ("<Error><Code>PermanentRedirect</Code></Error>", Some("eu-west-1")),
            (
                "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
                None,
            ),
            ("", Some("eu-west-1")),
        ] {
            let text = refusal(301, xml, header).to_string();
            assert!(text.contains("AWS_REGION=eu-west-1"), "{text}");
        }
    }

    #[test]
    fn message_of_a_server_is_short_and_plain() {
        let xml = format!("<Error><Message>a&#27;[2J{}</Message></Error>", "b".repeat(9000));
        let text = refusal(418, &xml, None).to_string();
        assert!(text.len() < 300 && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn documents_without_an_end_are_told_from_malformed_ones() {
        for xml in ["", " \n", "<?xml version=\"1.0\"?>\n<a>", "<a><b>text", "<a><b></b", "<a"] {
            assert!(is_cut(xml.as_bytes()), "{xml}");
        }
        for xml in ["text", "<a></b>", "<a></a>text", "<a><b>&other;</b></a>"] {
            assert!(!is_cut(xml.as_bytes()), "{xml}");
        }
    }

    #[test]
    fn busy_servers_are_asked_again() {
        let is_temporary = |status, xml: &str| refusal(status, xml, None).is_temporary();
        assert!(is_temporary(503, "<Error><Code>SlowDown</Code></Error>"));
        assert!(is_temporary(200, "<Error><Code>InternalError</Code></Error>"));
        assert!(is_temporary(400, "<Error><Code>RequestTimeout</Code></Error>"));
        assert!(is_temporary(500, "") && !is_temporary(501, "") && !is_temporary(403, ""));
    }
}
