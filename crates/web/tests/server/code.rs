//! The code for reading: forms, links and cookies of browsers, HTTP Basic of programs.

use std::time::Duration;

use export::{Auth, Peer, Reason};

use crate::world::{CODE, Response, SIZE, World, get, peer, secure};

const COOKIE: &str = "__Host-storagetm-8443";

/// Returns a GET request at the address of the machine.
fn request(path: &str, fields: &str) -> String {
    get(path, fields).replace("localhost:8080", "10.0.0.1:8443")
}

/// Returns the request of the form.
fn form(code: &str, fields: &str) -> String {
    let content = format!("code={}", code.replace(' ', "+"));
    let fields = format!(
        "Accept: text/html\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n{fields}",
        content.len()
    );
    request("/code", &fields).replacen("GET", "POST", 1) + &content
}

/// Returns the field of HTTP Basic (RFC 7617).
fn basic(code: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("disk:{code}")))
}

/// Returns the field with the cookie of a new session.
fn session(world: &mut World) -> String {
    let response = world.ask(&form(CODE, ""));
    let cookie = response.field("Set-Cookie").unwrap();
    format!("Cookie: a=b; {}\r\n", cookie.split(';').next().unwrap())
}

fn text(response: &Response) -> String {
    String::from_utf8(response.content.clone()).unwrap()
}

#[test]
fn nothing_is_shown_without_the_code() {
    let mut world = World::new();
    for path in ["/", "/disks.json", "/sda.raw", "/sdb.raw", "/code", "/favicon.ico"] {
        let response = world.ask(&request(path, ""));
        assert_eq!(response.code, 401, "{path}");
        let challenge = "Basic realm=\"storagetm\", charset=\"UTF-8\"";
        assert_eq!(response.field("WWW-Authenticate"), Some(challenge));
        let page = world.ask(&request(path, "Accept: text/html\r\n"));
        assert_eq!((page.code, page.field("WWW-Authenticate")), (403, None), "{path}");
        for text in [text(&response), text(&page)] {
            assert!(!["sda", "desk", "Model"].iter().any(|name| text.contains(name)), "{text}");
        }
        assert!(text(&page).contains("<form method=\"post\" action=\"/code\">"));
    }
    assert_eq!(world.ask(&request("/style.css", "")).code, 200);
    world.end_all();
}

#[test]
fn form_begins_a_session_that_shows_the_disks() {
    let mut world = World::new();
    let response = world.ask(&form(" 0i23 45-67 89ab", "Origin: https://10.0.0.1:8443\r\n"));
    assert_eq!((response.code, response.field("Location")), (303, Some("/")));
    let cookie = response.field("Set-Cookie").unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Secure; HttpOnly; SameSite=Strict");
    let value = pair.strip_prefix(&format!("{COOKIE}=")).unwrap();
    assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let field = format!("Cookie: {pair}\r\n");
    let page = text(&world.ask(&request("/", &field)));
    assert!(page.contains("Disks of desk") && !page.contains("Nothing is encrypted"), "{page}");
    let disk = world.ask(&request("/sda.raw", &field));
    assert_eq!((disk.code, disk.content.len()), (200, SIZE));
    for wrong in ["", &value[1..], &value.replace(['0', '7'], "8"), "x"] {
        let field = format!("Cookie: {COOKIE}={wrong}\r\n");
        assert_eq!(world.ask(&request("/", &field)).code, 401, "{wrong}");
    }
    world.end_all();
}

/// A cookie of another start of the program, or of a server at another port.
#[test]
fn cookie_of_another_server_is_unknown() {
    let (mut one, mut other) = (World::new(), World::new());
    let field = session(&mut one);
    assert_eq!(one.ask(&request("/", &field)).code, 200);
    assert_eq!(other.ask(&request("/", &field)).code, 401);
    assert_eq!(one.ask(&request("/", &field.replace("8443", "8444"))).code, 401);
    one.end_all();
    other.end_all();
}

#[test]
fn link_of_the_qr_code_begins_a_session_without_the_code_in_it() {
    let mut world = World::new();
    let link = request("/?code=0123456789AB", "Sec-Fetch-Site: none\r\nAccept: text/html\r\n");
    let response = world.ask(&link);
    assert_eq!((response.code, response.field("Location")), (303, Some("/")));
    assert!(response.field("Set-Cookie").is_some());
    assert_eq!(response.field("Referrer-Policy"), Some("same-origin"));
    let cookie = response.field("Set-Cookie").unwrap().split(';').next().unwrap();
    let fields = format!("Accept: text/html\r\nCookie: {cookie}\r\n");
    let again = world.ask(&request("/?code=zzzzzzzzzzzz", &fields));
    assert_eq!((again.code, again.field("Set-Cookie")), (303, None), "of a session, with any code");
    // Not by a look at the head.
    let head = world.ask(&link.replacen("GET", "HEAD", 1));
    assert_eq!((head.code, head.field("Set-Cookie")), (403, None));
    let wrong = world.ask(&link.replace("89AB", "89AC"));
    assert_eq!((wrong.code, wrong.field("Set-Cookie")), (403, None));
    assert!(text(&wrong).contains("This code is wrong."));
    world.end_all();
}

