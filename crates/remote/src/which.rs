//! Which of the machines that have let this one in is at an address. Keys belong to machines, and a machine has many addresses:
//! it is the one whose key is accepted there.

use std::fmt::Display;

use super::ask::{Asking, Refusal};
use super::who::Who;
use crate::place::Place;
use keys::target::Target;
use linux::tree::Tree;

/// Keys that are tried at one address, at most.
const TRIES: usize = 16;

/// How a machine answers to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has the same one.
    Accepted,
    /// It has not, or speaks no TLS.
    Rejected,
    /// It was not asked: why, as a sentence.
    Unreachable(String),
}

/// What is known of a machine at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which<'a> {
    /// It has let this one in.
    Known(&'a Target),
    /// No machine has let this one in, or it is this machine itself: the connection may be in the clear.
    Clear,
    /// It accepts no key of this machine.
    Stranger,
    /// It cannot be reached.
    Unreachable(String),
}

/// Finds which machine is at `place`. Keys of those that were met there before are tried first; if there is but one machine,
/// and it was met there, it is taken for that one without a connection.
pub fn which<'a>(
    place: &Place,
    known: &'a [Target],
    accepts: impl Fn(&Target) -> Answer,
) -> Which<'a> {
    if known.is_empty() {
        return Which::Clear;
    }
    let (candidates, here) = candidates(known, std::slice::from_ref(place));
    if here == 0 && place.is_loopback() {
        return Which::Clear;
    }
    if let ([only], 1) = (candidates.as_slice(), here) {
        return Which::Known(only);
    }
    for target in candidates {
        match accepts(target) {
            Answer::Accepted => return Which::Known(target),
            Answer::Rejected => {}
            Answer::Unreachable(why) => return Which::Unreachable(why),
        }
    }
    Which::Stranger
}

/// The machines of which the one at these places may be one, and how many of them were met there: those come first.
pub fn candidates<'a>(known: &'a [Target], places: &[Place]) -> (Vec<&'a Target>, usize) {
    let mut called: Vec<String> = places.iter().map(Place::host).collect();
    if !known.is_empty() {
        let resolved = places.iter().filter_map(|place| place.addresses().ok()).flatten();
        called.extend(resolved.map(|address| address.ip().to_string()));
    }
    let is_here = |target: &&Target| called.iter().any(|name| target.is_at(name));
    let (mut all, rest): (Vec<_>, Vec<_>) = known.iter().partition(is_here);
    let here = all.len();
    all.extend(rest);
    all.truncate(TRIES);
    (all, here)
}

/// Tries a key with the NVMe/TCP target at that place, as the host of that name, or of the one under which it was let in.
pub fn accepts(tree: &Tree, place: &Place, target: &Target, host: Option<&str>) -> Answer {
    let who = Who::find(tree, Some(host.unwrap_or(&target.host)));
    let asking = Asking { who: &who, key: Some(&target.tls), proof: None };
    match asking.try_key(place) {
        Ok(()) => Answer::Accepted,
        Err(Refusal::Unreachable(why)) => Answer::Unreachable(why),
        Err(_) => Answer::Rejected,
    }
}

/// Why there is no connection to a machine that accepts no key.
pub fn stranger(place: impl Display) -> String {
    format!(
        "{place} accepts none of the keys that this machine has, and with a stranger it does not speak in the clear: let it in \
         there (storagetm pair {place}), or add --insecure if that machine needs no key"
    )
}

#[cfg(test)]
mod test {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(text, None).unwrap()
    }

    fn rejects(_: &Target) -> Answer {
        Answer::Rejected
    }

    #[test]
    fn x60_known_machine_is_found_at_any_address_by_its_key() {
        let known = [Target::sample("desk", "192.0.2.1"), Target::sample("far", "192.0.2.2")];
        let is_far = |target: &Target| match target.name.as_str() {
            "far" => Answer::Accepted,
            _ => Answer::Rejected,
        };
        assert_eq!(which(&place("192.0.2.9"), &known, is_far), Which::Known(&known[1]));
        // Another machine may have the address by now.
        assert_eq!(which(&place("192.0.2.1"), &known, is_far), Which::Known(&known[1]));
        assert_eq!(which(&place("192.0.2.9"), &known[..1], is_far), Which::Stranger);
        let gone = |_: &Target| Answer::Unreachable("no route".to_owned());
        assert!(matches!(which(&place("192.0.2.9"), &known, gone), Which::Unreachable(_)));
    }

    #[test]
    fn only_machine_that_was_met_at_an_address_is_taken_for_it() {
        let known = [Target::sample("desk", "192.0.2.1")];
        assert_eq!(which(&place("192.0.2.1"), &known, rejects), Which::Known(&known[0]));
    }

    #[test]
    fn without_keys_and_on_loopback_connections_are_clear() {
        let known = [Target::sample("desk", "192.0.2.1")];
        assert_eq!(which(&place("192.0.2.9"), &[], rejects), Which::Clear);
        assert_eq!(which(&place("127.0.0.1"), &known, rejects), Which::Clear);
        assert_eq!(which(&place("[::1]:4420"), &known, rejects), Which::Clear);
        let local = [Target::sample("local", "127.0.0.1"), Target::sample("desk", "192.0.2.1")];
        assert_eq!(which(&place("127.0.0.1"), &local, rejects), Which::Stranger);
    }

    #[test]
    fn key_of_the_machine_met_there_is_tried_first() {
        let known: Vec<Target> = (0..20u8)
            .map(|number| format!("192.0.2.{number}"))
            .map(|address| Target::sample(&address, &address))
            .collect();
        let (tried, here) = candidates(&known, &[place("192.0.2.19"), place("192.0.2.7")]);
        assert_eq!((tried.len(), here), (TRIES, 2));
        assert_eq!(
            (tried[0].address.as_str(), tried[1].address.as_str()),
            ("192.0.2.7", "192.0.2.19")
        );
    }
}
