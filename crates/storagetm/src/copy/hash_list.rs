//! Expected hashes: SHA-256 and SHA-512, as digits or in a list of a publisher (SHA256SUMS, SHA512SUMS, CHECKSUM).

use sha2::{Digest, Sha256, Sha512};

use super::event::hexadecimal;

/// A hash that a source must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    Sha256(Vec<u8>),
    Sha512(Vec<u8>),
}

/// Computes a hash of the kind that is expected.
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Expected {
    /// Parses the digits of a hash; its length names its kind.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digit = |digit: u8| {
            let value = char::from(digit).to_digit(16);
            value.and_then(|value| u8::try_from(value).ok())
        };
        let bytes: Option<Vec<u8>> = text
            .as_bytes()
            .chunks(2)
            .map(|digits| match digits {
                &[high, low] => Some(digit(high)? << 4 | digit(low)?),
                _ => None,
            })
            .collect();
        let bytes = bytes?;
        match bytes.len() {
            32 => Some(Self::Sha256(bytes)),
            64 => Some(Self::Sha512(bytes)),
            _ => None,
        }
    }

    /// Returns the hash of a file in a list in the format of `sha256sum` and `sha512sum`, or of their option `--tag`.
    pub(super) fn find(list: &str, name: &str) -> Option<Self> {
        list.lines().find_map(|line| {
            let tagged = || {
                let rest = line.strip_prefix("SHA256 (").or_else(|| line.strip_prefix("SHA512 ("));
                rest?.rsplit_once(") = ")
            };
            let plain = || {
                let (hash, name) = line.split_once(' ')?;
                Some((name.strip_prefix([' ', '*']).unwrap_or(name), hash))
            };
            let (path, hash) = tagged().or_else(plain)?;
            let is_named = path.trim_end().rsplit('/').next() == Some(name);
            Self::parse(hash.trim_end()).filter(|_| is_named)
        })
    }

    /// Returns the name of the kind.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Sha512(_) => "SHA-512",
        }
    }

    /// Returns a hasher of that kind.
    pub(super) fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Sha256(bytes) | Self::Sha512(bytes)) = self;
        f.write_str(&hexadecimal(bytes))
    }
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Expected {
        match self {
            Self::Sha256(hasher) => Expected::Sha256(hasher.finalize().to_vec()),
            Self::Sha512(hasher) => Expected::Sha512(hasher.finalize().to_vec()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_are_parsed() {
        let hash = Expected::Sha256(Sha256::digest([]).to_vec());
        assert_eq!(Expected::parse(EMPTY), Some(hash.clone()));
        assert_eq!(Expected::parse(&EMPTY.to_ascii_uppercase()), Some(hash.clone()));
        assert_eq!(hash.to_string(), EMPTY);
        let longer = Expected::Sha512(Sha512::digest([]).to_vec());
        assert_eq!(Expected::parse(&longer.to_string()), Some(longer.clone()));
        assert_eq!((longer.hasher().finish(), longer.kind()), (longer.clone(), "SHA-512"));
        for other in ["", &EMPTY[1..], &EMPTY[2..], &format!("{EMPTY}00"), &EMPTY.replace('e', "g")]
        {
            assert_eq!(Expected::parse(other), None, "{other}");
        }
    }

    #[test]
    fn lists_of_hashes_are_searched_by_name() {
        let longer = "ab".repeat(64);
        let list = format!(
            "# made today\n{}  b.raw\n{EMPTY} *images/a.raw\nSHA256 (c d.raw) = {EMPTY}\r\n{longer}  e.raw\r\n\
             SHA512 (f.raw) = {longer}\n",
            "0".repeat(64)
        );
        let hash = Expected::parse(EMPTY);
        assert_eq!(Expected::find(&list, "a.raw"), hash);
        assert_eq!(Expected::find(&list, "c d.raw"), hash);
        assert_eq!(Expected::find(&list, "b.raw"), Expected::parse(&"0".repeat(64)));
        assert_eq!(Expected::find(&list, "e.raw"), Expected::parse(&longer));
        assert_eq!(Expected::find(&list, "f.raw"), Expected::parse(&longer));
        assert_eq!(Expected::find(&list, "raw"), None);
        assert_eq!(Expected::find(&list, ""), None);
    }
}
