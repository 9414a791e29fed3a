//! The `Host` field (RFC 9110 §7.2).
//!
//! A web page that a person opens can make the browser connect to this machine by a name of its own
//! domain that resolves to an address of this machine (DNS rebinding). The browser then lets the page
//! read the answers. So only names are accepted that nobody can register.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Returns whether a request for `host`, a name or address with or without a port, is answered at the
/// address `local`: for an IP address and for `localhost`; at other addresses than loopback also for a
/// name without a dot and for one of `.local` (RFC 6762 §3), which whoever can spoof it can reach
/// anyway. `None` if it is malformed.
pub(crate) fn is_own(host: &str, local: Option<IpAddr>) -> Option<bool> {
    let name = name(host)?;
    if name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok() {
        return Some(true);
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_loopback = local.is_none_or(|ip| ip.to_canonical().is_loopback());
    let is_local = !name.is_empty() && (!name.contains('.') || name.ends_with(".local"));
    Some(name == "localhost" || name.ends_with(".localhost") || (is_local && !is_loopback))
}

/// Returns the part before the port; an IPv6 address in its brackets. `None` if it is malformed.
fn name(host: &str) -> Option<&str> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(rest) => {
            let (inner, rest) = rest.split_once(']')?;
            let (ip, _zone) = inner.split_once('%').unwrap_or((inner, ""));
            ip.parse::<Ipv6Addr>().ok()?;
            (host.get(..host.len() - rest.len())?, rest)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = if rest.is_empty() { rest } else { rest.strip_prefix(':')? };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = name.starts_with('[') || name.chars().all(is_plain);
    (port.bytes().all(|byte| byte.is_ascii_digit()) && is_name).then_some(name)
}

#[cfg(test)]
mod test {
    use super::*;

    fn at(local: &str, host: &str) -> Option<bool> {
        is_own(host, Some(local.parse().unwrap()))
    }

    #[test]
    fn names_that_others_can_register_are_not_answered() {
        for host in
            ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil"]
        {
            assert_eq!(at("127.0.0.1", host), Some(false), "{host}");
            assert_eq!(at("10.0.0.5", host), Some(false), "{host}");
        }
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "localhost:8080",
            "LocalHost",
            "[::1]:1",
            "[fe80::1%25eth0]:8080",
        ] {
            assert_eq!(at("127.0.0.1", host), Some(true), "{host}");
            assert_eq!(at("::ffff:127.0.0.1", host), Some(true), "{host}");
        }
        for host in ["desk", "desk:8080", "desk.local.", "DESK.local:80"] {
            assert_eq!(at("10.0.0.5", host), Some(true), "{host}");
            assert_eq!(at("::ffff:127.0.0.1", host), Some(false), "{host}");
            assert_eq!(is_own(host, None), Some(false), "{host}");
        }
        assert_eq!(at("10.0.0.5", ""), Some(false));
    }

    #[test]
    fn malformed_hosts_are_found() {
        for host in [
            "a b",
            "a/b",
            "user@host",
            "[",
            "[:80",
            "[evil",
            "[::1",
            "[::1]x",
            "[evil]",
            "a:b",
            "a:1:2",
            "é",
        ] {
            assert_eq!(at("10.0.0.5", host), None, "{host}");
        }
    }
}