#[test]
fn programs_read_by_http_basic() {
    let mut world = World::new();
    let response = world.ask(&request("/sda.raw", &format!("{}Range: bytes=0-9\r\n", basic(CODE))));
    assert_eq!((response.code, response.content.len()), (206, 10));
    for field in [
        basic("0123-4567-89AC"),
        basic(CODE).replace("Basic", "Bearer"),
        "Authorization: Basic ?\r\n".to_owned(),
        "Authorization: Basic\r\n".to_owned(),
    ] {
        assert_eq!(world.ask(&request("/sda.raw", &field)).code, 401, "{field}");
    }
    let wrong = world.ask(&request("/sda.raw", &basic("wrong")));
    assert_eq!(text(&wrong), "This code is wrong.\n");
    assert!(text(&world.ask(&request("/sda.raw", ""))).contains("the machine that lends"));
    world.end_all();
}

/// X64: wrong codes, by all three ways.
#[test]
fn x64_ten_wrong_codes_lock_their_address_alone() {
    let mut world = World::new();
    let cookie = session(&mut world);
    let wrong = [
        form("wrong", ""),
        request("/?code=wrong", "Accept: text/html\r\n"),
        request("/", &format!("Accept: text/html\r\n{}", basic("wrong"))),
    ];
    let id = world.open_as(secure("10.0.0.2:1024"));
    for n in 0..10 {
        let bytes = world.exchange(id, wrong[n % 3].as_bytes());
        assert_eq!(Response::parse(&bytes, false).0.code, 403, "{n}");
    }
    assert_eq!(world.conn(id).reported(), vec!["refused "; 10]);
    assert!(!world.conn(id).is_established());
    let locked = world.ask(&form(CODE, ""));
    assert_eq!((locked.code, locked.field("Set-Cookie")), (429, None));
    assert_eq!(locked.field("Retry-After"), Some("61"));
    assert_eq!(world.ask(&request("/", &basic(CODE))).code, 429);
    assert_eq!(world.ask(&request("/", &cookie)).code, 200, "a session goes on");
    let id = world.open_as(secure("10.0.0.3:1024"));
    let other = world.exchange(id, request("/", &basic(CODE)).as_bytes());
    assert_eq!(Response::parse(&other, false).0.code, 200, "another address is not locked");
    world.advance(Duration::from_secs(62));
    assert_eq!(world.ask(&form(CODE, "")).code, 303);
    world.end_all();
}

/// X65: another web page can neither log a browser in nor use up its codes.
#[test]
fn x65_other_sites_cannot_use_codes() {
    let mut world = World::new();
    for n in 0..30 {
        let field = match n % 5 {
            0 => "Sec-Fetch-Site: cross-site\r\n",
            1 => "Sec-Fetch-Site: same-site\r\n",
            2 => "Origin: https://evil.example\r\n",
            3 => "Origin: null\r\n",
            _ => "Origin: http://10.0.0.1:8443\r\n",
        };
        let code = if n % 2 == 0 { CODE } else { "wrong" };
        let response = world.ask(&form(code, field));
        assert_eq!((response.code, response.field("Set-Cookie")), (403, None), "{field}");
        let link = format!("/?code={}", code.replace('-', ""));
        assert!(matches!(world.ask(&request(&link, field)).code, 401));
        let fields = format!("{field}{}", basic(code));
        assert_eq!(world.ask(&request("/sda.raw", &fields)).code, 401);
        // An image, in a browser that says nothing of other sites.
        assert_eq!(world.ask(&request(&link, "Accept: image/*\r\n")).code, 401);
    }
    assert_eq!(world.ask(&form(CODE, "")).code, 303, "no wrong code was counted");
    world.end_all();
}

#[test]
fn names_of_others_are_not_answered_with_the_code_either() {
    let mut world = World::new();
    let field = basic(CODE);
    let response = world.ask(&request("/", &field).replace("10.0.0.1:8443", "evil.example"));
    assert_eq!(response.code, 421);
    world.end_all();
}

