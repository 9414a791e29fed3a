//! Disks that are compressed while they are sent.

use export::{Access, Auth, Peer, Reason};

use crate::world::{SIZE, World, disk, get, secure};

/// Returns the content of the chunks that have arrived, the last one perhaps in part.
fn arrived(mut bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = bytes.windows(2).position(|at| at == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let rest = &bytes[end + 2..];
        content.extend(&rest[..len.min(rest.len())]);
        bytes = rest.get(len + 2..).unwrap_or_default();
    }
    content
}

/// Parses chunks (RFC 9112 §7.1). Returns their content and what follows them; `None` if they are not
/// complete.
fn unchunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut content = Vec::new();
    loop {
        let end = bytes.windows(2).position(|at| at == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let (chunk, rest) = bytes[end + 2..].split_at_checked(len)?;
        bytes = rest.strip_prefix(b"\r\n")?;
        if len == 0 {
            return Some((content, bytes));
        }
        content.extend(chunk);
    }
}

fn split(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end..])
}

#[test]
fn whole_disk_is_compressed_in_chunks() {
    for random in [false, true] {
        let mut world = World::new();
        if random {
            let mut state = 1_u64;
            for byte in &mut world.disk {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
        }
        let disk = world.disk[..SIZE].to_vec();
        let id = world.open();
        let two = [get("/sda.raw.zst", "Range: bytes=1-2\r\n"), get("/disks.json", "")].concat();
        let bytes = world.exchange(id, two.as_bytes());
        let (head, rest) = split(&bytes);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert!(head.contains("filename=\"sda.raw.zst\"") && !head.contains("Content-Length"));
        let (content, rest) = unchunked(rest).unwrap();
        assert!(zstd::stream::decode_all(&content[..]).unwrap() == disk);
        let pieces = SIZE.div_ceil(128 << 10);
        assert!(content.len() < if random { SIZE + 16 * pieces } else { SIZE / 10 });
        let announced = zstd::zstd_safe::get_frame_content_size(&content).ok();
        assert_eq!(announced, Some(Some(SIZE as u64)), "the frame has the length of the disk");
        assert!(rest.starts_with(b"HTTP/1.1 200 OK"), "the next response follows");
        world.end_all();
    }
}

#[test]
fn cut_response_has_no_end() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).hold = true;
    world.send(id, get("/sda.raw.zst", "").as_bytes());
    world.finish(id, 0, Ok(()));
    world.unreadable.push(128 << 10..129 << 10);
    world.finish_all(id);
    let bytes = world.received(id);
    assert!(split(&bytes).0.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(unchunked(split(&bytes).1), None);
    let content = arrived(split(&bytes).1);
    let mut disk = Vec::new();
    let decoded = zstd::stream::copy_decode(&content[..], &mut disk);
    assert!(decoded.is_err(), "a decoder learns that it is incomplete");
    assert!(disk == world.disk[..128 << 10]);
    world.finish_all(id);
    world.run();
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}

/// Wherever the network cuts it, decoders do not take it for the disk.
#[test]
fn no_start_of_a_compressed_disk_is_complete() {
    let mut world = World::new();
    world.disk.fill(0);
    let id = world.open();
    let bytes = world.exchange(id, get("/sda.raw.zst", "").as_bytes());
    let content = unchunked(split(&bytes).1).unwrap().0;
    assert!(content.len() < 1000, "{}", content.len());
    for len in 1..content.len() {
        assert!(zstd::stream::decode_all(&content[..len]).is_err(), "{len}");
    }
    world.end_all();
}

#[test]
fn compressed_disk_without_bytes_is_sent() {
    let mut world = World::bare();
    world.catalogue.publish(disk(Access::ReadOnly, 512, 0));
    let id = world.open();
    let bytes = world.exchange(id, get("/sda.raw.zst", "").as_bytes());
    assert!(split(&bytes).0.starts_with("HTTP/1.1 200 OK"));
    let content = unchunked(split(&bytes).1).unwrap().0;
    assert_eq!(zstd::stream::decode_all(&content[..]).unwrap(), b"");
    world.end_all();
}

#[test]
fn old_clients_get_no_chunks() {
    let mut world = World::new();
    let id = world.open();
    let bytes = world.exchange(id, b"GET /sda.raw.zst HTTP/1.0\r\n\r\n");
    assert!(split(&bytes).0.starts_with("HTTP/1.1 505 "));
    assert!(world.conn(id).closed.is_some());
    let head = world.open();
    let bytes = world.exchange(head, get("/sda.raw.zst", "").replacen("GET", "HEAD", 1).as_bytes());
    assert_eq!(split(&bytes).1, b"");
    world.end_all();
}

/// An encoder takes memory, so there are not many at a time, and a host has as many as are left.
#[test]
fn compressed_downloads_are_bounded_and_shared() {
    let mut world = World::bare();
    world.catalogue.publish(disk(Access::ReadOnly, 512, 2 << 20));
    let mut from = |host: u8| {
        let open = Peer { auth: Auth::None, ..secure(&format!("10.0.0.{host}:1024")) };
        let id = world.open_as(open);
        world.conn(id).hold = true;
        let request = get("/sda.raw.zst", "").replace("localhost:8080", "10.0.0.1:8443");
        world.send(id, request.as_bytes());
        match world.jobs(id).is_empty() {
            true => Err(String::from_utf8(world.received(id)).unwrap()),
            false => Ok(id),
        }
    };
    let first: Vec<_> = (0..8).map(|_| from(2).unwrap()).collect();
    let refused = from(2).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("Retry-After: 60\r\n"));
    assert!((0..4).all(|_| from(3).is_ok()));
    assert!(from(3).is_err() && from(4).is_ok());
    world.disconnect(first[0]);
    world.conn(first[0]).hold = false;
    world.run();
    world.end_all();
}
