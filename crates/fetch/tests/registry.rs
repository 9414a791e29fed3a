//! Registries that demand a permission, lose connections, and do not have what they say.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fmt::Write as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fetch::{Access, Body, Error, Hash, Location, Login};
use sha2::{Digest as _, Sha256};
use testkit::web::{Request, Server, reply, send};

/// The disk image.
fn image() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A manifest whose only layer is the image, with this size.
fn manifest(size: usize) -> Vec<u8> {
    let digest = digest(&image());
    format!(r#"{{"layers":[{{"mediaType":"a/b","digest":"{digest}","size":{size}}}]}}"#).into()
}

/// Answers as a registry with the manifest, and no more than `max` bytes of the image.
fn answer(manifest: &[u8], max: usize, request: &Request, stream: &mut TcpStream) {
    if request.path.starts_with("/v2/a/b/manifests/") {
        return reply(stream, "200 OK", "", manifest);
    }
    assert_eq!(request.path, format!("/v2/a/b/blobs/{}", digest(&image())));
    send(stream, (&image(), request.first()), "", max);
}

fn open(server: &Server, version: &str, login: Option<Login>) -> Result<Body, Error> {
    let url = format!("oci://{}/a/b{version}", server.authority);
    let location: Location = url.parse().unwrap();
    let access = Access { login, ..Access::default() };
    Body::open(&location, &access, Duration::from_secs(2))
}

fn read(mut body: Body) -> Result<Vec<u8>, Error> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 60_000]);
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

#[test]
fn image_of_a_registry_is_read_with_its_hash() {
    let manifest = manifest(image().len());
    let pinned = format!("@{}", digest(&manifest));
    let server =
        Server::start(move |_, request, stream| answer(&manifest, 150_000, request, stream));
    for version in ["", ":v1", &pinned] {
        let body = open(&server, version, None).unwrap();
        assert_eq!(body.length(), Some(800_000));
        assert_eq!(body.hash(), Some(Hash::from(Sha256::digest(image()))));
        // Of each connection 150,000 bytes come; the blob has no version, and needs none.
        assert!(read(body).unwrap() == image());
    }
}

#[test]
fn r53_other_manifest_than_the_pinned_one_is_refused() {
    let manifest = manifest(800_000);
    let server = Server::start(move |_, request, stream| answer(&manifest, 0, request, stream));
    let error = open(&server, &format!("@{}", digest(b"another")), None).unwrap_err();
    assert!(error.to_string().contains("does not have the digest"), "{error}");
}

#[test]
fn r53_blob_of_another_size_is_refused() {
    let manifest = manifest(799_999);
    let server = Server::start(move |_, request, stream| answer(&manifest, 10, request, stream));
    let error = open(&server, "", None).unwrap_err();
    assert!(error.to_string().contains("size"), "{error}");
}

#[test]
fn x55_endless_manifest_is_refused() {
    let server = Server::start(|_, _, stream| reply(stream, "200 OK", "", &vec![b' '; 5 << 20]));
    assert!(matches!(open(&server, "", None), Err(Error::Http(_))));
}

/// A registry with tokens, each of which is valid for this number of requests.
fn keyed(valid: usize) -> (Server, Arc<Mutex<usize>>) {
    let tokens = Arc::new(Mutex::new(0));
    let theirs = tokens.clone();
    let left = Mutex::new(0);
    let manifest = manifest(image().len());
    let server = Server::start(move |_, request, stream| {
        let mut left = left.lock().unwrap();
        let mut number = theirs.lock().unwrap();
        if let Some(query) = request.path.strip_prefix("/token?") {
            assert_eq!(query, "service=it&scope=repository:a/b:pull");
            if request.header("authorization") != Some("Basic YW5uYTpzZWNyZXQ=") {
                return reply(stream, "401 Unauthorized", "", b"");
            }
            (*left, *number) = (valid, *number + 1);
            return reply(stream, "200 OK", "", format!(r#"{{"token":"t{number}"}}"#).as_bytes());
        }
        let expected = format!("Bearer t{number}");
        if *left == 0 || request.header("authorization") != Some(&expected) {
            let host = request.header("host").unwrap();
            let demand = format!(
                "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"it\"\r\n"
            );
            return reply(stream, "401 Unauthorized", &demand, b"");
        }
        *left -= 1;
        answer(&manifest, 150_000, request, stream);
    });
    (server, tokens)
}

fn login(password: &str) -> Option<Login> {
    Some(Login { user: "anna".to_owned(), password: password.to_owned() })
}

#[test]
fn permission_is_asked_for_again_when_it_ends() {
    let (server, tokens) = keyed(2);
    assert!(read(open(&server, "", login("secret")).unwrap()).unwrap() == image());
    assert!(*tokens.lock().unwrap() > 2);
}

#[test]
fn missing_or_wrong_password_is_named() {
    for login in [None, login("wrong")] {
        let (server, _) = keyed(2);
        assert!(matches!(open(&server, "", login), Err(Error::Login)));
    }
}

#[test]
fn wrong_password_of_a_registry_without_tokens_is_named() {
    let server = Server::start(|_, _, stream| {
        reply(stream, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"it\"\r\n", b"");
    });
    assert!(matches!(open(&server, "", login("wrong")), Err(Error::Login)));
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn x56_password_is_not_sent_where_a_registry_redirects() {
    let other = Server::start(|_, request, stream| {
        let host = request.header("host").unwrap();
        let demand = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n");
        reply(stream, "401 Unauthorized", &demand, b"");
    });
    // Another name of the same machine, which needs no resolver.
    let to = other.authority.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let server = Server::start(move |_, request, stream| {
        let there = format!("Location: http://{to}{}\r\n", request.path);
        reply(stream, "307 Temporary Redirect", &there, b"");
    });
    assert!(matches!(open(&server, "", login("secret")), Err(Error::Status { .. })));
    let requests = other.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None);
}

#[test]
fn x57_token_is_not_asked_for_where_nothing_is_named() {
    for demand in ["", "WWW-Authenticate: Bearer realm=\"file:///etc/passwd\"\r\n"] {
        let server =
            Server::start(move |_, _, stream| reply(stream, "401 Unauthorized", demand, b""));
        open(&server, "", login("secret")).unwrap_err();
        assert_eq!(server.requests().len(), 1);
    }
}
