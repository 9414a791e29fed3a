//! Selects the key for an address among those of the paired targets. A target may have many
//! addresses and change them, so it is identified by the key that it accepts.

use std::fmt::Display;

use super::host_identity::HostIdentity;
use super::query::{Initiator, QueryError};
use crate::address::TargetAddr;
use keys::target::Target;
use linux::tree::Tree;

/// Most keys tried at one address.
const MAX_KEYS: usize = 16;

/// Result of offering a key to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyCheck {
    /// The target has the same key.
    Accepted,
    /// The target has another key, or does not support TLS.
    Rejected,
    /// The key was not offered: the reason as a clause.
    Unreachable(String),
}

/// Which paired target is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeySelection<'a> {
    /// The paired target whose key is accepted there.
    Known(&'a Target),
    /// No target is paired, or the address is this machine: plaintext is allowed.
    Plaintext,
    /// The target accepts none of this machine's keys.
    NoKeyAccepted {
        /// Whether a target was paired at this address.
        paired_here: bool,
    },
    /// No connection: the reason as a clause.
    Unreachable(String),
}

/// Returns the paired target at `addr`, whose key to use; `None` for a connection in plaintext, or
/// with `another_key` in place of the one from pairing.
///
/// # Errors
/// Fails if the target accepts none of the keys and plaintext is not allowed, or if it cannot be
/// reached. `insecure` allows plaintext, but not where a target was paired: anybody on the path can
/// reset a handshake.
pub fn target_at<'a>(
    addr: &TargetAddr,
    known: &'a [Target],
    another_key: bool,
    insecure: bool,
    check: impl Fn(&Target) -> KeyCheck,
) -> Result<Option<&'a Target>, QueryError> {
    if another_key {
        let (all, here) = candidates(known, std::slice::from_ref(addr));
        return Ok(all.into_iter().take(here.min(1)).next());
    }
    match select_key(addr, known, check) {
        KeySelection::Known(target) => Ok(Some(target)),
        KeySelection::Plaintext => Ok(None),
        KeySelection::NoKeyAccepted { paired_here: false } if insecure => Ok(None),
        KeySelection::NoKeyAccepted { .. } => Err(QueryError::NoKeyAccepted),
        KeySelection::Unreachable(reason) => Err(QueryError::Unreachable(reason)),
    }
}

/// Returns whether a protocol without encryption may be used at `addr`: as [`target_at`] would allow
/// plaintext to a target that accepts none of the keys.
pub(crate) fn allows_plaintext(addr: &TargetAddr, known: &[Target], insecure: bool) -> bool {
    match select_key(addr, known, |_| KeyCheck::Rejected) {
        KeySelection::Plaintext => true,
        KeySelection::NoKeyAccepted { paired_here: false } => insecure,
        _ => false,
    }
}

/// Returns which of the `known` targets is at `addr`. Offers the keys of targets that were paired
/// at this address first. If only one target is known and it was paired there, returns it without a
/// connection.
fn select_key<'a>(
    addr: &TargetAddr,
    known: &'a [Target],
    check: impl Fn(&Target) -> KeyCheck,
) -> KeySelection<'a> {
    if known.is_empty() {
        return KeySelection::Plaintext;
    }
    let (candidates, here) = candidates(known, std::slice::from_ref(addr));
    if here == 0 && addr.is_loopback() {
        return KeySelection::Plaintext;
    }
    if let ([only], 1) = (candidates.as_slice(), here) {
        return KeySelection::Known(only);
    }
    for target in candidates {
        match check(target) {
            KeyCheck::Accepted => return KeySelection::Known(target),
            KeyCheck::Rejected => {}
            KeyCheck::Unreachable(reason) => return KeySelection::Unreachable(reason),
        }
    }
    KeySelection::NoKeyAccepted { paired_here: here > 0 }
}

/// Returns the targets whose keys to try at these addresses, and how many of them were paired at
/// one of them; those come first.
pub fn candidates<'a>(known: &'a [Target], addrs: &[TargetAddr]) -> (Vec<&'a Target>, usize) {
    let mut names: Vec<String> = addrs.iter().map(TargetAddr::host).collect();
    if !known.is_empty() {
        let resolved = addrs.iter().filter_map(|addr| addr.addresses().ok()).flatten();
        names.extend(resolved.map(|address| address.ip().to_string()));
    }
    let is_here = |target: &&Target| names.iter().any(|name| target.matches(name));
    let (mut all, rest): (Vec<_>, Vec<_>) = known.iter().partition(is_here);
    let here = all.len();
    all.extend(rest);
    all.truncate(MAX_KEYS);
    (all, here)
}

