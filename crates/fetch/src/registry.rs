//! A disk image in a registry of container images (OCI Distribution Specification 1.1): its name, and the
//! way from the name to the blob with the image.
//!
//! The artifact has one layer, the image: so it is for Tinkerbell's oci2disk, for Ironic, and with
//! `oras push`. A manifest is at most 4 MiB, and is verified if the name has its digest. The blob is not verified
//! here ([`crate::Body::hash`]).

mod answer;
mod reference;
mod token;

use ureq::http::{HeaderValue, Response, StatusCode, Uri, header};
use ureq::{Agent, ResponseExt as _};

use crate::client::TIMEOUT;
use crate::{Error, Hash};
pub(crate) use answer::digest;
use answer::{Document, Layer};
pub(crate) use reference::Reference;
use sha2::{Digest as _, Sha256};
use token::Token;

/// The largest manifest, which registries accept at least (§Pushing Manifests).
const MAX_MANIFEST: u64 = 4 << 20;

/// The documents that are understood.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password, or a token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Reads from one registry, with the permission that it has given.
#[derive(Clone)]
pub(crate) struct Registry {
    client: Agent,
    reference: Reference,
    login: Option<Login>,
    /// The value of `Authorization`.
    permission: Option<HeaderValue>,
}

/// A blob of a registry.
pub(crate) struct Blob {
    /// Its address.
    pub(crate) uri: Uri,
    /// Its SHA-256.
    pub(crate) hash: Hash,
    /// Its size in bytes.
    pub(crate) bytes: u64,
}

impl Registry {
    pub(crate) fn new(client: Agent, reference: Reference, login: Option<Login>) -> Self {
        Self { client, reference, login, permission: None }
    }

    /// Returns the value of `Authorization` for a request.
    pub(crate) fn permission(&self) -> Option<&HeaderValue> {
        self.permission.as_ref()
    }

    /// Finds the blob of the image.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached, refuses, has no such image, or if that is a container.
    pub(crate) fn find(&mut self) -> Result<Blob, Error> {
        let (name, digest) = (self.reference.version().to_owned(), self.reference.digest());
        let layer = match self.document(&name, digest)? {
            Document::Image(layer) => layer,
            Document::Index(hash) => match self.document(&answer::digest(&hash), Some(hash))? {
                Document::Image(layer) => layer,
                Document::Index(_) => return Err(Error::Image("it is a list of lists")),
            },
        };
        let Layer { hash, bytes } = layer;
        let uri = self.reference.address("blobs", &answer::digest(&hash))?;
        Ok(Blob { uri, hash, bytes })
    }

    /// Requests a manifest or an index, of which this may be the digest.
    fn document(&mut self, name: &str, digest: Option<Hash>) -> Result<Document, Error> {
        let uri = self.reference.address("manifests", name)?;
        let mut response = self.get(&uri)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.ask(&response, &uri)?;
            response = self.get(&uri)?;
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(Error::Login);
        }
        if response.status() != StatusCode::OK {
            return Err(Error::status(&response));
        }
        let body = response.body_mut().with_config().limit(MAX_MANIFEST).read_to_vec()?;
        if digest.is_some_and(|digest| digest != Hash::from(Sha256::digest(&body))) {
            return Err(Error::Image("its manifest does not have the digest that was asked for"));
        }
        answer::parse(&body)
    }

    fn get(&self, uri: &Uri) -> Result<Response<ureq::Body>, Error> {
        let mut request = self.client.get(uri).header(header::ACCEPT, ACCEPT);
        if let Some(permission) = &self.permission {
            request = request.header(header::AUTHORIZATION, permission);
        }
        Ok(request.config().timeout_recv_body(Some(TIMEOUT)).build().call()?)
    }

    /// Asks for the permission that the answer to a request demands.
    ///
    /// # Errors
    /// Fails if it is not given, or if the answer is that of another server, to which the registry redirected.
    pub(crate) fn ask(
        &mut self,
        response: &Response<ureq::Body>,
        requested: &Uri,
    ) -> Result<(), Error> {
        let server = |uri: &Uri| (uri.scheme().cloned(), uri.authority().cloned());
        if server(response.get_uri()) != server(requested) {
            return Err(Error::status(response));
        }
        let demanded = response.headers().get_all(header::WWW_AUTHENTICATE);
        let demanded = demanded.iter().filter_map(|value| value.to_str().ok());
        let token = demanded.filter_map(Token::demanded).next();
        let token = token.ok_or_else(|| Error::status(response))?;
        let permission = token.get(&self.client, &self.reference, self.login.as_ref())?;
        // Not shown when a request is logged.
        let mut value = HeaderValue::from_str(&permission).map_err(|_| Error::Token)?;
        value.set_sensitive(true);
        self.permission = Some(value);
        Ok(())
    }
}

/// Parses any data as a manifest and as the demand for a token, for a fuzzer.
///
/// # Panics
/// Panics if a digest is not one of SHA-256, or if a token would be asked for without encryption.
pub(crate) fn parse_any(data: &[u8]) {
    if let Ok(Document::Image(Layer { hash, .. }) | Document::Index(hash)) = answer::parse(data) {
        assert_eq!(answer::hash(&digest(&hash)), Some(hash));
    }
    let demanded = std::str::from_utf8(data).ok().and_then(Token::demanded);
    let reference = Reference::parse("registry.example/lab/disk:v1");
    if let (Some(Token::Bearer { realm, service }), Some(reference)) = (demanded, reference) {
        let uri = token::address(&realm, service.as_deref(), &reference);
        assert!(uri.is_none_or(|uri| uri.scheme_str() == Some("https")), "{realm}");
    }
}
