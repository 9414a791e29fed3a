//! A server of one object, with the interface of S3, for tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use md5::{Digest as _, Md5};

use crate::web::{Request, reply, send_part};

/// What a server has stored.
#[derive(Debug, Default)]
pub struct Store {
    /// Parts of an upload that was begun, by their numbers.
    pub parts: BTreeMap<usize, Vec<u8>>,
    /// The object.
    pub object: Option<Vec<u8>>,
    /// Its entity tag, without quotes.
    pub tag: String,
    /// How many uploads were aborted.
    pub aborted: usize,
}

/// What is stored, for the thread of a server, too.
pub type Shared = Arc<Mutex<Store>>;

/// The text of a hash, in digits 0-9a-f.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl Store {
    /// Puts the object together.
    pub fn complete(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        let hashes: Vec<u8> = parts.values().flat_map(Md5::digest).collect();
        self.tag = format!("{}-{}", hexadecimal(&Md5::digest(hashes)), parts.len());
        self.object = Some(parts.into_values().flatten().collect());
    }
}

/// Answers as a server that makes no mistakes.
///
/// # Panics
/// Panics at a request that is none for an object of the bucket `bucket`.
pub fn answer(store: &Shared, request: &Request, stream: &mut TcpStream) {
    let mut store = store.lock().unwrap();
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    assert!(path.starts_with("/bucket/"), "{path}");
    match (request.method.as_str(), query) {
        ("POST", "uploads=") => reply(stream, "200 OK", "", &created("id/1")),
        ("PUT", _) => {
            let number = query.strip_prefix("partNumber=").unwrap().split('&').next().unwrap();
            let tag = hexadecimal(&Md5::digest(&request.body));
            store.parts.insert(number.parse().unwrap(), request.body.clone());
            reply(stream, "200 OK", &format!("ETag: \"{tag}\"\r\n"), b"");
        }
        ("POST", "uploadId=id%2F1") if store.parts.is_empty() => {
            reply(stream, "404 Not Found", "", &error("NoSuchUpload"));
        }
        ("POST", "uploadId=id%2F1") => {
            store.complete();
            reply(stream, "200 OK", "", &completed(&store.tag));
        }
        ("DELETE", "uploadId=id%2F1") => {
            store.aborted += 1;
            reply(stream, "204 No Content", "", b"");
        }
        ("HEAD", "") => match &store.object {
            None => reply(stream, "404 Not Found", "", b""),
            Some(object) => {
                let (tag, length) = (&store.tag, object.len());
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nETag: \"{tag}\"\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
            }
        },
        ("GET", "") => {
            let object = store.object.clone().unwrap_or_default();
            let tag = format!("ETag: \"{}\"\r\n", store.tag);
            send_part(stream, (&object, request.part()), &tag, 3_000_000);
        }
        other => panic!("{other:?}"),
    }
}

/// Returns the document that names an upload.
pub fn created(id: &str) -> Vec<u8> {
    let result = "InitiateMultipartUploadResult";
    format!("<?xml version=\"1.0\"?><{result}><UploadId>{id}</UploadId></{result}>").into()
}

/// Returns the document that names an object that was put together, after white space as of a server that took long.
pub fn completed(tag: &str) -> Vec<u8> {
    let result = "CompleteMultipartUploadResult";
    format!(" \n <{result}><ETag>\"{tag}\"</ETag></{result}>").into()
}

/// Returns the document that names an error.
pub fn error(code: &str) -> Vec<u8> {
    format!("<Error><Code>{code}</Code><Message>no</Message></Error>").into()
}