/// Offers the key of `target` to the NVMe/TCP target at `addr`. Connects as `host`, by default
/// under the NQN that was used when pairing.
pub fn check_key(tree: &Tree, addr: &TargetAddr, target: &Target, host: Option<&str>) -> KeyCheck {
    let identity = HostIdentity::find(tree, Some(host.unwrap_or(&target.host)));
    let initiator = Initiator { host: &identity, key: Some(&target.tls), chap: None };
    match initiator.check_key(addr) {
        Ok(()) => KeyCheck::Accepted,
        Err(QueryError::Unreachable(reason)) => KeyCheck::Unreachable(reason),
        Err(_) => KeyCheck::Rejected,
    }
}

/// The error for a target that accepts none of the keys.
pub fn no_key_accepted(addr: impl Display) -> String {
    format!(
        "{addr} accepts none of the keys of this machine, and an unknown target is not connected to in plaintext: pair with \
         it (storagetm pair {addr}), or add --insecure if that machine needs no key and was never paired at this address"
    )
}

#[cfg(test)]
mod test {
    use super::*;

    fn addr(text: &str) -> TargetAddr {
        TargetAddr::parse(text, None).unwrap()
    }

    fn rejects(_: &Target) -> KeyCheck {
        KeyCheck::Rejected
    }

    #[test]
    fn x60_target_is_found_at_any_address_by_its_key() {
        let known = [Target::sample("desk", "192.0.2.1"), Target::sample("far", "192.0.2.2")];
        let is_far = |target: &Target| match target.name.as_str() {
            "far" => KeyCheck::Accepted,
            _ => KeyCheck::Rejected,
        };
        assert_eq!(select_key(&addr("192.0.2.9"), &known, is_far), KeySelection::Known(&known[1]));
        // The address may belong to another target by now.
        assert_eq!(select_key(&addr("192.0.2.1"), &known, is_far), KeySelection::Known(&known[1]));
        assert_eq!(
            select_key(&addr("192.0.2.9"), &known[..1], is_far),
            KeySelection::NoKeyAccepted { paired_here: false }
        );
        let gone = |_: &Target| KeyCheck::Unreachable("no route".to_owned());
        assert!(matches!(
            select_key(&addr("192.0.2.9"), &known, gone),
            KeySelection::Unreachable(_)
        ));
    }

    #[test]
    fn only_target_paired_at_address_needs_no_check() {
        let known = [Target::sample("desk", "192.0.2.1")];
        assert_eq!(select_key(&addr("192.0.2.1"), &known, rejects), KeySelection::Known(&known[0]));
    }

    #[test]
    fn without_keys_and_on_loopback_plaintext_is_used() {
        let known = [Target::sample("desk", "192.0.2.1")];
        assert_eq!(select_key(&addr("192.0.2.9"), &[], rejects), KeySelection::Plaintext);
        assert_eq!(select_key(&addr("127.0.0.1"), &known, rejects), KeySelection::Plaintext);
        assert_eq!(select_key(&addr("[::1]:4420"), &known, rejects), KeySelection::Plaintext);
        let local = [Target::sample("local", "127.0.0.1"), Target::sample("desk", "192.0.2.1")];
        assert_eq!(
            select_key(&addr("127.0.0.1"), &local, rejects),
            KeySelection::NoKeyAccepted { paired_here: true }
        );
    }

    #[test]
    fn insecure_is_ignored_where_a_target_was_paired() {
        let known = [Target::sample("desk", "192.0.2.1"), Target::sample("far", "192.0.2.2")];
        let at = |address| target_at(&addr(address), &known, false, true, rejects);
        assert!(matches!(at("192.0.2.9"), Ok(None)));
        assert!(matches!(at("192.0.2.1"), Err(QueryError::NoKeyAccepted)));
    }

    #[test]
    fn protocol_without_encryption_is_for_unpaired_addresses() {
        let known = [Target::sample("desk", "192.0.2.1")];
        let allows = |address, known, insecure| allows_plaintext(&addr(address), known, insecure);
        assert!(allows("192.0.2.9", &[], false));
        assert!(allows("127.0.0.1", &known, false));
        assert!(!allows("192.0.2.9", &known, false));
        assert!(allows("192.0.2.9", &known, true));
        assert!(!allows("192.0.2.1", &known, true));
    }

    #[test]
    fn key_of_target_paired_at_address_is_first() {
        let known: Vec<Target> = (0..20u8)
            .map(|number| format!("192.0.2.{number}"))
            .map(|address| Target::sample(&address, &address))
            .collect();
        let (tried, here) = candidates(&known, &[addr("192.0.2.19"), addr("192.0.2.7")]);
        assert_eq!((tried.len(), here), (MAX_KEYS, 2));
        assert_eq!(
            (tried[0].address.as_str(), tried[1].address.as_str()),
            ("192.0.2.7", "192.0.2.19")
        );
    }
}
