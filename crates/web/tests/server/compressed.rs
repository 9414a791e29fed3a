//! Disks that are compressed while they are sent.

use export::{Access, Fault, Reason};

use crate::world::{SIZE, World, disk, get};

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
    world.finish(id, 0, Err(Fault::Io));
    world.run();
    let bytes = world.received(id);
    assert!(split(&bytes).0.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(unchunked(split(&bytes).1), None);
    world.finish_all(id);
    world.run();
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
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

/// An encoder takes memory, so there are not many at a time.
#[test]
fn compressed_downloads_are_bounded() {
    let mut world = World::bare();
    world.catalogue.publish(disk(Access::ReadOnly, 512, 2 << 20));
    let ids: Vec<_> = (0..17)
        .map(|_| {
            let id = world.open();
            world.conn(id).hold = true;
            world.send(id, get("/sda.raw.zst", "").as_bytes());
            id
        })
        .collect();
    let last = world.received(ids[16]);
    assert!(last.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&last));
    world.disconnect(ids[0]);
    world.conn(ids[0]).hold = false;
    world.run();
    world.send(ids[16], get("/sda.raw.zst", "").as_bytes());
    assert!(!world.jobs(ids[16]).is_empty());
    world.end_all();
}
