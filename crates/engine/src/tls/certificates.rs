//! What the two ends show each other where no key is known beforehand: certificates (RFC 8446 §4.4.2), of an authority that is
//! named for just this. It knows no socket and no file.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use export::Secret;
use s2n_tls::callbacks::VerifyHostNameCallback;
use s2n_tls::config::Config;
use s2n_tls::error::Error;

use super::s2n;

/// The most bytes of a name that a certificate shows.
const NAME: usize = 255;

/// What a server shows, and whose clients it knows. Read once; cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    config: Config,
    verifies_clients: bool,
}

impl Certificates {
    /// The server's certificate with those that lead from it to its authority, and its private key; all in PEM. With an
    /// `authority`, a client that shows a certificate of it is known ([`export::Channel::certified`]), and where a key is
    /// needed must show one; without, clients show nothing, and are let in with certificates only where no key is needed.
    ///
    /// # Errors
    /// One of them cannot be used. The error tells which, in a sentence, and nothing of the key.
    pub fn new(chain: &[u8], key: &Secret, authority: Option<&[u8]>) -> io::Result<Self> {
        let mut builder = s2n::certified().map_err(|error| useless("TLS", &error))?;
        let own = builder.load_pem(chain, key.bytes());
        own.map_err(|error| useless("the server's certificate with its key", &error))?;
        if let Some(authority) = authority {
            let trusted = builder.trust_pem(authority);
            trusted.map_err(|error| useless("the authority's certificate", &error))?;
        }
        let config = builder.build().map_err(|error| useless("TLS", &error))?;
        Ok(Self { config, verifies_clients: authority.is_some() })
    }

    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    pub(super) fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates(knows clients: {})", self.verifies_clients)
    }
}

/// Which servers a client takes for the right ones, and what it shows them.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The authority's certificates, in PEM. No others are trusted.
    pub authority: Vec<u8>,
    /// The name, or the address, that the server's certificate must have.
    pub name: String,
    /// A certificate of one's own with those that lead to its authority, and its private key, in PEM.
    pub own: Option<(Vec<u8>, Secret)>,
}

impl Trust {
    /// Whether all of it can be used.
    ///
    /// # Errors
    /// One of them cannot. The error tells which, in a sentence.
    pub fn check(&self) -> io::Result<()> {
        let mut builder = s2n::certified().map_err(|error| useless("TLS", &error))?;
        let trusted = builder.trust_pem(&self.authority);
        trusted.map_err(|error| useless("the authority's certificate", &error))?;
        if let Some((chain, key)) = &self.own {
            let own = builder.load_pem(chain, key.bytes());
            own.map_err(|error| useless("the client's certificate with its key", &error))?;
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Result<Config, Error> {
        let mut builder = s2n::certified()?;
        builder.trust_pem(&self.authority)?;
        if let Some((chain, key)) = &self.own {
            builder.load_pem(chain, key.bytes())?;
        }
        builder.build()
    }
}

fn useless(what: &str, error: &Error) -> io::Error {
    let why = error.message();
    io::Error::new(ErrorKind::InvalidData, format!("{what} cannot be used: {why}"))
}

/// Takes note of the first name that a client's certificate shows, whatever it is: that it is the authority's is checked
/// elsewhere, and who is called so is the policy's. One that could be taken for another when it is shown is no name.
#[derive(Clone, Default)]
pub(super) struct PeerName(Arc<OnceLock<String>>);

impl PeerName {
    /// The name; empty if none was shown.
    pub(super) fn name(&self) -> String {
        self.0.get().cloned().unwrap_or_default()
    }
}

impl VerifyHostNameCallback for PeerName {
    fn verify_host_name(&self, name: &str) -> bool {
        let is_one = name.len() <= NAME && !name.chars().any(char::is_control);
        self.0.get_or_init(|| if is_one { name.to_owned() } else { String::new() });
        true
    }
}

/// Takes a server's certificate for right that has this address.
pub(super) struct Address(pub(super) IpAddr);

impl VerifyHostNameCallback for Address {
    fn verify_host_name(&self, name: &str) -> bool {
        name.parse() == Ok(self.0)
    }
}
