//! Pre-shared keys for TLS: interchange format, PSK identities, and the derivation of TLS PSKs
//! (NVMe/TCP 1.0 §3.6.1.2 to §3.6.1.5; RFC 8446 §7.1).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use export::Secret;
use zeroize::Zeroizing;

use super::hash::Hash;
use super::interchange::{self, KeyError};

const NAME: &str = "NVMeTLSkey-1";

/// Maximum context of HKDF-Expand-Label in bytes: its length field is one byte (RFC 8446 §7.1).
const MAX_CONTEXT: usize = 255;

/// A configured PSK: `NVMeTLSkey-1:HH:…:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfiguredPsk {
    /// Hash that derives the retained PSK; `None` if the PSK is used unchanged.
    pub hash: Option<Hash>,
    /// The PSK: 32 bytes with SHA-256, 48 with SHA-384, either without a hash.
    pub key: Secret,
}

impl ConfiguredPsk {
    /// Parses the PSK interchange format. White space around it is ignored.
    ///
    /// # Errors
    /// Fails if the text is malformed, or if hash, length or checksum is invalid.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let (hash, key) = interchange::parse(NAME, text)?;
        let (hash, is_valid) = match hash {
            0 => (None, [32, 48].contains(&key.bytes().len())),
            1 => (Some(Hash::Sha256), key.bytes().len() == 32),
            2 => (Some(Hash::Sha384), key.bytes().len() == 48),
            other => return Err(KeyError::Hash(other)),
        };
        if is_valid { Ok(Self { hash, key }) } else { Err(KeyError::Length(key.bytes().len())) }
    }

    /// Returns the PSK interchange format.
    #[must_use]
    pub fn emit(&self) -> Secret {
        interchange::emit(NAME, self.hash.map_or(0, Hash::id), self.key.bytes())
    }

    /// Creates a PSK from `random`: 32 bytes, or 48 for SHA-384. SHA-512 is not defined and becomes
    /// SHA-384.
    #[must_use]
    pub fn generate(hash: Option<Hash>, random: &[u8; 48]) -> Self {
        let (hash, len) = match hash {
            None => (None, 32),
            Some(Hash::Sha256) => (Some(Hash::Sha256), 32),
            Some(_) => (Some(Hash::Sha384), 48),
        };
        let key = random.get(..len).unwrap_or(random);
        Self { hash, key: Secret::new(key.to_vec()) }
    }

    /// Returns the hash of the TLS cipher suite, given by the length of the PSK.
    fn suite(&self) -> Hash {
        if self.key.bytes().len() == 48 { Hash::Sha384 } else { Hash::Sha256 }
    }

    /// Returns the retained PSK of the host (NVMe/TCP 1.0 §3.6.1.3).
    fn retained(&self, host: &str, label: LabelEncoding) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match self.hash {
            None => Ok(Zeroizing::new(self.key.bytes().to_vec())),
            Some(hash) => label.expand(hash, self.key.bytes(), "HostNQN", host.as_bytes()),
        }
    }
}

/// A TLS PSK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Psk {
    /// PSK identity in the TLS handshake.
    pub identity: String,
    /// The secret: 32 bytes, or 48 with SHA-384.
    pub secret: Secret,
    /// Hash of the cipher suite: SHA-256 (TLS_AES_128_GCM_SHA256) or SHA-384
    /// (TLS_AES_256_GCM_SHA384).
    pub hash: Hash,
}

/// Encoding of HkdfLabel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LabelEncoding {
    /// RFC 8446 §7.1.
    Standard,
    /// libnvme up to 1.13: length in little-endian; label and context without length fields.
    Libnvme,
    /// Linux 6.15 for generated PSKs: label and context without length fields.
    Linux,
}

impl LabelEncoding {
    /// Calculates HKDF-Expand-Label(HKDF-Extract(secret), label, context) with the output length of
    /// the hash.
    fn expand(
        self,
        hash: Hash,
        secret: &[u8],
        label: &str,
        context: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let label = format!("tls13 {label}");
        let byte = |len: usize| u8::try_from(len).map_err(|_| KeyError::Name);
        let (label_len, context_len) = ([byte(label.len())?], [byte(context.len())?]);
        let label = label.as_bytes();
        #[allow(clippy::cast_possible_truncation, reason = "at most 64")]
        let len = hash.size() as u16;
        let (be, le) = (len.to_be_bytes(), len.to_le_bytes());
        Ok(match self {
            Self::Standard => hash.hkdf(secret, &[&be, &label_len, label, &context_len, context]),
            Self::Libnvme => hash.hkdf(secret, &[&le, label, context]),
            Self::Linux => hash.hkdf(secret, &[&be, label, context]),
        })
    }
}

