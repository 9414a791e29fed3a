//! The page, the list in JSON, and names of hosts.

use export::{Access, Auth};

use crate::world::{Response, World, get, named, peer};

const HOSTILE: &str = "/dev/<script>\"x'&\u{202e}\n";

fn world() -> World {
    let world = World::new();
    world.catalogue.publish(named(HOSTILE, "b", Access::Writable, 512, 1_500_000_256));
    world
}

#[test]
fn page_lists_disks_and_links_to_each() {
    let mut world = world();
    let response = world.get("/", "");
    let policy = response.field("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    assert_eq!(response.field("X-Content-Type-Options"), Some("nosniff"));
    let page = String::from_utf8(response.content).unwrap();
    assert!(
        page.contains("<h1>Disks of desk</h1>") && page.contains("Model &lt;1&gt;, 2 MB"),
        "{page}"
    );
    assert!(page.contains("href=\"/sda.raw\"") && page.contains("(2097252 bytes)"), "{page}");
    assert!(page.contains("&lt;script&gt;&quot;x&#39;&amp;\u{fffd}\u{fffd}.raw"), "{page}");
    assert!(!page.contains("<script"), "{page}");
    assert_eq!(page.matches("Other machines may write to this disk").count(), 1);
    // The link works as it stands there.
    let link = page.split("href=\"").find(|rest| rest.starts_with("/%3Cscript")).unwrap();
    let link = link.split('"').next().unwrap();
    assert_eq!(world.get(link, "Range: bytes=0-0\r\n").code, 206, "{link}");
    let style = world.get("/style.css", "");
    assert_eq!(style.field("Content-Type"), Some("text/css; charset=utf-8"));
    world.end_all();
}

#[test]
fn list_for_programs_is_json() {
    let mut world = world();
    let response = world.get("/disks.json", "");
    assert_eq!(response.field("Content-Type"), Some("application/json"));
    let text = String::from_utf8(response.content).unwrap();
    let first = "{\"disks\":[{\"block_size\":512,\"bytes\":2097252,\"compressed\":\"/sda.raw.zst\",\"contents\":\"\",\"model\":\"Model <1>\",\"name\":\"sda\",\"path\":\"/sda.raw\",\"writable\":false}";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("\"machine\":\"desk\"") && text.contains("\"writable\":true"), "{text}");
    world.end_all();
}

#[test]
fn page_without_disks_says_so() {
    let page = World::bare().get("/", "").content;
    assert!(String::from_utf8(page).unwrap().contains("There is no disk here now."));
}

/// Case X63.
#[test]
fn x63_other_names_than_its_own_are_not_answered() {
    let mut world = World::new();
    for path in ["/", "/sda.raw", "/disks.json"] {
        let id = world.open();
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n");
        let (response, _) = Response::parse(&world.exchange(id, request.as_bytes()), false);
        assert_eq!(response.field("Cross-Origin-Resource-Policy"), Some("same-origin"));
        assert_eq!(response.field("Access-Control-Allow-Origin"), None);
        let text = String::from_utf8(response.content).unwrap();
        assert_eq!((response.code, text.contains("sda")), (421, false), "{path}");
        assert_eq!(world.conn(id).submitted, 0);
    }
    world.end_all();
}

/// Listeners that require a key do not serve HTTP; its sessions show nothing there all the same.
#[test]
fn nothing_is_shown_where_a_key_is_required() {
    let mut world = World::new();
    for path in ["/", "/sda.raw", "/disks.json", "/style.css", "/none"] {
        let id = world.open_as(peer(Auth::Required));
        let (response, _) = Response::parse(&world.exchange(id, get(path, "").as_bytes()), false);
        let text = String::from_utf8(response.content).unwrap();
        assert_eq!((response.code, text.contains("sda")), (403, false), "{path}");
    }
    world.end_all();
}

#[test]
fn only_get_and_head_are_allowed() {
    let mut world = World::new();
    let id = world.open();
    for method in ["PUT", "DELETE", "OPTIONS", "CONNECT", "get", "X"] {
        let request = get("/sda.raw", "").replacen("GET", method, 1);
        let (response, _) = Response::parse(&world.exchange(id, request.as_bytes()), false);
        assert_eq!((response.code, response.field("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    let post = get("/sda.raw", "Content-Length: 4000\r\n").replacen("GET", "POST", 1);
    let received = world.exchange(id, format!("{post}{}", get("/sda.raw", "")).as_bytes());
    let (response, rest) = Response::parse(&received, false);
    assert_eq!((response.code, response.field("Connection")), (405, Some("close")));
    assert!(rest.is_empty() && world.conn(id).closed.is_some());
    world.end_all();
}
