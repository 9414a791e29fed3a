//! Determines the Debian archive of this machine from apt's source lists.

use std::path::Path;

use anyhow::{Context, Result};

/// The archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// The main archive.
    pub(crate) main: String,
    /// The archive of security updates, if the machine uses one.
    pub(crate) security: Option<String>,
}

/// A source: an address and its suites.
#[derive(Debug)]
struct Source {
    address: String,
    suites: Vec<String>,
}

/// Returns the archives of this machine; `STORAGETM_VM_MIRROR` overrides the main archive.
pub(crate) fn of_this_machine() -> Result<Mirror> {
    if let Ok(main) = std::env::var("STORAGETM_VM_MIRROR") {
        return Ok(Mirror { main, security: None });
    }
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = field(&os_release, "VERSION_CODENAME=").filter(|_| is_debian(&os_release));
    let codename = codename.context(
        "this machine is no Debian: set STORAGETM_VM_MIRROR to the address of a Debian archive",
    )?;
    choose(&sources(Path::new("/etc/apt"))?, &codename)
        .context("apt's source lists name no Debian archive: set STORAGETM_VM_MIRROR to one")
}

fn is_debian(os_release: &str) -> bool {
    field(os_release, "ID=").as_deref() == Some("debian")
}

fn field(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.trim_matches('"').to_owned())
}

fn sources(apt: &Path) -> Result<Vec<Source>> {
    let mut found =
        one_line(&std::fs::read_to_string(apt.join("sources.list")).unwrap_or_default());
    for entry in apt.join("sources.list.d").read_dir().into_iter().flatten() {
        let path = entry?.path();
        let text = || std::fs::read_to_string(&path).unwrap_or_default();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => found.extend(one_line(&text())),
            Some("sources") => found.extend(stanzas(&text())),
            _ => {}
        }
    }
    Ok(found)
}

/// The old form: `deb [options] ADDRESS SUITE COMPONENT...`.
fn one_line(text: &str) -> Vec<Source> {
    let line = |line: &str| {
        let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
        if rest.starts_with('[') {
            rest = rest.split_once(']')?.1;
        }
        let mut words = rest.split_whitespace();
        let (address, suite) = (words.next()?, words.next()?);
        Some(Source { address: address.to_owned(), suites: vec![suite.to_owned()] })
    };
    text.lines().filter_map(line).collect()
}

/// The new form: paragraphs of `Key: value`.
fn stanzas(text: &str) -> Vec<Source> {
    let stanza = |text: &str| {
        let words = |key: &str| -> Vec<String> {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let address = words("URIs:").into_iter().next()?;
        words("Types:")
            .iter()
            .any(|kind| kind == "deb")
            .then(|| Source { address, suites: words("Suites:") })
    };
    text.split("\n\n").filter_map(stanza).collect()
}

fn choose(sources: &[Source], codename: &str) -> Option<Mirror> {
    let with = |suite: &str| {
        let source = sources.iter().find(|source| source.suites.iter().any(|it| it == suite))?;
        Some(source.address.trim_end_matches('/').to_owned())
    };
    Some(Mirror { main: with(codename)?, security: with(&format!("{codename}-security")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "Types: deb\n# http://snapshot.example/\nURIs: http://a.example/debian/\n\
        Suites: bookworm bookworm-updates\nComponents: main\n\n\
        Types: deb\nURIs: http://a.example/debian-security\nSuites: bookworm-security\n";
    const OLD: &str = "# deb http://no.example bookworm main\n\
        deb [signed-by=/k.gpg arch=amd64] http://b.example/debian bookworm main\n\
        deb http://tools.example/apt other main\n";

    #[test]
    fn both_forms_of_source_lists_are_read() {
        let mirror = choose(&stanzas(NEW), "bookworm").unwrap();
        assert_eq!(mirror.main, "http://a.example/debian");
        assert_eq!(mirror.security.as_deref(), Some("http://a.example/debian-security"));
        let mirror = choose(&one_line(OLD), "bookworm").unwrap();
        assert_eq!(mirror, Mirror { main: "http://b.example/debian".into(), security: None });
    }

    #[test]
    fn archive_of_another_distribution_is_not_used() {
        assert_eq!(choose(&one_line(OLD), "trixie"), None);
        assert!(!is_debian("ID=ubuntu\nVERSION_CODENAME=noble\n"));
        assert!(is_debian("NAME=\"Debian\"\nID=debian\n"));
    }
}
