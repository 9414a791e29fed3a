//! Where HTTP is served.

use crate::foreign::{Folder, MIB, run, stderr_of_failing};
use crate::process::{PROGRAM, Running};

#[test]
fn http_is_served_only_if_it_is_named() {
    let folder = Folder::new();
    let image = folder.hole("disk.img", MIB);
    let protocols = |args: &[&str]| {
        let running = Running::serve(&[&["--json", "--no-announce", &image], args].concat());
        let events = running.until("ready");
        let listening = events.iter().filter(|event| event["event"] == "listening");
        let of = |event: &serde_json::Value| event["protocol"].as_str().unwrap().to_owned();
        let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
        (listening.map(of).collect::<Vec<_>>(), lent["http"].clone())
    };
    let (served, urls) = protocols(&["--listen", "127.0.0.1:0"]);
    assert!(!served.contains(&"http".to_owned()) && urls.as_array().unwrap().is_empty());
    let http =
        ["--protocol", "nbd,http", "--listen", "nbd:127.0.0.1:0", "--listen", "http:127.0.0.1:0"];
    let (served, urls) = protocols(&http);
    assert_eq!(served, ["nbd", "http"]);
    let url = urls[0].as_str().unwrap();
    assert!(url.starts_with("http://127.0.0.1:") && url.ends_with("/disk.raw"), "{url}");
}

/// HTTP has no keys: an address that requires one is refused, before anything is bound.
#[test]
fn address_that_requires_a_key_is_refused() {
    let folder = Folder::new();
    let image = folder.hole("disk.img", MIB);
    let args = ["serve", "--protocol", "http", "--listen", "http:192.0.2.1:8080", &image];
    let message = stderr_of_failing(PROGRAM, &args);
    assert!(
        message.contains("cannot serve HTTP on 192.0.2.1 port 8080: HTTP has no keys"),
        "{message}"
    );
    let output = run(std::process::Command::new(PROGRAM).args(args));
    assert_eq!(output.status.code(), Some(2));
}
