//! Manifests and indexes of images (OCI Image Specification 1.1).

use std::env::consts::ARCH;
use std::fmt::Write as _;

use serde::Deserialize;

use crate::{Error, Hash};

/// What a manifest request returns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// A manifest with one layer.
    Image(Layer),
    /// The digest of the only manifest of an index, or of the one for machines as this one.
    Index(Hash),
}

/// The layer of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) hash: Hash,
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
struct Fields {
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
}

/// Parses a manifest or an index.
///
/// # Errors
/// Fails if it is malformed, or not that of one disk image.
pub(crate) fn parse(json: &[u8]) -> Result<Document, Error> {
    let malformed = Error::Image("its manifest is malformed");
    let Ok(fields) = serde_json::from_slice::<Fields>(json) else { return Err(malformed) };
    match fields {
        Fields { layers: Some(layers), .. } => {
            let [layer] = layers.as_slice() else {
                return Err(Error::Image("it has not one layer, as a disk image has"));
            };
            if is_file_system(&layer.media_type) {
                return Err(Error::Image("it is a container, not a disk image"));
            }
            let hash = hash(&layer.digest).ok_or(malformed)?;
            Ok(Document::Image(Layer { hash, bytes: layer.size }))
        }
        Fields { manifests: Some(manifests), .. } => {
            let chosen = choose(&manifests).ok_or(Error::Image(
                "it is a list of images, and not one of them is for this kind of machine: name one by its digest",
            ))?;
            hash(&chosen.digest).map(Document::Index).ok_or(malformed)
        }
        Fields { .. } => Err(malformed),
    }
}

/// Returns whether a layer is a part of the files of a container. One that is a plain archive by its
/// type is what oci2disk requires of disk images.
fn is_file_system(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.image.rootfs.")
        || media_type.starts_with("application/vnd.oci.image.layer.v1.tar+")
}

/// Returns the only manifest, or the only one for the architecture of this machine.
fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let own = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if let [only] = manifests {
        return Some(only);
    }
    let is_own = |it: &&Descriptor| it.platform.as_ref().is_some_and(|it| it.architecture == own);
    let mut own = manifests.iter().filter(is_own);
    own.next().filter(|_| own.next().is_none())
}

/// Parses a digest by SHA-256; registries have to support no other.
pub(crate) fn hash(digest: &str) -> Option<Hash> {
    let digits = digest.strip_prefix("sha256:")?.as_bytes();
    let mut hash = Hash::default();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    for (byte, digits) in hash.iter_mut().zip(digits.chunks(2)) {
        let &[high, low] = digits else { return None };
        *byte = value(high)? << 4 | value(low)?;
    }
    (digits.len() == 2 * hash.len()).then_some(hash)
}

/// Returns the digest of a hash.
pub(crate) fn digest(hash: &Hash) -> String {
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn descriptor(kind: &str, byte: u8, architecture: &str) -> String {
        let digest = digest(&[byte; 32]);
        let platform = format!(r#""platform":{{"os":"linux","architecture":"{architecture}"}}"#);
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7,{platform}}}"#)
    }

    fn manifest(layers: &[String]) -> Result<Document, Error> {
        parse(format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(",")).as_bytes())
    }

    #[test]
    fn artifact_with_one_layer_is_a_disk_image() {
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar", 1, "");
        let expected = Layer { hash: [1; 32], bytes: 7 };
        assert_eq!(manifest(std::slice::from_ref(&layer)).unwrap(), Document::Image(expected));
        for layers in [
            vec![],
            vec![layer.clone(), layer],
            vec![descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 1, "")],
            vec![descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 1, "")],
        ] {
            manifest(&layers).unwrap_err();
        }
    }

    #[test]
    fn manifest_for_this_machine_is_chosen() {
        let own = if ARCH == "x86_64" { "amd64" } else { "arm64" };
        let index = |architectures: &[&str]| {
            let all = (1..).zip(architectures).map(|(byte, it)| descriptor("", byte, it));
            let all = all.collect::<Vec<_>>().join(",");
            parse(format!(r#"{{"manifests":[{all}]}}"#).as_bytes())
        };
        assert_eq!(index(&["s390x"]).unwrap(), Document::Index([1; 32]));
        assert_eq!(index(&["s390x", own]).unwrap(), Document::Index([2; 32]));
        index(&["s390x", "ppc64le"]).unwrap_err();
        index(&[own, own]).unwrap_err();
        index(&[]).unwrap_err();
    }

    #[test]
    fn malformed_documents_are_refused() {
        for json in [
            "",
            "[]",
            "{}",
            r#"{"layers":7}"#,
            r#"{"layers":[{}]}"#,
            r#"{"layers":[{"digest":"sha256:12","size":7}]}"#,
            r#"{"layers":[{"digest":"sha512:12","size":-7}]}"#,
        ] {
            assert!(matches!(parse(json.as_bytes()), Err(Error::Image(_))), "{json}");
        }
    }

    #[test]
    fn digests_are_parsed() {
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(&hash(text).unwrap()), text);
        assert_eq!(hash(&text.to_ascii_uppercase()), None);
        assert_eq!(hash(&text[..70]), None);
        assert_eq!(hash(&format!("{text}00")), None);
    }
}
