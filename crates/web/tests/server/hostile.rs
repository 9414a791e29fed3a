//! Malicious clients.

use export::Reason;
use web::MAX_HEAD;

use crate::world::{Response, World, get};

#[test]
fn malformed_requests_close_with_their_violation() {
    for (request, code, violation) in [
        ("\x16\x03\x01\x02".to_owned(), 400, "HeadMalformed"),
        ("GET\r\n\r\n".to_owned(), 400, "HeadMalformed"),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505, "VersionUnknown"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "HostInvalid"),
        (get("/", "Content-Length: 1\r\n"), 400, "ContentUnexpected"),
        (get("/", "Content-Length: x\r\n"), 400, "LengthInvalid"),
        (format!("GET /{}", "a".repeat(MAX_HEAD)), 414, "TargetTooLong"),
        (get("/", &"a: b\r\n".repeat(65)), 431, "HeadTooLong"),
        (get("/", &format!("a: {}\r\n", "b".repeat(MAX_HEAD))), 431, "HeadTooLong"),
    ] {
        let mut world = World::new();
        let id = world.open();
        let received = world.exchange(id, format!("{request}{}", get("/sda.raw", "")).as_bytes());
        let (response, rest) = Response::parse(&received, false);
        assert_eq!((response.code, response.field("Connection")), (code, Some("close")));
        assert!(rest.is_empty(), "nothing is answered after {violation}");
        assert_eq!(world.conn(id).reported(), [format!("violation {violation}")]);
        assert_eq!(world.conn(id).closed, Some(Reason::Violation));
        assert!(!world.conn(id).is_established());
        world.end_all();
    }
}

/// Case X22.
#[test]
fn x22_heads_at_the_limit_of_their_length() {
    for more in 0..4 {
        let mut world = World::new();
        let id = world.open();
        let short = get("/disks.json", "a: \r\n").len();
        let request =
            get("/disks.json", &format!("a: {}\r\n", "b".repeat(MAX_HEAD - short - 1 + more)));
        let received = world.exchange(id, request.as_bytes());
        let code = if request.len() <= MAX_HEAD { 200 } else { 431 };
        assert_eq!(Response::parse(&received, false).0.code, code, "{}", request.len());
        world.end_all();
    }
}

/// Case X25.
#[test]
fn x25_any_message_in_any_state_leaks_nothing() {
    let messages = [
        get("/sda.raw", ""),
        get("/sda.raw", "Range: bytes=5-\r\n").replacen("GET", "HEAD", 1),
        get("/", ""),
        get("/", "").replacen("GET", "PUT", 1),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "\0".to_owned(),
        "GET /".to_owned(),
    ];
    for (first, second) in
        messages.iter().flat_map(|one| messages.iter().map(move |two| (one, two)))
    {
        for (hold, not_receiving) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut world = World::new();
            let id = world.open();
            (world.conn(id).hold, world.conn(id).not_receiving) = (hold, not_receiving);
            world.send(id, first.as_bytes());
            world.send(id, second.as_bytes());
            world.disconnect(id);
            world.end_all();
        }
    }
}
