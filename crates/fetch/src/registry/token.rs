//! The permission to read an image: a token of the registry's authorization server, or the password
//! itself (RFC 6750, RFC 7617, and the token authentication of the Docker registry).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use ureq::Agent;
use ureq::http::{StatusCode, Uri, header};

use super::{Login, Reference};
use crate::Error;
use crate::client::TIMEOUT;
use crate::proxy::is_loopback;

/// The longest answer with a token.
const MAX_ANSWER: u64 = 64 << 10;

/// What a registry demands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// User name and password.
    Basic,
    /// A token from this server for this service.
    Bearer { realm: String, service: Option<String> },
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Token {
    /// Parses the value of `WWW-Authenticate` (RFC 9110 §11.6.1).
    pub(crate) fn demanded(value: &str) -> Option<Self> {
        let (scheme, parameters) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = parameters;
        while let Some((name, after)) = rest.split_once("=\"") {
            let (text, after) = after.split_once('"')?;
            match name.trim_matches([' ', ',']) {
                "realm" => realm = Some(text.to_owned()),
                "service" => service = Some(text.to_owned()),
                _ => {}
            }
            rest = after;
        }
        Some(Self::Bearer { realm: realm?, service })
    }

    /// Returns the value of `Authorization`.
    ///
    /// # Errors
    /// Fails if the authorization server cannot be reached or refuses, or if a password is demanded and
    /// there is none.
    pub(crate) fn get(
        self,
        client: &Agent,
        reference: &Reference,
        login: Option<&Login>,
    ) -> Result<String, Error> {
        let (realm, service) = match self {
            Self::Basic => return basic(login.ok_or(Error::Login)?),
            Self::Bearer { realm, service } => (realm, service),
        };
        let uri = address(&realm, service.as_deref(), reference).ok_or(Error::Token)?;
        let mut request = client.get(&uri);
        if let Some(login) = login {
            request = request.header(header::AUTHORIZATION, basic(login)?);
        }
        // The server that the registry names is asked, and no other.
        let request = request.config().max_redirects(0).timeout_recv_body(Some(TIMEOUT)).build();
        let mut response = request.call()?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Error::Login),
            _ => return Err(Error::status(&response)),
        }
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| Error::NoToken)?;
        let token = answer.token.or(answer.access_token).ok_or(Error::NoToken)?;
        Ok(format!("Bearer {token}"))
    }
}

/// Returns the address where a token is asked for, if the registry may name it: by HTTPS, or on this machine if the
/// registry is there, too.
pub(super) fn address(realm: &str, service: Option<&str>, reference: &Reference) -> Option<Uri> {
    let uri: Uri = realm.parse().ok()?;
    let is_here = || !reference.is_encrypted() && uri.host().is_some_and(is_loopback);
    if uri.scheme_str() != Some("https") && !is_here() {
        return None;
    }
    let separator = if uri.query().is_some() { '&' } else { '?' };
    let service = service.map(|service| format!("service={}&", encoded(service)));
    let (service, name) = (service.unwrap_or_default(), encoded(reference.repository()));
    format!("{uri}{separator}{service}scope=repository:{name}:pull").parse().ok()
}

/// Percent-encodes all but unreserved characters (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    let one = |byte: u8| match char::from(byte) {
        c if c.is_ascii_alphanumeric() || "-._~/".contains(c) => c.to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

fn basic(login: &Login) -> Result<String, Error> {
    if login.user.contains(':') {
        return Err(Error::Login);
    }
    let text = format!("{}:{}", login.user, login.password);
    Ok(format!("Basic {}", BASE64_STANDARD.encode(text)))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn demands_are_parsed() {
        let bearer = |realm: &str, service: Option<&str>| Token::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        };
        let parse = Token::demanded;
        assert_eq!(
            parse(r#"Bearer realm="https://a.example/token",service="r.example",scope="x:y,z:w""#),
            Some(bearer("https://a.example/token", Some("r.example")))
        );
        assert_eq!(parse(r#"bearer  realm="https://a""#), Some(bearer("https://a", None)));
        assert_eq!(parse(r#"Basic realm="it""#), Some(Token::Basic));
        for other in
            ["", "Digest realm=\"a\"", "Bearer", "Bearer realm=\"a", "Bearer service=\"a\""]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn x57_token_is_asked_for_by_https_alone() {
        let at = |realm, registry: &str| {
            let reference = Reference::parse(&format!("{registry}/a/b")).unwrap();
            address(realm, Some("it & more"), &reference).map(|uri| uri.to_string())
        };
        let asked = "?service=it%20%26%20more&scope=repository:a/b:pull";
        assert_eq!(at("https://a.example/t", "r").unwrap(), format!("https://a.example/t{asked}"));
        assert_eq!(at("http://169.254.169.254/latest/meta-data/token", "r.example"), None);
        assert_eq!(at("file:///etc/passwd", "r.example"), None);
        assert!(at("http://localhost:5001/t", "localhost:5000").is_some());
        assert_eq!(at("http://169.254.169.254/latest", "localhost:5000"), None);
    }
}
