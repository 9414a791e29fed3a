//! The addresses of a file, and what is sent there for permission.

use std::time::Duration;

use ureq::http::header::HeaderName;
use ureq::http::{HeaderValue, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use crate::location::Place;
use crate::registry::Registry;
use crate::s3::Object;
use crate::version::Version;
use crate::{Access, Error, Hash, Location, client};

/// Where a file comes from.
#[derive(Clone)]
pub(crate) enum Origin {
    /// A web server.
    Web(Agent, Uri),
    /// A registry, with the address of a blob, its SHA-256 and its size.
    Registry { client: Agent, uri: Uri, registry: Box<Registry>, blob: (Hash, u64) },
    /// A bucket of S3.
    Bucket(Box<Object>),
}

/// A part of a file.
pub(crate) struct Part<'a> {
    pub(crate) first: u64,
    /// The byte after it; `None` for the end of the file.
    pub(crate) end: Option<u64>,
    /// The version that it must be of.
    pub(crate) version: Option<&'a Version>,
}

impl Origin {
    /// Finds the address of a file.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached, refuses, or has no such image.
    pub(crate) fn find(location: &Location, access: &Access) -> Result<Self, Error> {
        match &location.0 {
            Place::Web(uri) => Ok(Self::Web(client::client(uri, true), uri.clone())),
            Place::Registry(reference) => {
                let client = client::client(&reference.server(), true);
                let login = access.login.clone();
                let mut registry = Registry::new(client.clone(), reference.clone(), login);
                let blob = registry.find()?;
                let (registry, uri) = (Box::new(registry), blob.uri);
                Ok(Self::Registry { client, uri, registry, blob: (blob.hash, blob.bytes) })
            }
            Place::Bucket(name) => {
                let account = access.account.clone().unwrap_or_default();
                Ok(Self::Bucket(Box::new(Object::new(name, account))))
            }
        }
    }

    /// Returns the SHA-256 and the size of the file, if a registry names them.
    pub(crate) fn blob(&self) -> Option<(Hash, u64)> {
        match self {
            Self::Registry { blob, .. } => Some(*blob),
            Self::Web(..) | Self::Bucket(_) => None,
        }
    }

    /// Requests the file, or a part of it; the server is silent for `silence` at most.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or demands a permission that is not given.
    pub(crate) fn request(
        &mut self,
        part: Option<&Part<'_>>,
        silence: Duration,
    ) -> Result<Response<Body>, Error> {
        let (client, uri, registry) = match self {
            Self::Web(client, uri) => return get(client, uri, None, part, silence),
            Self::Bucket(object) => {
                return object.get(&part.map(Part::headers).unwrap_or_default(), silence);
            }
            Self::Registry { client, uri, registry, .. } => (client, uri, registry),
        };
        let response = get(client, uri, registry.permission(), part, silence)?;
        // A permission is valid for some minutes only.
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        registry.ask(&response, uri)?;
        match get(client, uri, registry.permission(), part, silence)? {
            response if response.status() == StatusCode::UNAUTHORIZED => Err(Error::Login),
            response => Ok(response),
        }
    }

    /// Returns whether the server has redirected to `source`. It never does from a bucket.
    pub(crate) fn is_redirected(&self, source: &Uri) -> bool {
        match self {
            Self::Web(_, uri) | Self::Registry { uri, .. } => source != uri,
            Self::Bucket(_) => false,
        }
    }

    /// Requests a part from the address to which the server has redirected, without a permission.
    ///
    /// # Errors
    /// Fails if the server cannot be reached.
    pub(crate) fn request_at(
        &self,
        source: &Uri,
        part: &Part<'_>,
        silence: Duration,
    ) -> Result<Response<Body>, Error> {
        match self {
            Self::Web(client, _) | Self::Registry { client, .. } => {
                get(client, source, None, Some(part), silence)
            }
            Self::Bucket(object) => object.get(&part.headers(), silence),
        }
    }

    /// Returns why the server does not give the file.
    pub(crate) fn refusal(&self, response: Response<Body>) -> Error {
        match self {
            Self::Bucket(object) => object.refusal(response),
            Self::Web(..) | Self::Registry { .. } => Error::status(&response),
        }
    }
}

impl Part<'_> {
    fn headers(&self) -> Vec<(HeaderName, String)> {
        let last = self.end.map(|end| end.saturating_sub(1).to_string()).unwrap_or_default();
        let range = (header::RANGE, format!("bytes={}-{last}", self.first));
        let version = self.version.map(|version| (header::IF_RANGE, version.as_str().to_owned()));
        std::iter::once(range).chain(version).collect()
    }
}

fn get(
    client: &Agent,
    uri: &Uri,
    permission: Option<&HeaderValue>,
    part: Option<&Part<'_>>,
    silence: Duration,
) -> Result<Response<Body>, Error> {
    let mut request = client.get(uri);
    for (name, value) in part.map(Part::headers).unwrap_or_default() {
        request = request.header(name, value);
    }
    if let Some(permission) = permission {
        request = request.header(header::AUTHORIZATION, permission);
    }
    Ok(request.config().timeout_per_read(Some(silence)).build().call()?)
}