/// Derives the TLS PSKs of a host and subsystem from the configured PSK in `text`. No identity
/// occurs twice.
///
/// libnvme up to 1.13, which distributions still ship, derives other secrets than the
/// specification. If the identities differ (version 1 with a hash), the result contains both. If
/// two secrets have the same identity (version 0, and PSKs without a hash), it contains that of the
/// specification, or that of libnvme if `compat` is set. Both derivations are equally strong.
///
/// # Errors
/// Fails if the configured PSK or an NQN is invalid.
pub fn derive_psks(
    text: &Secret,
    compat: bool,
    host_nqn: &str,
    subsystem_nqn: &str,
) -> Result<Vec<Psk>, KeyError> {
    let key = ConfiguredPsk::parse(text.bytes())?;
    check_names(host_nqn, subsystem_nqn)?;
    let mut labels = [LabelEncoding::Standard, LabelEncoding::Libnvme];
    if compat {
        labels.reverse();
    }
    let mut all: Vec<Psk> = Vec::new();
    for label in labels {
        let retained = key.retained(host_nqn, label)?;
        let parts = IdentityParts {
            kind: 'R',
            hash: key.suite(),
            host: host_nqn,
            subsystem: subsystem_nqn,
        };
        for psk in [parts.version_1(&retained, label), parts.version_0(&retained, label)] {
            all.extend(psk.filter(|psk| all.iter().all(|other| other.identity != psk.identity)));
        }
    }
    Ok(all)
}

/// Derives the TLS PSKs from a generated PSK (secure channel concatenation); as Linux 6.15 does if
/// `compat` is set. Returns none if no cipher suite uses `hash`.
pub(crate) fn derive_generated(
    psk: &[u8],
    hash: Hash,
    compat: bool,
    host_nqn: &str,
    subsystem_nqn: &str,
) -> Vec<Psk> {
    if hash == Hash::Sha512 || check_names(host_nqn, subsystem_nqn).is_err() {
        return Vec::new();
    }
    let label = if compat { LabelEncoding::Linux } else { LabelEncoding::Standard };
    let parts = IdentityParts { kind: 'G', hash, host: host_nqn, subsystem: subsystem_nqn };
    let all = [parts.version_1(psk, label), parts.version_0(psk, label)];
    all.into_iter().flatten().collect()
}

/// Checks the NQNs. A space would make the identity ambiguous.
fn check_names(host: &str, subsystem: &str) -> Result<(), KeyError> {
    let is_valid = |nqn: &str| !nqn.is_empty() && nqn.len() <= MAX_CONTEXT && !nqn.contains(' ');
    if is_valid(host) && is_valid(subsystem) { Ok(()) } else { Err(KeyError::Name) }
}

/// Fields of a PSK identity.
struct IdentityParts<'a> {
    kind: char,
    hash: Hash,
    host: &'a str,
    subsystem: &'a str,
}

impl IdentityParts<'_> {
    fn prefix(&self, version: u8) -> String {
        let Self { kind, hash, host, subsystem } = self;
        format!("NVMe{version}{kind}{:02} {host} {subsystem}", hash.id())
    }

    /// Returns version 1, whose identity contains a PSK digest (NVMe/TCP 1.0 §3.6.1.3).
    fn version_1(&self, key: &[u8], label: LabelEncoding) -> Option<Psk> {
        let names = [self.host, " ", self.subsystem, " NVMe-over-Fabrics"].map(str::as_bytes);
        let digest = STANDARD.encode(&*self.hash.mac(key, &names));
        let context = format!("{:02} {digest}", self.hash.id());
        let secret = label.expand(self.hash, key, "nvme-tls-psk", context.as_bytes()).ok()?;
        Some(self.psk(format!("{} {digest}", self.prefix(1)), &secret))
    }

    /// Returns version 0, without a digest, or `None` if the NQNs are too long for the derivation.
    fn version_0(&self, key: &[u8], label: LabelEncoding) -> Option<Psk> {
        let identity = self.prefix(0);
        let secret = label.expand(self.hash, key, "nvme-tls-psk", identity.as_bytes()).ok()?;
        Some(self.psk(identity, &secret))
    }

    fn psk(&self, identity: String, secret: &[u8]) -> Psk {
        Psk { identity, secret: Secret::new(secret.to_vec()), hash: self.hash }
    }
}

