//! Objects of S3 and of servers with its interface: requests for one object, signed in their headers.
//!
//! Redirections are not followed: a bucket in another region is named with its region. A bucket is a part of the host
//! name at Amazon's servers, unless its name has dots, which certificates do not cover; at other servers it is a part of
//! the path.

mod account;
mod answer;
mod name;
mod sign;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use ureq::http::{Method, Request, Response, StatusCode, Uri, header};
use ureq::{Agent, AsSendBody, Body};

use crate::client::{TIMEOUT, client};
use crate::{Error, Hash};
pub use account::{Account, AccountError};
pub use answer::Refusal;
pub(crate) use answer::parse_any;
use answer::{Document, Fault, Signed};
pub(crate) use name::ObjectName;
pub(crate) use sign::hexadecimal;
use sign::{ToSign, encode};

/// How long a connection may take none of the bytes that are sent; and how long a server may take to receive what is in
/// buffers, and to store a part. A part has no time limit: lines are slow, and parts large.
const BLOCKED: Duration = Duration::from_secs(120);
const STORED: Duration = Duration::from_secs(300);
/// How long a server may take to put an object together.
const COMPLETED: Duration = Duration::from_secs(900);

/// The names of headers.
const CHECKSUM: &str = "x-amz-checksum-sha256";
const ALGORITHM: &str = "x-amz-checksum-algorithm";
const REGION: &str = "x-amz-bucket-region";
/// The longest name of an upload in bytes, and its characters other than letters and digits: those of base64 and of URLs.
const MAX_UPLOAD: usize = 1024;
const UPLOAD: &str = "._~+/=-";

/// An object of a bucket, and how it is reached.
#[derive(Debug, Clone)]
pub struct Object {
    client: Agent,
    name: ObjectName,
    account: Account,
    /// Scheme and authority, and the percent-encoded path.
    server: String,
    authority: String,
    path: String,
}

/// What the server answers about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its size.
    pub bytes: u64,
    /// Its entity tag, without quotes.
    pub tag: String,
    /// The SHA-256 of its parts' hashes, with their number, as text.
    pub checksum: Option<String>,
}

/// What the server answers when it has put an object together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Completed {
    /// Its entity tag, without quotes.
    pub(crate) tag: String,
    /// As [`Head::checksum`].
    pub(crate) checksum: Option<String>,
}

/// A part as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bytes: u64,
    pub(crate) md5: [u8; 16],
    pub(crate) sha256: Hash,
    /// Its entity tag, with quotes if it has some.
    tag: String,
    /// Whether the server has named its SHA-256.
    has_checksum: bool,
}

impl Object {
    pub(crate) fn new(name: &ObjectName, account: Account) -> Self {
        let (bucket, key) = (&name.bucket, encode(&name.key, true));
        let is_in_path = account
            .path_style
            .unwrap_or_else(|| account.endpoint.is_some() || bucket.contains('.'));
        let (is_encrypted, host) = match &account.endpoint {
            Some(endpoint) => (endpoint.is_encrypted, endpoint.authority.clone()),
            None => (true, amazon(&account.region)),
        };
        let (authority, path) = match is_in_path {
            true => (host, format!("/{bucket}/{key}")),
            false => (format!("{bucket}.{host}"), format!("/{key}")),
        };
        let server = format!("{}://{authority}", if is_encrypted { "https" } else { "http" });
        Self {
            client: client(&server.parse().unwrap_or_default(), false),
            name: name.clone(),
            account,
            server,
            authority,
            path,
        }
    }

    /// Returns whether requests are signed.
    pub fn is_signed(&self) -> bool {
        self.account.key.is_some()
    }

    /// Returns the line for a shell that removes the parts of an upload.
    pub(crate) fn command_to_abort(&self, upload: &str) -> String {
        let ObjectName { bucket, key } = &self.name;
        let mut options = vec![("bucket", bucket.as_str()), ("key", key), ("upload-id", upload)];
        let endpoint = self.account.endpoint.as_ref().map(|endpoint| {
            let scheme = if endpoint.is_encrypted { "https" } else { "http" };
            format!("{scheme}://{}", endpoint.authority)
        });
        options.extend(endpoint.as_deref().map(|url| ("endpoint-url", url)));
        let command = "aws s3api abort-multipart-upload".to_owned();
        options.into_iter().fold(command, |command, (option, value)| {
            format!("{command} --{option}='{}'", value.replace('\'', r"'\''"))
        })
    }

