//! The certificates of this machine, as `--tls-certificates` names them. It knows no TLS.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use export::Secret;
use zeroize::Zeroizing;

use failure::Failure;

/// This machine's certificate, with those between it and its authority's.
const CHAIN: &str = "server-cert.pem";
/// Its key.
const KEY: &str = "server-key.pem";
/// The certificates of the authority that those of clients are to be of.
const AUTHORITY: &str = "ca-cert.pem";

/// Bytes of the longest file.
const LONGEST: usize = 256 << 10;

/// The texts of the files.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// Of [`CHAIN`].
    pub chain: Vec<u8>,
    /// Of [`KEY`].
    pub key: Secret,
    /// Of [`AUTHORITY`], if there is that file.
    pub authority: Option<Vec<u8>>,
}

/// Reads them in that folder. What the owner should know of them comes with them, a sentence.
///
/// # Errors
/// One is missing, or cannot be read.
pub fn read(folder: &Path) -> Result<(Certificates, Option<String>), Failure> {
    let whole = |name: &str| {
        bounded(&folder.join(name)).map_err(|error| {
            let path = folder.join(name);
            Failure::new(format!("the certificate {} cannot be read: {error}", path.display()))
        })
    };
    let mut key = whole(KEY)?;
    let authority = match folder.join(AUTHORITY).try_exists() {
        Ok(false) => None,
        _ => Some(whole(AUTHORITY)?.to_vec()),
    };
    let certificates = Certificates {
        chain: whole(CHAIN)?.to_vec(),
        key: Secret::new(std::mem::take(&mut key)),
        authority,
    };
    Ok((certificates, note(&folder.join(KEY))))
}

/// What is wrong with the rights of a key.
fn note(key: &Path) -> Option<String> {
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
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
    File::open(path)?.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LONGEST {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it is too long for one"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn the_files_are_those_of_other_tools_and_a_key_that_others_can_read_is_said() {
        let folder = Scratch::new();
        let file = |name: &str| folder.0.join(name);
        let missing = read(&folder.0).unwrap_err().to_string();
        assert!(missing.contains(KEY), "{missing}");
        fs::write(file(KEY), "key").unwrap();
        fs::write(file(CHAIN), "chain").unwrap();
        fs::set_permissions(file(KEY), fs::Permissions::from_mode(0o644)).unwrap();
        let (found, note) = read(&folder.0).unwrap();
        assert_eq!((found.chain.as_slice(), found.key.bytes()), (&b"chain"[..], &b"key"[..]));
        assert!(found.authority.is_none() && note.unwrap().contains("0644"));
        assert!(!format!("{:?}", found.key).contains("key"));
        fs::set_permissions(file(KEY), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(file(AUTHORITY), "authority").unwrap();
        let (found, note) = read(&folder.0).unwrap();
        assert_eq!((found.authority.as_deref(), note), (Some(&b"authority"[..]), None));
        fs::write(file(CHAIN), vec![b'x'; LONGEST + 1]).unwrap();
        assert!(read(&folder.0).is_err());
    }
}
