//! Parses `HOST:PORT` as users and files give it, with the zone of a link-local address.

use std::fmt;

/// A host name or an IP address, with an optional zone and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The host name or IP address, without brackets and zone.
    pub host: String,
    /// The interface after `%`.
    pub zone: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Whether the host was in brackets.
    pub in_brackets: bool,
}

/// Why a text is not `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPortError {
    /// A bracket is not closed.
    Unclosed,
    /// Something other than a port follows the bracket.
    AfterBracket,
    /// The host or the zone is empty, or has characters that no name has.
    Host,
    /// The port is not a number up to 65535.
    Port,
}

impl HostPort {
    /// Parses `HOST`, `HOST:PORT`, `[HOST]` or `[HOST]:PORT`, where `HOST` may end in `%ZONE`. An
    /// IPv6 address without brackets has no port.
    ///
    /// # Errors
    /// Fails if the text has none of these forms.
    pub fn parse(text: &str) -> Result<Self, HostPortError> {
        let in_brackets = text.starts_with('[');
        let (host, port) = split_port(text)?;
        let (host, zone) = match host.split_once('%') {
            Some((host, zone)) => (host, Some(zone)),
            None => (host, None),
        };
        if !is_name(host) || !zone.is_none_or(is_name) {
            return Err(HostPortError::Host);
        }
        let port = port.map(parse_port).transpose()?;
        let (host, zone) = (host.to_owned(), zone.map(str::to_owned));
        Ok(Self { host, zone, port, in_brackets })
    }
}

/// Splits off the brackets and the port.
fn split_port(text: &str) -> Result<(&str, Option<&str>), HostPortError> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(HostPortError::Unclosed)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(HostPortError::AfterBracket),
        };
    }
    Ok(match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"%/\\\"<>".contains(c))
}

fn parse_port(text: &str) -> Result<u16, HostPortError> {
    text.parse().map_err(|_| HostPortError::Port)
}

impl fmt::Display for HostPortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclosed => "the bracket is not closed",
            Self::AfterBracket => "only a port may follow the bracket, as in [::1]:4420",
            Self::Host => "it names no machine, as 192.168.1.5 or [fe80::1%eth0] would",
            Self::Port => "a port is a number from 1 to 65535",
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_form_of_host_and_port_is_parsed() {
        for (text, host, zone, port) in [
            ("name", "name", None, None),
            ("name:1", "name", None, Some(1)),
            ("10.0.0.1%eth0:0", "10.0.0.1", Some("eth0"), Some(0)),
            ("::1", "::1", None, None),
            ("fe80::1%eth0", "fe80::1", Some("eth0"), None),
            ("[fe80::1%eth0]", "fe80::1", Some("eth0"), None),
            ("[fe80::1%eth0]:65535", "fe80::1", Some("eth0"), Some(65535)),
        ] {
            let parsed = HostPort::parse(text).unwrap();
            let (found_zone, found_port) = (parsed.zone.as_deref(), parsed.port);
            assert_eq!(
                (parsed.host.as_str(), found_zone, found_port),
                (host, zone, port),
                "{text}"
            );
            assert_eq!(parsed.in_brackets, text.starts_with('['), "{text}");
        }
    }

    #[test]
    fn text_of_another_form_is_an_error() {
        for (text, error) in [
            ("", HostPortError::Host),
            (":1", HostPortError::Host),
            ("%eth0", HostPortError::Host),
            ("fe80::1%", HostPortError::Host),
            ("a%b%c", HostPortError::Host),
            ("a b", HostPortError::Host),
            ("a/b", HostPortError::Host),
            ("[]", HostPortError::Host),
            ("[::1", HostPortError::Unclosed),
            ("[::1]1", HostPortError::AfterBracket),
            ("host:", HostPortError::Port),
            ("[::1]:", HostPortError::Port),
            ("host:65536", HostPortError::Port),
        ] {
            assert_eq!(HostPort::parse(text), Err(error), "{text}");
        }
    }
}