    /// Asks for the size and the entity tag of the object. Returns `None` without one.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or refuses.
    pub fn head(&self) -> Result<Option<Head>, Error> {
        let headers = [("x-amz-checksum-mode", "ENABLED".to_owned())];
        let request = self.request(&Method::HEAD, "", &headers, &[])?.body(());
        let response = self.send(request, TIMEOUT)?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if response.status() == StatusCode::BAD_REQUEST && !response.headers().contains_key(REGION)
        {
            // The answer to HEAD has no body, which names the reason.
            let first = [(header::RANGE, "bytes=0-0".to_owned())];
            let again = self.get(&first, TIMEOUT)?;
            let is_error = again.status().is_client_error();
            return Err(self.refusal(if is_error { again } else { response }));
        }
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response));
        }
        let text = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let bytes = crate::version::length(response.headers());
        let bytes = bytes.ok_or(Error::Answer("it names no size of the object"))?;
        let tag = text("etag").unwrap_or_default().trim_matches('"').to_owned();
        Ok(Some(Head { bytes, tag, checksum: text(CHECKSUM) }))
    }

    /// Requests the object, or a part of it with these headers of HTTP, from a server that is silent for `silence` at most.
    ///
    /// # Errors
    /// Fails if the server cannot be reached.
    pub(crate) fn get(
        &self,
        ranges: &[(header::HeaderName, String)],
        silence: Duration,
    ) -> Result<Response<Body>, Error> {
        let request = self.request(&Method::GET, "", &[], &[])?;
        let request = ranges.iter().fold(request, |it, (name, value)| it.header(name, value));
        let request = request.body(()).map_err(ureq::Error::from)?;
        let request =
            self.client.configure_request(request).timeout_per_read(Some(silence)).build();
        Ok(self.client.run(request)?)
    }

    /// Begins an upload. Returns its name, and whether the server takes the SHA-256 of each part.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or refuses.
    pub(crate) fn create_upload(&self) -> Result<(String, bool), Error> {
        match self.create(&[(ALGORITHM, "SHA256".to_owned())]) {
            Ok(upload) => Ok((upload, true)),
            // Some servers do not know that header.
            Err(Error::Object(refusal)) if refusal.is_unsupported() => {
                self.create(&[]).map(|upload| (upload, false))
            }
            Err(error) => Err(error),
        }
    }

    fn create(&self, headers: &[(&str, String)]) -> Result<String, Error> {
        let request = self.request(&Method::POST, "uploads=", headers, &[])?.body(&[][..]);
        let response = self.send(request, STORED)?;
        let document = self.document(response)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || UPLOAD.contains(c);
        let is_upload = |it: &&str| it.len() <= MAX_UPLOAD && it.chars().all(plain);
        let upload = document.field("UploadId").filter(is_upload);
        upload.map(str::to_owned).ok_or(Error::Answer("it names no upload"))
    }

    /// Sends a part with this number, from 1. Fails also if the server names another hash than that of the bytes.
    pub(crate) fn put_part(
        &self,
        (upload, number, with_checksum): (&str, usize, bool),
        bytes: &[u8],
    ) -> Result<Part, Error> {
        let (md5, sha256) = (Md5::digest(bytes), Sha256::digest(bytes));
        let mut headers = vec![("content-md5", BASE64.encode(md5))];
        if with_checksum {
            headers.push((CHECKSUM, BASE64.encode(sha256)));
        }
        let query = format!("partNumber={number}&uploadId={}", encode(upload, false));
        let request = self.request(&Method::PUT, &query, &headers, bytes)?.body(bytes);
        let response = self.send(request, STORED)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response));
        }
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let is_tag = |tag: &&str| !tag.is_empty() && tag.len() <= 1024 && !tag.contains(['<', '&']);
        let tag = text("etag").filter(is_tag).ok_or(Error::Answer("it names no part"))?;
        let checksum = text(CHECKSUM);
        let is_encrypted_there = text("x-amz-server-side-encryption")
            .is_some_and(|it| it != "AES256")
            || text("x-amz-server-side-encryption-customer-algorithm").is_some();
        let other_md5 = !is_encrypted_there && is_other_md5(tag, &md5);
        if checksum.map_or(other_md5, |checksum| checksum != BASE64.encode(sha256)) {
            return Err(Error::Damaged);
        }
        Ok(Part {
            bytes: bytes.len() as u64,
            md5: md5.into(),
            sha256: sha256.into(),
            tag: tag.to_owned(),
            has_checksum: checksum.is_some(),
        })
    }

    /// Puts the object together. It must not exist meanwhile unless it is replaced.
    ///
    /// # Errors
    /// Fails if the server refuses. It may have put the object together although it fails with an error that
    /// [is temporary](Error::is_temporary).
    pub(crate) fn complete(
        &self,
        upload: &str,
        parts: &[Part],
        replaces: bool,
    ) -> Result<Completed, Error> {
        let has_checksums = parts.iter().all(|part| part.has_checksum);
        let mut body = "<CompleteMultipartUpload>".to_owned();
        for (number, part) in (1..).zip(parts) {
            body += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag>", part.tag);
            if has_checksums {
                let checksum = BASE64.encode(part.sha256);
                body += &format!("<ChecksumSHA256>{checksum}</ChecksumSHA256>");
            }
            body += "</Part>";
        }
        body += "</CompleteMultipartUpload>";
        let query = format!("uploadId={}", encode(upload, false));
        let request = self.request(&Method::POST, &query, &[], body.as_bytes())?;
        let request = if replaces { request } else { request.header(header::IF_NONE_MATCH, "*") };
        let response = self.send(request.body(body.as_bytes()), COMPLETED)?;
        let document = self.document(response)?;
        let tag = document.field("ETag").ok_or(Error::Answer("it names no object"))?;
        let checksum = document.field("ChecksumSHA256").map(str::to_owned);
        Ok(Completed { tag: tag.trim_matches('"').to_owned(), checksum })
    }

    /// Removes the parts of an upload.
    pub(crate) fn abort(&self, upload: &str) -> Result<(), Error> {
        let query = format!("uploadId={}", encode(upload, false));
        let request = self.request(&Method::DELETE, &query, &[], &[])?.body(());
        let response = self.send(request, TIMEOUT)?;
        match response.status() {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refusal(response)),
        }
    }

    /// Returns why the server refuses a request.
    pub(crate) fn refusal(&self, response: Response<Body>) -> Error {
        Error::Object(Box::new(Refusal::read(response, self.signed())))
    }

    fn signed(&self) -> Signed<'_> {
        Signed { is_signed: self.is_signed(), region: &self.account.region }
    }

    /// Reads a document. A success may be an error by what it has. The name of another root does not matter to programs.
    fn document(&self, mut response: Response<Body>) -> Result<Document, Error> {
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response));
        }
        let document = Document::read(&mut response).map_err(|fault| match fault {
            Fault::Lost(error) => Error::Http(error),
            Fault::Cut => Error::Cut,
            Fault::Malformed => Error::Answer("it is malformed"),
        })?;
        if !document.is("Error") {
            return Ok(document);
        }
        let (parts, _) = response.into_parts();
        let refusal = Refusal::new(parts.status, &parts.headers, Some(&document), self.signed());
        Err(Error::Object(Box::new(refusal)))
    }

    /// Returns a request with its signature. The query is percent-encoded and sorted; all the headers are signed.
    fn request(
        &self,
        method: &Method,
        query: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<ureq::http::request::Builder, Error> {
        let (server, path) = (&self.server, &self.path);
        let mark = if query.is_empty() { "" } else { "?" };
        let uri: Uri = format!("{server}{path}{mark}{query}")
            .parse()
            .map_err(ureq::http::Error::from)
            .map_err(ureq::Error::from)?;
        let request = Request::builder().method(method).uri(uri);
        let mut headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let Some(key) = &self.account.key else {
            return Ok(headers.iter().fold(request, |it, (name, value)| it.header(*name, *value)));
        };
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let hash = hexadecimal(&Sha256::digest(body));
        headers.extend([("x-amz-content-sha256", hash.as_str()), ("x-amz-date", &time)]);
        headers.extend(key.token.as_deref().map(|token| ("x-amz-security-token", token)));
        let request = headers.iter().fold(request, |it, (name, value)| it.header(*name, *value));
        headers.push(("host", &self.authority));
        headers.sort_unstable();
        let to_sign = ToSign {
            method: method.as_str(),
            path,
            query,
            headers: &headers,
            body: &hash,
            time: &time,
        };
        let authorization = to_sign.authorization(key, &self.account.region);
        Ok(request.header(header::AUTHORIZATION, authorization))
    }

    /// Sends a request, whose answer may take `waiting`.
    fn send(
        &self,
        request: Result<Request<impl AsSendBody>, ureq::http::Error>,
        waiting: Duration,
    ) -> Result<Response<Body>, Error> {
        let request = self.client.configure_request(request.map_err(ureq::Error::from)?);
        let request = request
            .timeout_per_write(Some(BLOCKED))
            .timeout_recv_response(Some(waiting))
            .timeout_recv_body(Some(waiting))
            .build();
        Ok(self.client.run(request)?)
    }
}