/// A parsed PSK identity: `NVMe{0|1}{R|G}HH HOSTNQN SUBNQN[ DIGEST]` (NVMe/TCP 1.0 §3.6.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Version: 0 or 1.
    pub version: u8,
    /// Whether the PSK was generated by DH-HMAC-CHAP; otherwise it is a configured (retained) one.
    pub generated: bool,
    /// Hash of the cipher suite: SHA-256 or SHA-384.
    pub hash: Hash,
    /// Host NQN.
    pub host: &'a str,
    /// Subsystem NQN.
    pub subsystem: &'a str,
    /// Base64 of the PSK digest; version 1 only.
    pub digest: Option<&'a str>,
}

impl<'a> Identity<'a> {
    /// Parses a PSK identity. Returns `None` if it is not one of NVMe/TCP.
    #[must_use]
    pub fn parse(identity: &'a str) -> Option<Self> {
        let mut parts = identity.split(' ');
        let (head, host, subsystem) = (parts.next()?, parts.next()?, parts.next()?);
        let digest = parts.next();
        let &[version @ (b'0' | b'1'), kind @ (b'R' | b'G'), b'0', hash @ (b'1' | b'2')] =
            head.strip_prefix("NVMe")?.as_bytes()
        else {
            return None;
        };
        let whole = parts.next().is_none() && digest.is_some() == (version == b'1');
        let hash = Hash::parse(hash - b'0')?;
        let (version, generated) = (version - b'0', kind == b'G');
        let named = !host.is_empty() && !subsystem.is_empty();
        (whole && named).then_some(Self { version, generated, hash, host, subsystem, digest })
    }

