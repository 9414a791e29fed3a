//! The name of an image in a registry.

use std::fmt;

use ureq::http::Uri;

use super::answer;
use crate::proxy::is_loopback;
use crate::{Error, Hash};

/// The longest name of a repository (OCI Distribution Specification 1.1, §Pulling manifests), and of a
/// tag.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An image of a registry: `REGISTRY/NAME:TAG`, `REGISTRY/NAME@sha256:DIGEST`, or both.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Host name or address, and port.
    registry: String,
    repository: String,
    /// A tag, or a digest.
    version: String,
    digest: Option<Hash>,
}

impl Reference {
    /// Parses a name without the scheme.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (registry, rest) = text.split_once('/')?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(answer::hash(digest)?)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        let is_valid = is_registry(registry) && is_repository(repository) && tag.is_none_or(is_tag);
        let tag = tag.unwrap_or("latest").to_owned();
        let version = digest.as_ref().map_or(tag, answer::digest);
        is_valid.then(|| Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            version,
            digest,
        })
    }

    /// Returns the tag or the digest.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn digest(&self) -> Option<Hash> {
        self.digest
    }

    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns whether the registry is spoken to by HTTPS: unless it is on this machine.
    pub(crate) fn is_encrypted(&self) -> bool {
        let uri: Option<Uri> = format!("https://{}/", self.registry).parse().ok();
        !uri.as_ref().and_then(Uri::host).is_some_and(is_loopback)
    }

    /// Returns the address of the registry.
    pub(crate) fn server(&self) -> Uri {
        let scheme = if self.is_encrypted() { "https" } else { "http" };
        // The name has been parsed as a part of an address.
        format!("{scheme}://{}/", self.registry).parse().unwrap_or_default()
    }

    /// Returns the address of a manifest or blob.
    pub(crate) fn address(&self, kind: &str, version: &str) -> Result<Uri, Error> {
        let scheme = if self.is_encrypted() { "https" } else { "http" };
        let host = match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let repository = &self.repository;
        let uri = format!("{scheme}://{host}/v2/{repository}/{kind}/{version}").parse();
        uri.map_err(|_| Error::Image("its name is malformed"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version)
    }
}

fn is_registry(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    let uri: Result<Uri, _> = format!("https://{text}/").parse();
    let port = text.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    port.is_none_or(|port| port.parse::<u16>().is_ok())
        && text.chars().all(plain)
        && uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

/// Parts of lower-case letters and digits, separated by `/`, and within them by `.`, `_` or `-`.
fn is_repository(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_part = |part: &str| {
        let ends = [part.chars().next(), part.chars().last()];
        ends.into_iter().all(|end| end.is_some_and(plain))
            && part.chars().all(|c| plain(c) || "._-".contains(c))
            && !part.contains("..")
    };
    text.len() <= MAX_NAME && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    first && text.len() <= MAX_TAG && text.chars().all(plain)
}

#[cfg(test)]
mod test {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn address(text: &str) -> String {
        let reference = Reference::parse(text).unwrap();
        reference.address("manifests", reference.version()).unwrap().to_string()
    }

    #[test]
    fn names_of_images_are_addresses() {
        let at = |version| format!("https://r.example:5000/v2/a/b-c/manifests/{version}");
        assert_eq!(address("r.example:5000/a/b-c"), at("latest"));
        assert_eq!(address("r.example:5000/a/b-c:v1.0"), at("v1.0"));
        for pinned in [format!("a/b-c@{DIGEST}"), format!("a/b-c:v1@{DIGEST}")] {
            let text = format!("r.example:5000/{pinned}");
            assert_eq!(address(&text), at(DIGEST));
            let shown = Reference::parse(&text).unwrap().to_string();
            assert_eq!(shown, format!("r.example:5000/a/b-c@{DIGEST}"));
        }
        assert!(address("docker.io/library/a").starts_with("https://registry-1.docker.io/v2/"));
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_the_clear() {
        for here in ["localhost:5000/a", "127.0.0.1/a", "[::1]:80/a"] {
            assert!(address(here).starts_with("http://"), "{here}");
        }
        for there in ["192.168.1.5:5000/a", "localhost.example/a", "127.0.0.1.example/a"] {
            assert!(address(there).starts_with("https://"), "{there}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for text in [
            "",
            "a",
            "/a",
            "r/",
            "r/A",
            "r/a:",
            "r/a:b:c",
            "r/a//b",
            "r/../a",
            "r/a/../b",
            "u@r/a",
            "r/a@sha256:12",
            "r/a@md5:12",
            "r/a?b=c",
            "r/-a",
            "r/a:-b",
            "r/a b",
            "[/a",
            "r:x/a",
        ] {
            assert!(Reference::parse(text).is_none(), "{text}");
        }
    }
}
