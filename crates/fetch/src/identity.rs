//! The identity of a source, by which a map knows it again: without secrets, and the same after a URL was signed anew.

use sha2::{Digest as _, Sha256};

use crate::Access;
use crate::location::{Location, Place};
use crate::s3::hexadecimal;

/// Parameters of signed URLs that say who may read for how long and not what, in lower case: of S3, of its earlier
/// signatures and CloudFront, and of Google.
const SIGNED: [&str; 7] = [
    "expires",
    "signature",
    "awsaccesskeyid",
    "key-pair-id",
    "policy",
    "googleaccessid",
    "x-amz-security-token",
];
/// How the names of such parameters begin (AWS Signature Version 4, Google V4).
const SIGNED_PREFIXES: [&str; 2] = ["x-amz-", "x-goog-"];
/// Parameters of a shared access signature of Azure, which mean something else without a `sig`.
const AZURE: [&str; 16] = [
    "sig", "sv", "ss", "srt", "sr", "sp", "st", "se", "sip", "spr", "si", "skoid", "sktid", "skt",
    "ske", "sks",
];
/// Bytes of the hash of a query that are shown.
const SHOWN: usize = 16;

impl Location {
    /// Returns a name that differs from those of other sources: the URL without user name and password, with a hash of the
    /// query that has no parameters of a signature; and for an object the server, unless it is that of Amazon.
    pub fn identity(&self, access: &Access) -> String {
        match &self.0 {
            Place::Web(uri) => {
                let shown = self.to_string();
                let url = shown.strip_suffix("?...").unwrap_or(&shown);
                let query = uri.query().map(unsigned).unwrap_or_default();
                if query.is_empty() {
                    return url.to_owned();
                }
                let hash = hexadecimal(&Sha256::digest(query));
                format!("{url}?sha256:{}", hash.get(..SHOWN).unwrap_or_default())
            }
            Place::Registry(_) => self.to_string(),
            Place::Bucket(_) => {
                let server = access.account.as_ref().and_then(|account| account.server());
                match server {
                    Some(server) => format!("{self} at {server}"),
                    None => self.to_string(),
                }
            }
        }
    }
}

/// Returns a query without the parameters of a signature.
fn unsigned(query: &str) -> String {
    let name = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        name.to_ascii_lowercase()
    };
    let is_azure = query.split('&').any(|it| name(it) == "sig");
    let is_signed = |parameter: &&str| {
        let name = name(parameter);
        SIGNED.contains(&&*name)
            || SIGNED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || is_azure && AZURE.contains(&&*name)
    };
    let kept: Vec<&str> = query.split('&').filter(|it| !it.is_empty() && !is_signed(it)).collect();
    kept.join("&")
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::Account;

    fn identity(url: &str) -> String {
        url.parse::<Location>().unwrap().identity(&Access::default())
    }

    #[test]
    fn queries_of_two_files_differ_and_show_no_secret() {
        let of = |query: &str| identity(&format!("https://anna:s3cret@h.example/f{query}"));
        assert_eq!(of(""), "https://h.example/f");
        let all = [of(""), of("?file=a"), of("?file=b"), of("?token=hidden")];
        for (at, one) in all.iter().enumerate() {
            assert!(!one.contains("s3cret") && !one.contains("hidden") && !one.contains("file="));
            assert!(all.iter().skip(at + 1).all(|other| other != one), "{one}");
        }
        assert_eq!(of("?file=a"), of("?file=a"));
    }

    #[test]
    fn url_that_is_signed_anew_is_the_same_source() {
        let of = |query: &str| identity(&format!("https://h.example/f?{query}"));
        for (one, other) in [
            (
                "versionId=7&X-Amz-Date=1&X-Amz-Signature=2&X-Amz-Credential=a%2Fb",
                "X-Amz-Date=3&versionId=7&X-Amz-Signature=4",
            ),
            ("Expires=1&Signature=2&Key-Pair-Id=3", "Expires=4&Signature=5&Key-Pair-Id=3"),
            ("sv=1&sig=2&se=3&versionid=4", "sv=5&sig=6&se=7&versionid=4"),
            ("X-Goog-Expires=1&generation=2", "generation=2&x-goog-expires=3"),
        ] {
            assert_eq!(of(one), of(other), "{one}");
        }
        assert_ne!(of("versionId=7&X-Amz-Date=1"), of("versionId=8&X-Amz-Date=1"));
        assert_ne!(of("st=a"), of("st=b"));
        assert_eq!(of("Expires=1&Signature=2"), "https://h.example/f");
    }

    #[test]
    fn objects_of_two_servers_are_two_sources() {
        let of = |variables: &[(&str, &str)]| {
            let value = |name: &str| {
                let found = variables.iter().find(|(it, _)| *it == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let account = Some(Account::read(&value).unwrap());
            let location: Location = "s3://bucket/key".parse().unwrap();
            location.identity(&Access { account, login: None })
        };
        assert_eq!(of(&[]), "s3://bucket/key");
        let at = |url| of(&[("AWS_ENDPOINT_URL", url)]);
        assert_eq!(at("https://a.example:9000"), "s3://bucket/key at a.example:9000");
        assert_ne!(at("https://a.example"), at("https://b.example"));
        // The names of buckets are those of a partition.
        assert_ne!(of(&[("AWS_REGION", "cn-north-1")]), of(&[]));
        assert_eq!(of(&[("AWS_REGION", "eu-west-1")]), of(&[]));
    }
}
