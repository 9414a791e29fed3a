//! The text of the QR code: where the target is, and the long code. It knows no picture.

use std::fmt;

use crate::code::{BadCode, Code, Kind};

/// What the text begins with. All in capitals, digits and `/:.`: a QR code packs these at five and a half bits a
/// letter, so that one address fits version 3, which with the code in large digits fits a console of 25 rows.
const SCHEME: &str = "STORAGETM:PAIR/";
/// Addresses at most.
const MOST: usize = 8;
/// Bytes of an address at most.
const ADDRESS: usize = 100;

/// An invitation to pair, as a QR code carries it: `STORAGETM:PAIR/CODE/HOST:PORT/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Where the target is reached, `HOST:PORT` each, the best first.
    pub at: Vec<String>,
    /// The long code.
    pub code: Code,
}

impl fmt::Display for Invite {
    /// Shows the code: only for the screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.code.text())?;
        let told = self.at.iter().map(|at| without_interface(at)).filter(|at| is_address(at));
        told.take(MOST).try_for_each(|at| write!(f, "/{}", at.to_ascii_uppercase()))
    }
}

impl Invite {
    /// What a person has scanned, or typed off a scanner, in capitals or not. What it does not know in it is left out.
    ///
    /// # Errors
    /// It is no invitation, or one with no code in it.
    pub fn parse(text: &str) -> Result<Self, BadCode> {
        let text = text.trim();
        let is_ours =
            text.get(..SCHEME.len()).is_some_and(|head| head.eq_ignore_ascii_case(SCHEME));
        let rest = text.get(SCHEME.len()..).filter(|_| is_ours).ok_or(BadCode)?;
        let mut fields = rest.split('/');
        let code = Code::parse(fields.next().ok_or(BadCode)?)?;
        if code.kind() != Kind::Long {
            return Err(BadCode);
        }
        let at = fields.filter(|at| is_address(at)).take(MOST);
        Ok(Self { at: at.map(str::to_ascii_lowercase).collect(), code })
    }
}

/// An address without the name of this machine's interface, which says nothing on another.
fn without_interface(address: &str) -> String {
    match (address.split_once('%'), address.rsplit_once(']')) {
        (Some((before, _)), Some((_, after))) => format!("{before}]{after}"),
        _ => address.to_owned(),
    }
}

/// Whether it looks like an address with a port, and has nothing in it that means something else.
fn is_address(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:[]-".contains(c);
    text.contains(':') && text.len() <= ADDRESS && text.chars().all(plain)
}

#[cfg(test)]
mod test {
    use super::*;

    fn invite(at: &[&str]) -> Invite {
        let at = at.iter().map(|at| (*at).to_owned()).collect();
        Invite { at, code: Code::long(*b"0123456789abcdef") }
    }

    #[test]
    fn what_is_shown_is_what_is_read() {
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
    fn a_hostile_picture_gives_no_address_that_is_more_than_one() {
        let text = invite(&["a b:1", "$(reboot):1", "host", "h:1/x:1\n", "good:1"]).to_string();
        assert_eq!(Invite::parse(&text).unwrap().at, ["good:1"]);
        let many: Vec<String> = (0..20).map(|n| format!("h{n}:1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(Invite::parse(&invite(&many).to_string()).unwrap().at.len(), MOST);
        for wrong in [
            "",
            "STORAGETM:PAIR/",
            "STORAGETM:PAIR/12345678",
            "STORAGETM:PAIR//h:1",
            "http://x/GAYTEMZUGU3DOOBZMFRGGZDFMY",
            "störagetm:pair/GAYTEMZUGU3DOOBZMFRGGZDFMY",
        ] {
            assert_eq!(Invite::parse(wrong), Err(BadCode), "{wrong}");
        }
    }
}
