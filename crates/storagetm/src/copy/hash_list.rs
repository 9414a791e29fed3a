//! Expected hashes: SHA-256 and SHA-512, as digits or in a list of a publisher (SHA256SUMS, SHA512SUMS, CHECKSUM).

use sha2::{Digest, Sha256, Sha512};

use super::event::hexadecimal;

/// A hash that a source must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    Sha256(Vec<u8>),
    Sha512(Vec<u8>),
}

/// Why a list names no hash of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotFound {
    Unlisted,
    /// Several files of that name are in it, with different hashes.
    Ambiguous,
}

/// Returns how many components at the ends of two paths are the same.
fn common_end(one: &str, other: &str) -> usize {
    one.rsplit('/').zip(other.rsplit('/')).take_while(|(one, other)| one == other).count()
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

    /// Returns the hash of a file in a list in the format of `sha256sum` and `sha512sum`, or of their option `--tag`. Of
    /// several files with the last name of `path` it is the one of which most folders are those of `path`.
    ///
    /// # Errors
    /// Fails if there is none, or if several are as near to `path` and have different hashes of one kind.
    pub(super) fn find(list: &str, path: &str) -> Result<Self, NotFound> {
        let named = list.lines().filter_map(|line| {
            let tagged = || {
                let rest = line.strip_prefix("SHA256 (").or_else(|| line.strip_prefix("SHA512 ("));
                rest?.rsplit_once(") = ")
            };
            let plain = || {
                let (hash, name) = line.split_once(' ')?;
                Some((name.strip_prefix([' ', '*']).unwrap_or(name), hash))
            };
            let (listed, hash) = tagged().or_else(plain)?;
            let nearness = common_end(listed.trim_end(), path);
            Some((nearness, Self::parse(hash.trim_end()).filter(|_| nearness > 0)?))
        });
        let named: Vec<(usize, Self)> = named.collect();
        let nearest =
            named.iter().map(|(nearness, _)| *nearness).max().ok_or(NotFound::Unlisted)?;
        let mut hashes = named.into_iter().filter(|it| it.0 == nearest).map(|(_, hash)| hash);
        let first = hashes.next().ok_or(NotFound::Unlisted)?;
        let differs = |other: Self| other.kind() == first.kind() && other != first;
        if hashes.any(differs) { Err(NotFound::Ambiguous) } else { Ok(first) }
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
        let found = |path: &str| Expected::find(&list, path).map(|hash| hash.to_string());
        for (path, hash) in [
            ("a.raw", EMPTY),
            ("https://host/other/a.raw", EMPTY),
            ("c d.raw", EMPTY),
            ("b.raw", &"0".repeat(64)),
            ("e.raw", &longer),
            ("f.raw", &longer),
        ] {
            assert_eq!(found(path).as_deref(), Ok(hash), "{path}");
        }
        assert_eq!(found("raw"), Err(NotFound::Unlisted));
        assert_eq!(found(""), Err(NotFound::Unlisted));
    }

    #[test]
    fn hash_is_that_of_the_file_in_its_folder() {
        let [one, other] = ["1".repeat(64), "2".repeat(64)];
        let list = format!("{one}  ./a/x.raw\n{other}  b/x.raw\n{}  b/x.raw\n", "3".repeat(128));
        let found = |path: &str| Expected::find(&list, path).map(|hash| hash.to_string());
        assert_eq!(found("https://host/a/x.raw"), Ok(one.clone()));
        assert_eq!(found("https://host/b/x.raw"), Ok(other));
        assert_eq!(found("https://host/c/x.raw"), Err(NotFound::Ambiguous));
        assert_eq!(
            Expected::find(&format!("{one}  x\n{one}  a/x\n"), "c/x").unwrap().to_string(),
            one
        );
    }
}
