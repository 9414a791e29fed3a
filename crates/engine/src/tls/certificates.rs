//! Certificates (RFC 8446 §4.4.2) of a configured certification authority.

use std::fmt;
use std::io::{self, ErrorKind};

use export::{Auth, Secret};
use s2n_tls::config::Config;
use s2n_tls::enums::ClientAuthType;
use s2n_tls::error::Error;

use super::s2n::{self, Handshake, HandshakeError, Socket, failed};

/// A server's certificate, and the authority of its clients. Parsed once; cheap to clone.
#[derive(Clone)]
pub struct Certificates {
    config: Config,
    verifies_clients: bool,
    /// Whether clients authenticate within the protocol.
    in_band: bool,
}

impl Certificates {
    /// Returns the configuration of a server from its certificate chain and private key in PEM.
    ///
    /// With an `authority` (PEM), a client with a certificate of it is authenticated
    /// ([`export::Channel::certified`]), and such a certificate is mandatory with
    /// [`Auth::Required`](export::Auth::Required). Without, no client certificate is requested, and
    /// certificates are accepted only with [`Auth::None`](export::Auth::None).
    ///
    /// # Errors
    /// Fails if one of them cannot be used. The message names it, and contains nothing of the key.
    pub fn new(chain: &[u8], key: &Secret, authority: Option<&[u8]>) -> io::Result<Self> {
        let mut builder = s2n::certified().map_err(|error| unusable("TLS", &error))?;
        let own = builder.load_pem(chain, key.bytes());
        own.map_err(|error| unusable("the server's certificate with its key", &error))?;
        if let Some(authority) = authority {
            let trusted = builder.trust_pem(authority);
            trusted.map_err(|error| unusable("the authority's certificate", &error))?;
        }
        let config = builder.build().map_err(|error| unusable("TLS", &error))?;
        Ok(Self { config, verifies_clients: authority.is_some(), in_band: false })
    }

    /// Returns the configuration of a server whose clients show no certificate: they authenticate
    /// within the protocol, also with [`Auth::Required`](export::Auth::Required).
    ///
    /// # Errors
    /// Fails as [`Certificates::new`].
    pub fn in_band(chain: &[u8], key: &Secret) -> io::Result<Self> {
        Ok(Self { in_band: true, ..Self::new(chain, key, None)? })
    }

    /// Starts a handshake as server; `early` was already received. With [`Auth::Required`] the
    /// client must present a certificate.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated, or a client certificate is required and no authority is
    /// configured.
    pub(crate) fn serve(
        &self,
        socket: Socket,
        early: Vec<u8>,
        auth: Auth,
    ) -> Result<Handshake, HandshakeError> {
        let wanted = match (auth, self.verifies_clients) {
            (Auth::Required, _) if self.in_band => ClientAuthType::None,
            (Auth::Required, true) => ClientAuthType::Required,
            (Auth::Required, false) => {
                let reason = "no certification authority is configured";
                return Err(HandshakeError { reason, is_early: true, is_cut: false });
            }
            (Auth::None, true) => ClientAuthType::Optional,
            (Auth::None, false) => ClientAuthType::None,
        };
        Handshake::serve_certified(socket, early, self.config.clone(), wanted)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates(knows clients: {})", self.verifies_clients)
    }
}

/// What a client requires of a server's certificate, and the client's own certificate.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Certificates of the authority, in PEM. No others are trusted.
    pub authority: Vec<u8>,
    /// The name or address that the server's certificate must contain.
    pub name: String,
    /// The client's certificate chain and private key, in PEM.
    pub own: Option<(Vec<u8>, Secret)>,
}

impl Trust {
    /// Checks that the certificates and the key can be used.
    ///
    /// # Errors
    /// Fails if one of them cannot. The message names it.
    pub fn check(&self) -> io::Result<()> {
        let mut builder = s2n::certified().map_err(|error| unusable("TLS", &error))?;
        let trusted = builder.trust_pem(&self.authority);
        trusted.map_err(|error| unusable("the authority's certificate", &error))?;
        if let Some((chain, key)) = &self.own {
            let own = builder.load_pem(chain, key.bytes());
            own.map_err(|error| unusable("the client's certificate with its key", &error))?;
        }
        Ok(())
    }

    /// Starts a handshake as client.
    ///
    /// # Errors
    /// Fails if memory cannot be allocated, or one of the certificates or the key cannot be used.
    pub(super) fn begin(&self, socket: Socket) -> Result<Handshake, HandshakeError> {
        let config = self.config().map_err(|error| failed(&error, true))?;
        Handshake::begin_certified(socket, config, &self.name)
    }

    fn config(&self) -> Result<Config, Error> {
        let mut builder = s2n::certified()?;
        builder.trust_pem(&self.authority)?;
        if let Some((chain, key)) = &self.own {
            builder.load_pem(chain, key.bytes())?;
        }
        builder.build()
    }
}

fn unusable(what: &str, error: &Error) -> io::Error {
    let reason = error.message();
    io::Error::new(ErrorKind::InvalidData, format!("{what} cannot be used: {reason}"))
}