/// Returns the host of Amazon's servers in a region. Those in China have a domain of their own.
fn amazon(region: &str) -> String {
    let country = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{country}")
}

/// Returns whether an entity tag is an MD5, and that of other bytes.
fn is_other_md5(tag: &str, md5: &[u8]) -> bool {
    let tag = tag.trim_matches('"');
    let is_md5 = tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_md5 && !tag.eq_ignore_ascii_case(&hexadecimal(md5))
}

/// Returns the entity tag and the checksum that an object of these parts has (S3, Checking object integrity).
pub(crate) fn names_of(parts: &[Part]) -> (String, String) {
    let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
    for part in parts {
        md5.update(part.md5);
        sha256.update(part.sha256);
    }
    let number = parts.len();
    let (md5, sha256) = (hexadecimal(&md5.finalize()), BASE64.encode(sha256.finalize()));
    (format!("{md5}-{number}"), format!("{sha256}-{number}"))
}

#[cfg(test)]
mod test {
    use super::*;

    fn object(name: &str, variables: &[(&str, &str)]) -> Object {
        let value = |name: &str| {
            let found = variables.iter().find(|(it, _)| *it == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Object::new(&ObjectName::parse(name).unwrap(), Account::read(&value).unwrap())
    }

    #[test]
    fn bucket_is_in_host_name_or_path() {
        let url = |name, variables: &[_]| {
            let object = object(name, variables);
            format!("{}{}", object.server, object.path)
        };
        let region = ("AWS_REGION", "eu-west-1");
        assert_eq!(url("b/k k", &[region]), "https://b.s3.eu-west-1.amazonaws.com/k%20k");
        assert_eq!(url("b.c/k", &[region]), "https://s3.eu-west-1.amazonaws.com/b.c/k");
        let china = ("AWS_REGION", "cn-north-1");
        assert_eq!(url("b/k", &[china]), "https://b.s3.cn-north-1.amazonaws.com.cn/k");
        let endpoint = ("AWS_ENDPOINT_URL", "http://192.168.1.9:9000");
        assert_eq!(url("b/k", &[endpoint]), "http://192.168.1.9:9000/b/k");
        let endpoint = ("AWS_ENDPOINT_URL", "https://objects.example");
        let host_style = ("AWS_S3_FORCE_PATH_STYLE", "false");
        assert_eq!(url("b/k", &[endpoint, host_style]), "https://b.objects.example/k");
    }

    #[test]
    fn names_in_the_command_to_abort_are_no_commands() {
        let command = object("b/a'b$(c)\"`", &[]).command_to_abort("x;y");
        let words = r#"--bucket='b' --key='a'\''b$(c)"`' --upload-id='x;y'"#;
        assert_eq!(command, format!("aws s3api abort-multipart-upload {words}"));
        let endpoint = ("AWS_ENDPOINT_URL", "http://192.168.1.9:9000");
        let command = object("b/k", &[endpoint]).command_to_abort("x");
        assert!(command.ends_with("--endpoint-url='http://192.168.1.9:9000'"), "{command}");
    }

    #[test]
    fn unsigned_requests_have_no_credentials() {
        let key = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];
        for (variables, is_signed) in [(&key[..], true), (&[], false)] {
            let object = object("b/k", variables);
            let request = object.request(&Method::GET, "", &[], &[]).unwrap().body(()).unwrap();
            assert_eq!(request.headers().contains_key(header::AUTHORIZATION), is_signed);
            assert!(request.uri().query().is_none());
            assert!(!format!("{request:?}{object:?}").contains("s3cret"));
        }
    }

    #[test]
    fn entity_tags_that_are_no_md5_are_not_compared() {
        let md5 = Md5::digest(b"a");
        let own = hexadecimal(&md5);
        assert!(!is_other_md5(&format!("\"{own}\""), &md5));
        assert!(!is_other_md5(&own.to_ascii_uppercase(), &md5));
        assert!(!is_other_md5("\"opaque-tag\"", &md5));
        assert!(is_other_md5(&format!("\"{}\"", "0".repeat(32)), &md5));
    }
}
