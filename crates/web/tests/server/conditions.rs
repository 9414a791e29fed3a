//! Conditional requests (RFC 9110 §13).

use export::Access;

use crate::world::{DISK, SIZE, World, disk, overlaid};

fn tag(world: &mut World) -> String {
    world.get("/sda.raw", "Range: bytes=0-0\r\n").field("ETag").unwrap().to_owned()
}

#[test]
fn range_is_continued_only_for_the_same_bytes() {
    let mut world = World::new();
    let tag = tag(&mut world);
    let with = |world: &mut World, tag: &str| {
        world.get("/sda.raw", &format!("Range: bytes=1-2\r\nIf-Range: {tag}\r\n")).code
    };
    assert_eq!(with(&mut world, &tag), 206);
    for other in [&format!("W/{tag}"), "\"other\"", "Mon, 30 Nov 2026 00:00:00 GMT", "*", ""] {
        assert_eq!(with(&mut world, other), 200, "{other}");
    }
    // Without a range the field has no meaning.
    assert_eq!(world.get("/sda.raw", "If-Range: \"other\"\r\n").code, 200);
    world.end_all();
}

/// The disk was unplugged, may have been changed elsewhere, and came back.
#[test]
fn disk_that_was_away_is_not_continued() {
    let mut world = World::new();
    let before = tag(&mut world);
    world.catalogue.withdraw(&DISK.into()).unwrap();
    assert_eq!(world.get("/sda.raw", "").code, 404);
    world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
    assert_ne!(tag(&mut world), before);
    let fields = format!("Range: bytes=1-2\r\nIf-Range: {before}\r\n");
    assert_eq!(world.get("/sda.raw", &fields).code, 200);
    world.end_all();
}

#[test]
fn disk_that_may_be_written_has_no_entity_tag() {
    let mut world = World::bare();
    world.catalogue.publish(disk(Access::Writable, 512, 1 << 20));
    let response = world.get("/sda.raw", "Range: bytes=1-2\r\n");
    assert_eq!((response.code, response.field("ETag")), (206, None));
    assert_eq!(world.get("/sda.raw", "Range: bytes=1-2\r\nIf-Range: \"\"\r\n").code, 200);
    assert_eq!(world.get("/sda.raw", "If-Match: \"a\"\r\n").code, 412);
    world.end_all();
}

/// What hosts write to overlays of their own is not seen here.
#[test]
fn disk_with_private_overlays_does_not_change() {
    for is_private in [true, false] {
        let mut world = World::bare();
        world.catalogue.publish(overlaid(is_private));
        let response = world.get("/sda.raw", "Range: bytes=1-2\r\n");
        assert_eq!((response.code, response.field("ETag").is_some()), (206, is_private));
        let page = String::from_utf8(world.get("/", "").content).unwrap();
        assert_eq!(!page.contains("Other machines may write"), is_private, "{page}");
        let list = String::from_utf8(world.get("/disks.json", "").content).unwrap();
        assert_eq!(list.contains("\"writable\":false"), is_private, "{list}");
        world.end_all();
    }
}

#[test]
fn preconditions_are_evaluated_before_ranges() {
    let mut world = World::new();
    let tag = tag(&mut world);
    let range = "Range: bytes=1-2\r\n";
    for (fields, code) in [
        (format!("If-Match: {tag}\r\n"), 206),
        ("If-Match: *\r\n".to_owned(), 206),
        (format!("If-Match: W/{tag}\r\n"), 412),
        (format!("If-Match: \"a\"\r\nIf-Match: {tag}\r\n"), 206),
        (format!("If-None-Match: {tag}\r\n"), 304),
        (format!("If-None-Match: \"a\", W/{tag}\r\n"), 304),
        ("If-None-Match: \"a\"\r\n".to_owned(), 206),
    ] {
        let response = world.get("/sda.raw", &format!("{range}{fields}"));
        assert_eq!(response.code, code, "{fields}");
        assert_eq!(response.field("ETag").is_some(), code != 412);
    }
    world.end_all();
}
