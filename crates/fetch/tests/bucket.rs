//! Servers of objects that are busy, lose connections, and do not have what was sent.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fetch::{Access, Account, Body, Error, Location, Proof, Stored, Upload};
use md5::{Digest as _, Md5};
use testkit::bucket::{Shared, answer, created, error, hexadecimal};
use testkit::web::{Request, Server, reply};

const SECRET: &str = "s3cret-of-the-account";

/// Starts a server that answers by `fault`, and rightly where that returns `false`.
fn serve(
    fault: impl Fn(usize, &Request, &mut TcpStream) -> bool + Send + 'static,
) -> (Shared, Server, Location, Access) {
    let store = Shared::default();
    let theirs = store.clone();
    let server = Server::start(move |number, request, stream| {
        if !fault(number, request, stream) {
            answer(&theirs, request, stream);
        }
    });
    let access = access(&server);
    (store, server, "s3://bucket/disk.raw".parse().unwrap(), access)
}

fn access(server: &Server) -> Access {
    let endpoint = format!("http://{}", server.authority);
    let variable = |name: &str| match name {
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        "AWS_ACCESS_KEY_ID" => Some("AKIA".to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(SECRET.to_owned()),
        _ => None,
    };
    Access { account: Some(Account::read(&variable).unwrap()), login: None }
}

/// Three parts, of which the last one is shorter.
fn image() -> Vec<u8> {
    (0..17_u32 << 18).flat_map(u32::to_le_bytes).collect()
}

fn upload(location: &Location, access: &Access, patience: u64) -> Result<Stored, Error> {
    let object = location.object(access.account.as_ref().unwrap()).unwrap();
    let (patience, stop) = (Duration::from_secs(patience), Arc::new(AtomicBool::new(false)));
    let mut upload = Upload::begin(object, 17 << 20, false, patience, stop)?;
    match upload.write_all(&image()) {
        Ok(()) => upload.finish(true),
        Err(error) => Err(upload.cancel(Error::Write(error))),
    }
}

fn read(location: &Location, access: &Access) -> Result<Vec<u8>, Error> {
    let mut body = Body::open(location, access, Duration::from_secs(2))?;
    let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

fn is(request: &Request, method: &str, query: &str) -> bool {
    request.method == method && request.path.contains(query)
}

#[test]
fn object_is_written_in_parts_and_read_in_ranges() {
    let (store, server, location, access) = serve(|_, _, _| false);
    let stored = upload(&location, &access, 0).unwrap();
    assert_eq!(stored, Stored { bytes: 17 << 20, parts: 3, proof: Proof::Hash("MD5") });
    assert!(store.lock().unwrap().object.as_deref() == Some(&image()));
    assert!(read(&location, &access).unwrap() == image());
    let requests = server.requests();
    for request in &requests {
        let authorization = request.header("authorization").unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIA/"));
        assert!(!format!("{request:?}").contains(SECRET) && !request.path.contains("Signature"));
    }
    let complete = requests.iter().find(|it| is(it, "POST", "uploadId")).unwrap();
    assert_eq!(complete.header("if-none-match"), Some("*"));
    assert!(
        requests.iter().any(|it| it.first() == Some(3_000_000) && it.header("if-range").is_some())
    );
}

#[test]
fn r52_busy_server_and_cut_connections_are_tried_again() {
    // 0 begins the upload. Each of the next connections is lost or answered in vain.
    let (store, _, location, access) = serve(|number, request, stream| {
        match number {
            1 => reply(stream, "503 Slow Down", "", &error("SlowDown")),
            2 => {}
            3 => reply(stream, "400 Bad Request", "", &error("RequestTimeout")),
            _ if number % 3 == 0 && request.method == "PUT" => {}
            _ => return false,
        }
        true
    });
    let stored = upload(&location, &access, 20).unwrap();
    assert_eq!(stored.proof, Proof::Hash("MD5"));
    assert!(store.lock().unwrap().object.as_deref() == Some(&image()));
}

#[test]
fn tag_of_another_part_is_no_success() {
    let (store, _, location, access) = serve(|_, request, stream| {
        let is_second = is(request, "PUT", "partNumber=2");
        if is_second {
            let tag = hexadecimal(&Md5::digest(b"another"));
            reply(stream, "200 OK", &format!("ETag: \"{tag}\"\r\n"), b"");
        }
        is_second
    });
    let error = upload(&location, &access, 1).unwrap_err();
    assert!(matches!(error, Error::Damaged), "{error}");
    let store = store.lock().unwrap();
    assert!(store.object.is_none() && store.aborted == 1);
}

#[test]
fn error_in_a_success_is_no_success() {
    let (store, _, location, access) = serve(|_, request, stream| {
        let is_end = is(request, "POST", "uploadId");
        if is_end {
            reply(stream, "200 OK", "", &error("AccessDenied"));
        }
        is_end
    });
    let error = upload(&location, &access, 1).unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let store = store.lock().unwrap();
    assert!(store.object.is_none() && store.aborted == 1);
}

#[test]
fn lost_answer_to_the_end_of_an_upload_is_found_out() {
    let store = Shared::default();
    let theirs = store.clone();
    let is_first = Mutex::new(true);
    let server = Server::start(move |_, request, stream| {
        let mut is_first = is_first.lock().unwrap();
        if is(request, "POST", "uploadId") && std::mem::take(&mut *is_first) {
            return theirs.lock().unwrap().complete();
        }
        answer(&theirs, request, stream);
    });
    let location = "s3://bucket/disk.raw".parse().unwrap();
    let stored = upload(&location, &access(&server), 10).unwrap();
    assert_eq!(stored.proof, Proof::Hash("MD5"));
    assert_eq!(store.lock().unwrap().aborted, 0);
}

#[test]
fn object_without_hashes_is_read_back() {
    // An opaque entity tag; then one byte of the object differs, and then one is missing.
    for fault in ["", "differs", "shorter"] {
        let store = Shared::default();
        let theirs = store.clone();
        let server = Server::start(move |_, request, stream| {
            answer(&theirs, request, stream);
            let mut store = theirs.lock().unwrap();
            if let (true, Some(object)) = (is(request, "POST", "uploadId"), &mut store.object) {
                match fault {
                    "differs" => object[9 << 20] ^= 1,
                    "shorter" => object.truncate(object.len() - 1),
                    _ => {}
                }
                store.tag = "opaque".to_owned();
            }
        });
        let location = "s3://bucket/disk.raw".parse().unwrap();
        let stored = upload(&location, &access(&server), 10);
        match (fault, stored) {
            ("", Ok(Stored { proof: Proof::ReadBack, .. })) => {}
            ("differs", Err(Error::Differs { start, end })) => {
                assert_eq!((start, end), (8 << 20, 16 << 20));
            }
            ("shorter", Err(Error::Size { .. })) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn object_that_came_into_being_is_not_overwritten() {
    let (store, _, location, access) = serve(|_, request, stream| {
        let is_end = is(request, "POST", "uploadId") && request.header("if-none-match").is_some();
        if is_end {
            reply(stream, "412 Precondition Failed", "", &error("PreconditionFailed"));
        }
        is_end
    });
    let error = upload(&location, &access, 1).unwrap_err();
    assert!(error.to_string().contains("by another program"), "{error}");
    assert_eq!(store.lock().unwrap().aborted, 1);
}

#[test]
fn upload_that_cannot_be_aborted_is_named() {
    let (_, _, location, access) = serve(|_, request, stream| {
        let is_refused = request.method == "DELETE" || request.method == "PUT";
        if is_refused {
            reply(stream, "403 Forbidden", "", &error("AccessDenied"));
        }
        is_refused
    });
    let text = upload(&location, &access, 0).unwrap_err().to_string();
    assert!(text.contains("no permission"), "{text}");
    assert!(text.contains("--bucket bucket --key \"disk.raw\" --upload-id id/1"), "{text}");
}

#[test]
fn x55_hostile_documents_do_not_begin_an_upload() {
    let entity = "<!DOCTYPE a [<!ENTITY b \"id\">]><InitiateMultipartUploadResult><UploadId>&b;</UploadId>\
                  </InitiateMultipartUploadResult>";
    let endless = format!("<InitiateMultipartUploadResult>{}", "<a>b</a>".repeat(1 << 20));
    for document in [entity.into(), endless.into(), created("a\r\nb"), b"<Other/>".to_vec(), vec![]]
    {
        let (store, _, location, access) = serve(move |_, request, stream| {
            let is_first = is(request, "POST", "uploads");
            if is_first {
                reply(stream, "200 OK", "", &document);
            }
            is_first
        });
        let error = upload(&location, &access, 0).unwrap_err();
        assert!(matches!(error, Error::Answer(_)), "{error}");
        assert!(store.lock().unwrap().parts.is_empty());
    }
}

#[test]
fn x56_redirections_of_a_bucket_are_not_followed() {
    let (_, other, _, _) = serve(|_, _, _| false);
    let url = format!("Location: http://{}/bucket/disk.raw\r\n", other.authority);
    let (_, _, location, access) = serve(move |_, _, stream| {
        let headers = format!("{url}x-amz-bucket-region: eu-central-1\r\n");
        reply(stream, "301 Moved Permanently", &headers, &error("PermanentRedirect"));
        true
    });
    for error in [read(&location, &access).unwrap_err(), upload(&location, &access, 0).unwrap_err()]
    {
        assert!(error.to_string().contains("AWS_REGION=eu-central-1"), "{error}");
    }
    assert!(other.requests().is_empty());
}

#[test]
fn object_that_was_replaced_while_it_is_read_is_refused() {
    let (store, _, location, access) = serve(|_, _, _| false);
    upload(&location, &access, 0).unwrap();
    let mut body = Body::open(&location, &access, Duration::from_secs(2)).unwrap();
    store.lock().unwrap().tag = "other".to_owned();
    let mut piece = vec![0; 1 << 20];
    let error = loop {
        match body.read(&mut piece) {
            Ok(count) => assert!(count > 0),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Changed), "{error}");
}
