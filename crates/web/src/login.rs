//! Admission of a request where a code is required: by the cookie of a session, by the code in HTTP Basic
//! (RFC 7617), or by the code itself, which begins a session.

use std::time::Instant;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use export::Peer;

use crate::access::{Access, Rejected};
use crate::page;
use crate::request::{Method, Request, decoded_form};
use crate::response::{self, Code, Head};

/// The parameter with the code, in the form and in the address of the QR code.
const PARAMETER: &str = "code";

/// The result of an admission.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted,
    /// Not admitted, but what is asked for is the same for all.
    Public,
    /// Not admitted, or first to another address: this response. `is_wrong`: because of a wrong code.
    Respond {
        text: Vec<u8>,
        is_wrong: bool,
    },
}

/// Admits a request, or returns its response. `was_admitted`: whether an earlier request of the connection
/// was, by the code that there is now.
pub(crate) fn admit(
    access: &Access,
    (peer, was_admitted): (&Peer, bool),
    request: &Request,
    now: Instant,
) -> Admission {
    // A page of others reaches this machine under a name that they have registered.
    if !request.is_own_host {
        return Admission::Public;
    }
    let name = cookie_name(peer);
    let is_session = cookies(request, &name).any(|cookie| access.is_session(cookie, now));
    let posted = (request.method == Method::Post
        && request.path.as_deref() == Some(page::FORM_PATH))
    .then(|| parameter(&request.content))
    .flatten();
    let linked = || match (request.method, request.path.as_deref()) {
        // A person has opened it: no image of another page, in a browser without Fetch Metadata.
        (Method::Get, Some("/")) if request.accepts_html => parameter(request.query.as_bytes()),
        _ => None,
    };
    // Another web page must not make the browser of this person use up codes.
    let is_posted = posted.is_some();
    let code = posted.or_else(linked).filter(|_| !request.is_cross_site);
    if is_session && code.is_some() && !is_posted {
        // A link that was used before, perhaps with another code.
        return respond(to_page(request, None));
    }
    if let Some(code) = code {
        return match access.log_in(&code, peer.network(), now) {
            Ok(cookie) => {
                let cookie = format!("{name}={cookie}");
                respond(to_page(request, Some(&cookie)))
            }
            Err(rejected) => respond_rejected(request, rejected),
        };
    }
    if is_session
        && !(request.method == Method::Post && request.path.as_deref() == Some(page::FORM_PATH))
    {
        return Admission::Admitted;
    }
    // Wrong codes of others at the same address do not interrupt a download in ranges.
    let check = |code: String| match was_admitted && access.is_right(&code) {
        true => Ok(()),
        false => access.check(&code, peer.network(), now),
    };
    match basic(request).filter(|_| !request.is_cross_site).map(check) {
        Some(Ok(())) => Admission::Admitted,
        Some(Err(rejected)) => respond_rejected(request, rejected),
        // The style sheet of the form.
        None if request.path.as_deref() == Some(page::STYLE_PATH) => Admission::Public,
        None => respond(ask(request, "", None)),
    }
}

fn respond(text: Vec<u8>) -> Admission {
    Admission::Respond { text, is_wrong: false }
}

fn respond_rejected(request: &Request, rejected: Rejected) -> Admission {
    match rejected {
        Rejected::Wrong => {
            Admission::Respond { text: ask(request, "This code is wrong.", None), is_wrong: true }
        }
        Rejected::Locked(left) => {
            let seconds = left.as_secs().saturating_add(1);
            respond(ask(
                request,
                "There were too many wrong codes. Try again later.",
                Some(seconds),
            ))
        }
    }
}

/// Returns the form for a browser; a text and a challenge for a program.
fn ask(request: &Request, problem: &str, retry_after: Option<u64>) -> Vec<u8> {
    let is_head = request.method == Method::Head;
    let code = match (retry_after, request.accepts_html) {
        (Some(_), _) => Code::TooManyRequests,
        (None, true) => Code::LoginRequired,
        (None, false) => Code::Unauthorized,
    };
    let mut head = Head::new(code, request.keep_alive);
    if let Some(seconds) = retry_after {
        head.field("Retry-After", &seconds.to_string());
    }
    if code == Code::Unauthorized {
        head.field("WWW-Authenticate", "Basic realm=\"storagetm\", charset=\"UTF-8\"");
    }
    if request.accepts_html {
        let form = page::form(problem);
        return response::of_text(head, "text/html; charset=utf-8", &form, is_head);
    }
    let text = match problem {
        "" => code.text().to_owned(),
        problem => format!("{problem}\n"),
    };
    response::of_text(head, "text/plain; charset=utf-8", &text, is_head)
}

/// Returns the response that leads to the page with the disks, without the code in its address. A cookie
/// begins a session.
fn to_page(request: &Request, cookie: Option<&str>) -> Vec<u8> {
    let mut head = Head::new(Code::SeeOther, request.keep_alive);
    head.field("Location", "/");
    if let Some(cookie) = cookie {
        head.field("Set-Cookie", &format!("{cookie}; Path=/; Secure; HttpOnly; SameSite=Strict"));
    }
    response::of_text(head, "text/plain; charset=utf-8", "", false)
}

/// Returns the name of the cookie: browsers accept one with this prefix only from this host by TLS. It
/// has the port, as they send cookies to all ports of a host.
fn cookie_name(peer: &Peer) -> String {
    let port = peer.local().map(|local| local.port()).unwrap_or_default();
    format!("__Host-storagetm-{port}")
}

/// Returns the values of the cookies of that name.
fn cookies<'a>(request: &'a Request, name: &'a str) -> impl Iterator<Item = &'a str> {
    let pairs = request.cookie.iter().flat_map(|cookies| cookies.split([';', ',']));
    pairs.filter_map(move |pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Returns the password of HTTP Basic. The user name does not matter.
fn basic(request: &Request) -> Option<String> {
    let (scheme, credentials) = request.authorization.as_deref()?.trim().split_once(' ')?;
    let decoded = BASE64_STANDARD.decode(credentials.trim()).ok()?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    scheme.eq_ignore_ascii_case("Basic").then(|| password.to_owned())
}

/// Returns the code in `application/x-www-form-urlencoded` parameters.
fn parameter(pairs: &[u8]) -> Option<String> {
    let pairs = std::str::from_utf8(pairs).ok()?.split('&');
    let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, _)| *name == PARAMETER).and_then(|(_, value)| decoded_form(value))
}
