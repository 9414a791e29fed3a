//! The text of the QR code: the addresses of the target, and the long code.

use std::fmt;

use crate::code::{Code, CodeKind, InvalidCode};

/// Prefix. Upper case, digits and `/:.` only: QR codes encode these in alphanumeric mode at 5.5
/// bits per character, so that one address fits version 3, which together with the code in large
/// digits fits a console of 25 rows.
const SCHEME: &str = "STORAGETM:PAIR/";
/// Maximum number of addresses.
const MAX_ADDRESSES: usize = 8;
/// Maximum length of an address in bytes.
const MAX_ADDRESS_LEN: usize = 100;

/// An invitation to pair, as encoded in the QR code: `STORAGETM:PAIR/CODE/HOST:PORT/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Addresses of the target as `HOST:PORT`, preferred one first.
    pub at: Vec<String>,
    /// The long code.
    pub code: Code,
}

impl fmt::Display for Invite {
    /// Contains the code: must only be shown on the screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.code.text())?;
        let told = self.at.iter().map(|at| without_interface(at)).filter(|at| is_address(at));
        told.take(MAX_ADDRESSES).try_for_each(|at| write!(f, "/{}", at.to_ascii_uppercase()))
    }
}

impl Invite {
    /// Parses a scanned or typed invitation, ignoring case. Unknown fields are ignored.
    ///
    /// # Errors
    /// Fails if the text is not an invitation, or contains no long code.
    pub fn parse(text: &str) -> Result<Self, InvalidCode> {
        let text = text.trim();
        let is_ours =
            text.get(..SCHEME.len()).is_some_and(|head| head.eq_ignore_ascii_case(SCHEME));
        let rest = text.get(SCHEME.len()..).filter(|_| is_ours).ok_or(InvalidCode)?;
        let mut fields = rest.split('/');
        let code = Code::parse(fields.next().ok_or(InvalidCode)?)?;
        if code.kind() != CodeKind::Long {
            return Err(InvalidCode);
        }
        let at = fields.filter(|at| is_address(at)).take(MAX_ADDRESSES);
        Ok(Self { at: at.map(str::to_ascii_lowercase).collect(), code })
    }
}

/// Removes the zone from an address: it is only valid on this machine.
fn without_interface(address: &str) -> String {
    match (address.split_once('%'), address.rsplit_once(']')) {
        (Some((before, _)), Some((_, messages))) => format!("{before}]{messages}"),
        _ => address.to_owned(),
    }
}

/// Returns whether `text` may be an address with port, without any other special characters.
fn is_address(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:[]-".contains(c);
    text.contains(':') && text.len() <= MAX_ADDRESS_LEN && text.chars().all(plain)
}

#[cfg(test)]
mod test {
    use super::*;

    fn invite(at: &[&str]) -> Invite {
        let at = at.iter().map(|at| (*at).to_owned()).collect();
        Invite { at, code: Code::long(*b"0123456789abcdef") }
    }

    #[test]
    fn invitation_round_trips() {
        let shown = invite(&["169.254.7.9:4420", "[fe80::1%eth0]:4420"]);
        let text = shown.to_string();
        assert_eq!(
            text,
            "STORAGETM:PAIR/GAYTEMZUGU3DOOBZMFRGGZDFMY/169.254.7.9:4420/[FE80::1]:4420"
        );
        let read = invite(&["169.254.7.9:4420", "[fe80::1]:4420"]);
        assert_eq!(Invite::parse(&text), Ok(read.clone()));
        assert_eq!(Invite::parse(&format!(" {}/new=thing\n", text.to_lowercase())), Ok(read));
        assert!(!format!("{:?}", invite(&[])).contains("GAYT"));
    }

    #[test]
    fn hostile_invitation_is_sanitized() {
        let text = invite(&["a b:1", "$(reboot):1", "host", "h:1/x:1\n", "good:1"]).to_string();
        assert_eq!(Invite::parse(&text).unwrap().at, ["good:1"]);
        let many: Vec<String> = (0..20).map(|n| format!("h{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(Invite::parse(&invite(&many).to_string()).unwrap().at.len(), MAX_ADDRESSES);
        for wrong in [
            "",
            "STORAGETM:PAIR/",
            "STORAGETM:PAIR/12345678",
            "STORAGETM:PAIR//h:1",
            "http://x/GAYTEMZUGU3DOOBZMFRGGZDFMY",
            "störagetm:pair/GAYTEMZUGU3DOOBZMFRGGZDFMY",
        ] {
            assert_eq!(Invite::parse(wrong), Err(InvalidCode), "{wrong}");
        }
    }
}
