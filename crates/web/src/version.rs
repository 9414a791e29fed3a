//! Entity tags and conditional requests (RFC 9110 §8.8.3, §13).

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use export::{Access, Export};

/// Numbers the exports, so that each has entity tags of its own.
///
/// A tag names the disk, its size, how often that has changed, this server and the export. It is
/// strong: it must differ whenever the bytes may. The same disk that is unplugged and comes back, or
/// that another process lends, may have been changed in between, so it gets another tag. A disk that
/// hosts may change has none.
#[derive(Debug)]
pub(crate) struct Versions {
    nonce: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// A weak reference keeps the address of its export from being used again.
    exports: Vec<(Weak<Export>, u64)>,
    last: u64,
}

impl Versions {
    pub(crate) fn new(nonce: u64) -> Self {
        Self { nonce, known: Mutex::default() }
    }

    /// Returns the entity tag of an export with this length in bytes, with its quotes.
    pub(crate) fn tag(&self, export: &Arc<Export>, bytes: u64) -> Option<String> {
        if may_change(export) {
            return None;
        }
        let mut tag = String::from("\"");
        for byte in export.identity.uuid {
            let _ = write!(tag, "{byte:02x}");
        }
        // A length that comes again has another number.
        let (resizes, number) = (export.resizes(), self.number(export));
        let _ = write!(tag, "-{bytes:x}-{resizes:x}-{:016x}-{number:x}\"", self.nonce);
        Some(tag)
    }

    fn number(&self, export: &Arc<Export>) -> u64 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &&(Weak<Export>, u64)| std::ptr::eq(one.0.as_ptr(), Arc::as_ptr(export));
        if let Some((_, number)) = known.exports.iter().find(is_it) {
            return *number;
        }
        known.exports.retain(|(other, _)| other.strong_count() != 0);
        known.last += 1;
        let number = known.last;
        known.exports.push((Arc::downgrade(export), number));
        number
    }
}

/// Returns whether hosts may change the bytes that are read here: not what each stores in an overlay of
/// its own.
pub(crate) fn may_change(export: &Export) -> bool {
    export.access == Access::Writable && !export.is_private()
}

/// Returns whether a list of entity tags, or `*`, contains `tag`. Tags marked as weak count if `weak`.
pub(crate) fn is_listed(list: &str, tag: Option<&str>, weak: bool) -> bool {
    let strip =
        |one: &str| if weak { one.strip_prefix("W/").unwrap_or(one) } else { one }.to_owned();
    list.trim() == "*" || list.split(',').any(|one| Some(strip(one.trim()).as_str()) == tag)
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Geometry, Identity};

    fn export(bytes: u64, access: Access) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export = Export::new("sda", "nqn", Identity::default(), geometry, bytes, disk);
        export.access = access;
        Arc::new(export)
    }

    fn tag(versions: &Versions, export: &Arc<Export>) -> Option<String> {
        versions.tag(export, export.bytes())
    }

    #[test]
    fn tag_differs_whenever_the_bytes_may() {
        let (one, versions) = (export(512, Access::ReadOnly), Versions::new(7));
        let first = tag(&versions, &one).unwrap();
        assert_eq!(tag(&versions, &one).unwrap(), first);
        // The same disk after it was withdrawn and lent again, or by another process.
        let again = export(512, Access::ReadOnly);
        assert_ne!(tag(&versions, &again).unwrap(), first);
        assert_eq!(tag(&versions, &one).unwrap(), first);
        assert_ne!(tag(&Versions::new(8), &one).unwrap(), first);
        one.resize(1024);
        assert_ne!(tag(&versions, &one).unwrap(), first);
        assert_eq!(tag(&versions, &export(512, Access::Writable)), None);
    }

    #[test]
    fn tag_does_not_return_with_an_earlier_size() {
        let (one, versions) = (export(512, Access::ReadOnly), Versions::new(7));
        let first = tag(&versions, &one).unwrap();
        assert!(one.resize(1024) && one.resize(512));
        assert_ne!(tag(&versions, &one).unwrap(), first);
    }

    #[test]
    fn tags_of_ended_exports_are_forgotten() {
        let versions = Versions::new(7);
        let tags: Vec<_> =
            (0..1000).map(|_| tag(&versions, &export(512, Access::ReadOnly)).unwrap()).collect();
        assert!((1..tags.len()).all(|at| !tags[at..].contains(&tags[at - 1])));
        assert!(versions.known.lock().unwrap().exports.len() < 3);
    }

    #[test]
    fn lists_are_compared_strongly_or_weakly() {
        let tag = Some("\"a\"");
        for list in ["\"a\"", "\"b\", \"a\"", " \"a\" ", "*"] {
            assert!(is_listed(list, tag, false) && is_listed(list, tag, true), "{list}");
        }
        assert!(is_listed("W/\"a\"", tag, true) && !is_listed("W/\"a\"", tag, false));
        assert!(!is_listed("\"b\"", tag, true) && !is_listed("", tag, true));
        assert!(
            !is_listed("\"a\"", None, true)
                && !is_listed("", None, true)
                && is_listed("*", None, true)
        );
    }
}
