//! Signatures of requests (AWS Signature Version 4), in the header `Authorization`: a URL has none.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};

use super::account::Key;
use crate::Hash;

/// A request that is signed.
#[derive(Debug)]
pub(super) struct ToSign<'a> {
    pub(super) method: &'a str,
    /// The path, percent-encoded.
    pub(super) path: &'a str,
    /// The query, percent-encoded and sorted.
    pub(super) query: &'a str,
    /// Names in lower case and values, sorted by name.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// The SHA-256 of the body in hexadecimal.
    pub(super) body: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    pub(super) time: &'a str,
}

impl ToSign<'_> {
    /// Returns the value of `Authorization`.
    pub(super) fn authorization(&self, key: &Key, region: &str) -> String {
        let date = self.time.get(..8).unwrap_or_default();
        let scope = format!("{date}/{region}/s3/aws4_request");
        let mut headers = String::new();
        for (name, value) in self.headers {
            // A string takes everything.
            let _ = writeln!(headers, "{name}:{}", value.trim());
        }
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let Self { method, path, query, body, .. } = self;
        let request = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{body}");
        let request = hexadecimal(&Sha256::digest(request));
        let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{request}", self.time);
        let secret = format!("AWS4{}", key.secret);
        let parts = [date, region, "s3", "aws4_request", &text];
        let first = secret.into_bytes();
        let signature = parts.iter().fold(first, |key, part| mac(&key, part).to_vec());
        let signature = hexadecimal(&signature);
        let id = &key.id;
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
    }
}

fn mac(key: &[u8], text: &str) -> Hash {
    // HMAC takes keys of every length.
    Hmac::<Sha256>::new_from_slice(key)
        .map(|mac| mac.chain_update(text).finalize().into_bytes().into())
        .unwrap_or_default()
}

/// Returns bytes as digits 0-9a-f.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Encodes a text as §URI encoding of the signature demands: everything but letters, digits and `-._~`, and
/// in a path the slash.
pub(super) fn encode(text: &str, is_path: bool) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            b'/' if is_path => encoded.push('/'),
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
        encoded
    })
}

#[cfg(test)]
mod test {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The examples of the Amazon S3 API reference (Authenticating Requests: Using the Authorization Header).
    #[test]
    fn signatures_are_those_of_the_reference() {
        let key = Key {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            token: None,
        };
        let time = "20130524T000000Z";
        let sign = |path, query, headers: &[_], body| {
            let request = ToSign { method: "GET", path, query, headers, body, time };
            request.authorization(&key, "us-east-1")
        };
        let common = [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", EMPTY),
            ("x-amz-date", time),
        ];
        let ranged = [common[0], ("range", "bytes=0-9"), common[1], common[2]];
        let signed = sign("/test.txt", "", &ranged, EMPTY);
        assert_eq!(
            signed,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let signed = sign("/", "lifecycle=", &common, EMPTY);
        assert!(
            signed.ends_with("fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")
        );
        let signed = sign("/", "max-keys=2&prefix=J", &common, EMPTY);
        assert!(
            signed.ends_with("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")
        );
    }

    #[test]
    fn paths_and_queries_are_encoded() {
        assert_eq!(encode("a/b c~1-._+é", true), "a/b%20c~1-._%2B%C3%A9");
        assert_eq!(encode("a/b=", false), "a%2Fb%3D");
    }
}