    /// Returns whether the identity is for this host and subsystem.
    #[must_use]
    pub fn is_for(&self, host: &str, subsystem: &str) -> bool {
        self.host == host && self.subsystem == subsystem
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const HOST: &str = "nqn.psk-test-host";
    const SUBSYSTEM: &str = "nqn.psk-test-subsys";
    /// A key of libnvme's tests: without a hash, with SHA-256, with SHA-384.
    const NONE: &str = "NVMeTLSkey-1:00:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
    const SHORT: &str = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:";
    const LONG: &str =
        "NVMeTLSkey-1:02:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:";

    fn text(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(key: &str, compat: bool) -> Vec<(String, String)> {
        let all = derive_psks(&text(key), compat, HOST, SUBSYSTEM).unwrap();
        all.iter().map(|psk| (psk.identity.clone(), hex(psk.secret.bytes()))).collect()
    }

    #[test]
    fn interchange_format_round_trip() {
        for (form, hash, len) in
            [(NONE, None, 32), (SHORT, Some(Hash::Sha256), 32), (LONG, Some(Hash::Sha384), 48)]
        {
            let key = ConfiguredPsk::parse(format!(" {form}\n").as_bytes()).unwrap();
            assert_eq!((key.hash, key.key.bytes().len()), (hash, len));
            assert_eq!(key.emit(), text(form));
        }
        let key = ConfiguredPsk::generate(Some(Hash::Sha384), &[7; 48]);
        assert_eq!(ConfiguredPsk::parse(key.emit().bytes()), Ok(key));
        assert_eq!(ConfiguredPsk::generate(None, &[7; 48]).key.bytes().len(), 32);
    }

    #[test]
    fn malformed_keys_are_refused_with_the_reason() {
        let reason = |text: &str| ConfiguredPsk::parse(text.as_bytes()).unwrap_err();
        assert_eq!(reason(""), KeyError::Form("NVMeTLSkey-1"));
        assert_eq!(reason(&SHORT.replace("key-1", "key-2")), KeyError::Form("NVMeTLSkey-1"));
        assert_eq!(reason(&SHORT[..SHORT.len() - 1]), KeyError::Form("NVMeTLSkey-1"));
        assert_eq!(reason(&SHORT.replace(":01:", ":1:")), KeyError::Form("NVMeTLSkey-1"));
        assert_eq!(reason(&SHORT.replace(":01:", ":03:")), KeyError::Hash(3));
        assert_eq!(reason(&SHORT.replace(":01:", ":99:")), KeyError::Hash(99));
        assert_eq!(reason(&SHORT.replace(":01:", ":02:")), KeyError::Length(32));
        assert_eq!(reason(&SHORT.replace("VRL", "VR!")), KeyError::Base64);
        assert_eq!(reason(&SHORT.replace("VRL", "VRM")), KeyError::Checksum);
        assert_eq!(reason("NVMeTLSkey-1:01::"), KeyError::Length(0));
        assert_eq!(reason("NVMeTLSkey-1:01:AAAAAAAA:"), KeyError::Length(2));
        assert!(matches!(
            reason(&format!("NVMeTLSkey-1:01:{}:", "A".repeat(4000))),
            KeyError::Length(_)
        ));
    }

    /// Identities of libnvme's tests/psk.c; secrets calculated independently.
    #[test]
    fn derivation_matches_libnvme_vectors() {
        let short = of(SHORT, false);
        assert_eq!(
            short[0].0,
            format!("NVMe1R01 {HOST} {SUBSYSTEM} iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU=")
        );
        assert_eq!(short[0].1, "8fc3c0badfd4c0c66fa3ca33aadd0314f85536cc9bc47338b60f3e6e563786ca");
        assert_eq!(short[1].0, format!("NVMe0R01 {HOST} {SUBSYSTEM}"));
        assert_eq!(short[1].1, "05c6503551ad136e6ee32e6eeb3f6d500b69701d84ec71e328f65c7f51566f68");
        assert_eq!(
            short[2].0,
            format!("NVMe1R01 {HOST} {SUBSYSTEM} 66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM=")
        );
        assert_eq!(short.len(), 3);
        let long = of(LONG, false);
        assert_eq!(
            long[0].0,
            format!(
                "NVMe1R02 {HOST} {SUBSYSTEM} QhW2+Rp6RzHlNtCslyRxMnwJ11tKKhz8JCAQpQ+XUD8f9td1VeH5h53yz2wKJG1a"
            )
        );
        assert_eq!(
            long[0].1,
            "a2b2f943f479fc682555cec89857c80ed004ce92f32a973d5764155bb7e36b17a85368a0666d250afac9282dda2e62ca"
        );
        assert_eq!(
            long[1].1,
            "f42ba63824cdfe421914c582921f85b5b5b7e2d4df084caeedc9be20b212e8bb0fe8a23e9d59a1c8fc6449da4970a78d"
        );
        assert!(
            long[2]
                .0
                .ends_with(" RsKmYJ3nAn1ApjjMloJFbAkLPivONDAX/xW327YBUsn2eGShXSjCZvBaOxscLqmz")
        );
    }

    /// Keyring contents of nvme-cli 2.13 with libnvme 1.13: version 1, and some of version 0.
    #[test]
    fn derivation_matches_nvme_cli_2_13() {
        let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
        let subsystem = "nqn.2024-01.test:disk0";
        for (key, digest, version_1, version_0) in [
            (
                "NVMeTLSkey-1:01:+CXg5esSKJCMVOa3+TtCjDQg/Y1QysuTT9R6F7dMwuwCW3Zc:",
                "sdnJISJHLXRqHddtg5AHn4R73qu/mBC/hxtEdPL3HZE=",
                "b4ZJHmZ1bYW0w+nuTGiK3tGzgXu0cQal9pouwiskW9w4AICX",
                "",
            ),
            (
                "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
                "NvlJbyBk/Cl44u5Y8Z8/QdZRLZJ7yHbgfw+i0fHRf18=",
                "jEZ+OJIPW156m2fqeJRCiq0qdngpnSWG0R41EtnKjQ35tTCj",
                "9y51YKXPPoyZTowkbxsCwVzqf6IQUGclmR8P7mPIKpNDrbRD",
            ),
            (
                "NVMeTLSkey-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
                "olTOkdExsBBx3ebb5NZgNAfp/SpYJVdkYIrNy5EFOaJHHlWmWDvqqn7bW/qVCXOK",
                "/m16oX/4NZ/rUq1zmKePpZCbDMWt7JTUtz+pkI/eU5+MNkF35KgeqOf0tGyYRwcwJ1vRAA==",
                "FVSfWVIFFYbAqfaxXrO8HVveTZyAz3sgJ4lZqdX7iBB+WXBUMdAHC9WHD4p8rMFKrbyM5Q==",
            ),
        ] {
            let all = derive_psks(&text(key), true, host, subsystem).unwrap();
            let derived = |psk: &Psk| {
                let form = interchange::emit("", 0, psk.secret.bytes());
                String::from_utf8(form.bytes()[4..].to_vec()).unwrap()
            };
            assert!(all[0].identity.ends_with(&format!(" {digest}")), "{}", all[0].identity);
            assert_eq!(derived(&all[0]), format!("{version_1}:"));
            assert!(version_0.is_empty() || derived(&all[1]) == format!("{version_0}:"));
        }
    }

    #[test]
    fn compat_selects_among_secrets_of_one_identity() {
        for key in [NONE, SHORT, LONG] {
            let (standard, compat) = (of(key, false), of(key, true));
            let secret = |all: &[(String, String)], identity: &str| {
                all.iter().find(|psk| psk.0 == identity).unwrap().1.clone()
            };
            for (identity, of_standard) in &standard {
                let of_compat = secret(&compat, identity);
                let apart = key != NONE && identity.starts_with("NVMe1");
                assert_eq!(*of_standard == of_compat, apart, "{identity}");
            }
            assert_eq!((standard.len(), compat.len()), if key == NONE { (2, 2) } else { (3, 3) });
        }
    }

    /// Calculated independently.
    #[test]
    fn generated_psks_match_known_results() {
        let psk: Vec<u8> = (100..148).collect();
        let short = derive_generated(&psk[..32], Hash::Sha256, false, HOST, SUBSYSTEM);
        assert_eq!(
            short[0].identity,
            format!("NVMe1G01 {HOST} {SUBSYSTEM} 7IzffYRvF3cK6qcbTb/XuFTymk33xjFiok2o82qxmOY=")
        );
        assert_eq!(
            hex(short[0].secret.bytes()),
            "47588d3b3ecdc93549cf79e243e35b2083eb1de9eabbd5617850b5f876908e38"
        );
        assert_eq!(short[1].identity, format!("NVMe0G01 {HOST} {SUBSYSTEM}"));
        let linux = derive_generated(&psk, Hash::Sha384, true, HOST, SUBSYSTEM);
        assert_eq!(
            hex(linux[0].secret.bytes()),
            "c67b50b1582643ec22c0940c8e88f7200c2f96603170137ce72138298841a7d2a3538182e48efbe1c64ca44df3274c78"
        );
        assert!(derive_generated(&[0; 64], Hash::Sha512, false, HOST, SUBSYSTEM).is_empty());
    }

    #[test]
    fn ambiguous_names_are_refused() {
        let long = "n".repeat(223);
        for (host, subsystem) in [("", "s"), ("h", ""), ("h x", "s"), ("h", "s x")] {
            assert_eq!(derive_psks(&text(SHORT), false, host, subsystem), Err(KeyError::Name));
        }
        // Version 0 has both NQNs in a context of at most 255 bytes.
        let all = derive_psks(&text(SHORT), false, &long, &long).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|psk| psk.identity.starts_with("NVMe1")));
    }

    #[test]
    fn identities_are_parsed() {
        for psk in derive_psks(&text(SHORT), false, HOST, SUBSYSTEM).unwrap() {
            let identity = Identity::parse(&psk.identity).unwrap();
            assert_eq!((identity.host, identity.subsystem), (HOST, SUBSYSTEM));
            assert_eq!((identity.hash, identity.generated), (psk.hash, false));
            assert_eq!(identity.digest.is_some(), identity.version == 1);
            assert!(identity.is_for(HOST, SUBSYSTEM) && !identity.is_for(SUBSYSTEM, HOST));
        }
        assert!(Identity::parse("NVMe0G02 h s").unwrap().generated);
        for wrong in [
            "",
            "NVMe1R01",
            "NVMe1R01 h",
            "NVMe1R01 h s",
            "NVMe0R01 h s d",
            "NVMe1R01 h s d e",
            "NVMe2R01 h s d",
            "NVMe1X01 h s d",
            "NVMe1R00 h s d",
            "NVMe1R03 h s d",
            "NVMe0R01  s",
            "nvme0R01 h s",
            "NVMe0R011 h s",
            "storagetm-pair-1",
        ] {
            assert_eq!(Identity::parse(wrong), None, "{wrong}");
        }
    }
}