#[test]
fn new_code_ends_downloads_and_sessions() {
    let mut world = World::new();
    let cookie = session(&mut world);
    let id = world.open_as(secure("10.0.0.2:1024"));
    world.conn(id).hold = true;
    world.send(id, request("/sda.raw", &cookie).as_bytes());
    assert!(!world.jobs(id).is_empty());
    world.set_code("ZZZZ-ZZZZ-ZZZZ");
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    assert_eq!(world.ask(&request("/", &cookie)).code, 401);
    assert_eq!(world.ask(&request("/", &basic("zzzz zzzz zzzz"))).code, 200);
    world.end_all();
}

#[test]
fn peers_without_the_code_are_not_established() {
    let mut world = World::new();
    for path in ["/", "/style.css", "/sda.raw"] {
        for method in ["GET", "HEAD", "POST"] {
            for host in ["10.0.0.1:8443", "evil.example"] {
                let request = request(path, "Accept: text/html\r\n");
                let request = request.replacen("GET", method, 1).replace("10.0.0.1:8443", host);
                let id = world.open_as(secure("10.0.0.2:1024"));
                assert!(!world.exchange(id, request.as_bytes()).is_empty());
                assert!(!world.conn(id).is_established(), "{method} {path} at {host}");
                world.disconnect(id);
            }
        }
    }
    let id = world.open_as(secure("10.0.0.2:1024"));
    world.exchange(id, request("/", &basic(CODE)).as_bytes());
    assert!(world.conn(id).is_established());
    world.end_all();
}

/// Requests without the code do not keep a connection.
#[test]
fn peer_without_the_code_is_closed_after_ten_seconds() {
    let mut world = World::new();
    let id = world.open_as(secure("10.0.0.2:1024"));
    for _ in 0..3 {
        world.exchange(id, request("/style.css", "").as_bytes());
        world.exchange(id, request("/", "").as_bytes());
        world.send(id, b"GET");
        world.send(id, &request("/", "").as_bytes()[3..]);
        world.advance(Duration::from_secs(3));
    }
    assert!(world.conn(id).is_open());
    world.advance(Duration::from_secs(2));
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

/// X64: who reads by HTTP Basic, in ranges, on one connection.
#[test]
fn x64_wrong_codes_do_not_interrupt_a_program() {
    let mut world = World::new();
    let range = request("/sda.raw", &format!("{}Range: bytes=0-9\r\n", basic(CODE)));
    let id = world.open_as(secure("10.0.0.2:1024"));
    let ask = |world: &mut World, text: &str| {
        Response::parse(&world.exchange(id, text.as_bytes()), false).0.code
    };
    assert_eq!(ask(&mut world, &range), 206);
    for _ in 0..10 {
        assert_eq!(world.ask(&request("/", &basic("wrong"))).code, 401);
    }
    assert_eq!(world.ask(&range).code, 429, "a new connection");
    assert_eq!(ask(&mut world, &range), 206);
    assert_eq!(ask(&mut world, &request("/", &basic("wrong"))), 429, "wrong ones are refused");
    assert_eq!(ask(&mut world, &range), 206);
    world.set_code("ZZZZ-ZZZZ-ZZZZ");
    assert_eq!(ask(&mut world, &range), 401, "the code has been replaced");
    world.end_all();
}

/// At addresses that require nothing, codes and contents mean nothing.
#[test]
fn code_is_not_asked_for_where_no_key_is_required() {
    let mut world = World::new();
    let open = Peer { auth: Auth::None, ..secure("10.0.0.2:1024") };
    for (peer, request) in [(peer(Auth::None), get("/?code=x", "")), (open, request("/", ""))] {
        let id = world.open_as(peer);
        let bytes = world.exchange(id, request.as_bytes());
        let response = Response::parse(&bytes, false).0;
        assert_eq!((response.code, response.field("Set-Cookie")), (200, None));
    }
    world.end_all();
}

/// Contents are bounded, and what is in them is never a request.
#[test]
fn content_of_a_form_is_not_read_as_a_request() {
    let mut world = World::new();
    let id = world.open_as(secure("10.0.0.2:1024"));
    let (inner, cookie) = (request("/", &basic(CODE)), request("/", ""));
    let head = format!("Content-Length: {}\r\nAccept: text/html\r\n", inner.len());
    let outer = request("/code", &head).replacen("GET", "POST", 1);
    let bytes = world.exchange(id, format!("{outer}{inner}{cookie}").as_bytes());
    let (first, rest) = Response::parse(&bytes, false);
    let (second, rest) = Response::parse(rest, false);
    assert_eq!((first.code, second.code, rest.len()), (403, 401, 0));
    let long = request("/code", "Content-Length: 1025\r\n").replacen("GET", "POST", 1);
    let long = world.ask(&format!("{long}{}", "a".repeat(1025)));
    assert_eq!((long.code, long.field("Connection")), (401, Some("close")));
    world.end_all();
}
