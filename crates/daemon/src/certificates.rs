//! Server certificates: the files of `--tls-certificates`, and this machine's own for HTTPS.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use engine::tls;
use export::Secret;
use keys::certificate::OwnCertificate;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use failure::Failure;

/// The server certificate and its intermediate certificates.
const CHAIN: &str = "server-cert.pem";
/// The server's private key.
const KEY: &str = "server-key.pem";
/// CA certificates for client certificates.
const AUTHORITY: &str = "ca-cert.pem";

/// Longest file in bytes.
const MAX_LEN: usize = 256 << 10;

/// PEM files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificates {
    /// Content of [`CHAIN`].
    pub chain: Secret,
    /// Content of [`KEY`].
    pub key: Secret,
    /// Content of [`AUTHORITY`], if the file exists.
    pub authority: Option<Secret>,
    /// A warning if the key is readable by other users.
    #[serde(skip)]
    pub warning: Option<String>,
}

impl Certificates {
    /// Converts them for the engine.
    ///
    /// # Errors
    /// Fails with a message if one of them is invalid.
    pub(crate) fn parse(&self) -> Result<tls::Certificates, String> {
        let authority = self.authority.as_ref().map(Secret::bytes);
        tls::Certificates::new(self.chain.bytes(), &self.key, authority)
            .map_err(|error| format!("--tls-certificates: {error}"))
    }

    /// Converts them for the engine, for clients that authenticate within the protocol.
    ///
    /// # Errors
    /// Fails with a message if one of them is invalid.
    pub(crate) fn parse_in_band(&self) -> Result<tls::Certificates, String> {
        tls::Certificates::in_band(self.chain.bytes(), &self.key)
            .map_err(|error| format!("the certificate for HTTPS: {error}"))
    }
}

/// What clients compare the certificate for HTTPS with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIds {
    /// SHA-256 of the certificate: pairs of hexadecimal digits with colons between them.
    pub fingerprint: Arc<str>,
    /// SHA-256 of the public key in base64.
    pub pin: Arc<str>,
}

impl From<&OwnCertificate> for CertificateIds {
    fn from(own: &OwnCertificate) -> Self {
        Self { fingerprint: own.fingerprint.as_str().into(), pin: own.pin.as_str().into() }
    }
}

impl From<OwnCertificate> for Certificates {
    fn from(own: OwnCertificate) -> Self {
        Self { chain: own.chain, key: own.key, authority: None, warning: None }
    }
}

/// Reads the files in `folder`.
///
/// # Errors
/// Fails if a file is missing or cannot be read.
pub fn read(folder: &Path) -> Result<Certificates, Failure> {
    let whole = |name: &str| {
        let path = folder.join(name);
        let mut text = bounded(&path).map_err(|error| {
            Failure::new(format!("the certificate {} cannot be read: {error}", path.display()))
        })?;
        Ok(Secret::new(std::mem::take(&mut text)))
    };
    let key = whole(KEY)?;
    let authority = match folder.join(AUTHORITY).try_exists() {
        Ok(false) => None,
        _ => Some(whole(AUTHORITY)?),
    };
    Ok(Certificates { chain: whole(CHAIN)?, key, authority, warning: warning(&folder.join(KEY)) })
}

/// A warning about the permissions of the private key.
fn warning(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.permissions().mode();
    (mode & 0o077 != 0).then(|| {
        format!(
            "Others can read {} (mode {:04o}), and with it pass for this machine: chmod 600 it.",
            key.display(),
            mode & 0o7777
        )
    })
}

fn bounded(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 1));
    File::open(path)?.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_LEN {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it is too long for one"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn certificates_are_read_and_readable_key_warned() {
        let folder = Scratch::new();
        let file = |name: &str| folder.0.join(name);
        let missing = read(&folder.0).unwrap_err().to_string();
        assert!(missing.contains(KEY), "{missing}");
        fs::write(file(KEY), "key").unwrap();
        fs::write(file(CHAIN), "chain").unwrap();
        fs::set_permissions(file(KEY), fs::Permissions::from_mode(0o644)).unwrap();
        let found = read(&folder.0).unwrap();
        assert_eq!((found.chain.bytes(), found.key.bytes()), (&b"chain"[..], &b"key"[..]));
        assert!(found.authority.is_none() && found.warning.unwrap().contains("0644"));
        assert!(!format!("{:?}", found.key).contains("key"));
        fs::set_permissions(file(KEY), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(file(AUTHORITY), "authority").unwrap();
        let found = read(&folder.0).unwrap();
        assert_eq!(
            (found.authority.as_ref().map(Secret::bytes), found.warning),
            (Some(&b"authority"[..]), None)
        );
        fs::write(file(CHAIN), vec![b'x'; MAX_LEN + 1]).unwrap();
        assert!(read(&folder.0).is_err());
    }
}
