//! The addresses of a file, and what is sent there for permission.

use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use crate::location::Place;
use crate::registry::{Login, Registry};
use crate::version::Version;
use crate::{Error, Hash, Location, client};

/// Where a file comes from.
pub(crate) struct Origin {
    client: Agent,
    uri: Uri,
    registry: Option<Registry>,
    blob: Option<(Hash, u64)>,
}

/// A part of a file: from a byte to its end.
pub(crate) struct Rest<'a> {
    pub(crate) first: u64,
    /// The version that it must be of.
    pub(crate) version: Option<&'a Version>,
}

impl Origin {
    /// Finds the address of a file.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached, refuses, or has no such image.
    pub(crate) fn find(location: &Location, login: Option<Login>) -> Result<Self, Error> {
        let client = client::client(location.is_encrypted());
        match &location.0 {
            Place::Web(uri) => Ok(Self { client, uri: uri.clone(), registry: None, blob: None }),
            Place::Registry(reference) => {
                let mut registry = Registry::new(client.clone(), reference.clone(), login);
                let blob = registry.find()?;
                let (uri, registry) = (blob.uri, Some(registry));
                Ok(Self { client, uri, registry, blob: Some((blob.hash, blob.bytes)) })
            }
        }
    }

    /// Returns the SHA-256 and the size of the file, if a registry names them.
    pub(crate) fn blob(&self) -> Option<(Hash, u64)> {
        self.blob
    }

    /// Requests the file, or a part of it; a response ends after `timeout`.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or demands a permission that is not given.
    pub(crate) fn request(
        &mut self,
        rest: Option<&Rest<'_>>,
        timeout: Option<Duration>,
    ) -> Result<Response<Body>, Error> {
        let response = self.get(&self.uri, rest, timeout)?;
        let Some(registry) = &mut self.registry else { return Ok(response) };
        // A permission is valid for some minutes only.
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        registry.ask(&response, &self.uri)?;
        match self.get(&self.uri, rest, timeout)? {
            response if response.status() == StatusCode::UNAUTHORIZED => Err(Error::Login),
            response => Ok(response),
        }
    }

    /// Requests a part from the address to which the server redirected.
    ///
    /// # Errors
    /// Fails if the server cannot be reached.
    pub(crate) fn request_at(
        &self,
        uri: &Uri,
        rest: &Rest<'_>,
        timeout: Option<Duration>,
    ) -> Result<Response<Body>, Error> {
        self.get(uri, Some(rest), timeout)
    }

    fn get(
        &self,
        uri: &Uri,
        rest: Option<&Rest<'_>>,
        timeout: Option<Duration>,
    ) -> Result<Response<Body>, Error> {
        let mut request = self.client.get(uri);
        if let Some(rest) = rest {
            request = request.header(header::RANGE, format!("bytes={}-", rest.first));
            if let Some(version) = rest.version {
                request = request.header(header::IF_RANGE, version.as_str());
            }
        }
        let permission = self.registry.as_ref().and_then(Registry::permission);
        if let Some(permission) = permission.filter(|_| *uri == self.uri) {
            request = request.header(header::AUTHORIZATION, permission);
        }
        Ok(request.config().timeout_recv_body(timeout).build().call()?)
    }
}
