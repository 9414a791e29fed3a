//! Names of keys and hosts: valid as file names and safe to print.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes.
const MAX_LEN: usize = 64;

/// Error message.
const RULE: &str = "a name has 1 to 64 letters, digits, dots, underscores and hyphens (ASCII), and begins with none of \
                    the last three";

/// The name of a key or a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a name of untrusted text: replaces other characters by hyphens; `host` if nothing is
    /// left.
    pub fn sanitized(text: &str) -> Self {
        let allowed = |c: char| if is_plain(c) { c } else { '-' };
        let name: String = text.chars().map(allowed).collect();
        let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let name: String = name.chars().take(MAX_LEN).collect();
        Self(if name.is_empty() { "host".to_owned() } else { name })
    }

    /// Makes a name of a host NQN or an iSCSI initiator name: the part after the last colon; for a
    /// UUID its first eight digits.
    pub fn from_id(id: &str) -> Self {
        let last = id.rsplit(':').next().unwrap_or(id);
        let is_uuid = id.starts_with("nqn.2014-08.org.nvmexpress:uuid:");
        match last.split('-').next().filter(|digits| is_uuid && digits.len() == 8) {
            Some(digits) => Self::sanitized(&format!("host-{digits}")),
            None => Self::sanitized(last),
        }
    }

    /// Returns whether it is `other`, or `other` with a number appended by [`Name::make_unique`].
    pub fn is_variant_of(&self, other: &Self) -> bool {
        let number = |rest: &str| rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok());
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || number(rest))
    }

    /// Appends a number if the name is taken.
    pub fn make_unique(self, is_taken: impl Fn(&Self) -> bool) -> Self {
        let max_stem = MAX_LEN.saturating_sub(8);
        let numbered = |number: u32| {
            let stem: String = self.0.chars().take(max_stem).collect();
            Self(format!("{stem}-{number}"))
        };
        if !is_taken(&self) {
            return self;
        }
        (2..u32::MAX).map(numbered).find(|name| !is_taken(name)).unwrap_or(self)
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins && text.len() <= MAX_LEN && text.chars().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RULE)
        }
    }
}

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// X53: a name contains no control characters and no path separator.
    #[test]
    fn x53_name_is_a_file_name_and_printable() {
        for right in ["laptop", "a", "my.laptop_2-b", "0", &"a".repeat(64)] {
            assert_eq!(right.parse::<Name>().unwrap().as_str(), right);
        }
        let long = "a".repeat(65);
        for wrong in
            ["", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a b", "a\n", "é", "a\u{1b}[2J", &long]
        {
            assert!(wrong.parse::<Name>().is_err(), "{wrong:?}");
            let made = Name::sanitized(wrong);
            assert_eq!(made.as_str().parse::<Name>().as_ref(), Ok(&made), "{wrong:?}");
        }
    }

    #[test]
    fn name_is_made_of_untrusted_text() {
        assert_eq!(Name::sanitized("Anna's laptop").as_str(), "Anna-s-laptop");
        assert_eq!(Name::sanitized("\u{1b}[31m").as_str(), "31m");
        assert_eq!(Name::sanitized("///").as_str(), "host");
        assert_eq!(Name::from_id("nqn.2014-08.org.nvmexpress:uuid:1-2").as_str(), "1-2");
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
        assert_eq!(Name::from_id(nqn).as_str(), "host-11111111");
        assert_eq!(Name::from_id("nqn.2024-01.test").as_str(), "nqn.2024-01.test");
    }

    #[test]
    fn taken_name_gets_a_number() {
        let taken = ["a", "a-2"];
        let name = Name::sanitized("a").make_unique(|name| taken.contains(&name.as_str()));
        assert_eq!(name.as_str(), "a-3");
        assert!(name.is_variant_of(&Name::sanitized("a")) && name.is_variant_of(&name));
        assert!(
            !name.is_variant_of(&Name::sanitized("b"))
                && !Name::sanitized("a-b").is_variant_of(&Name::sanitized("a"))
        );
        let long = Name::sanitized(&"a".repeat(64)).make_unique(|name| name.as_str().len() == 64);
        assert_eq!(long.as_str().len(), 58);
    }
}
