//! Who this machine is to those that lend disks: its host NQN, and the identifier that goes with it. It knows no
//! connection.

use linux::tree::Tree;
use sha2::{Digest, Sha256};

use crate::own::Own;

/// The file in which nvme-cli looks for the identifier.
const FILE: &str = "/etc/nvme/hostid";

/// Who this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its host NQN.
    pub nqn: String,
    /// Its identifier (HOSTID).
    pub id: [u8; 16],
}

impl Who {
    /// As [`Own`] has the name. The kernel wants one identifier for each name: nvme-cli's where the name is nvme-cli's,
    /// else the UUID in the name, else one made of it.
    pub fn find(tree: &Tree, asked: Option<&str>) -> Self {
        let own = Own::find(tree, asked);
        let usual = || tree.text(FILE).ok().and_then(|text| parse(text.lines().next()?.trim()));
        let file = if own.is_usual { usual() } else { None };
        let named = || parse(own.nqn.rsplit(':').next()?);
        Self { id: file.or_else(named).unwrap_or_else(|| made(&own.nqn)), nqn: own.nqn }
    }

    /// The identifier as text: a UUID.
    pub fn id_text(&self) -> String {
        let digits: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |range| digits.get(range).unwrap_or_default();
        [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
    }
}

/// The bytes of a UUID.
fn parse(text: &str) -> Option<[u8; 16]> {
    let parts = text.split('-').map(str::len);
    if !parts.eq([8, 4, 4, 4, 12]) || !text.is_ascii() {
        return None;
    }
    u128::from_str_radix(&text.replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

fn made(nqn: &str) -> [u8; 16] {
    let hash = Sha256::new_with_prefix(b"storagetm host id 1").chain_update(nqn).finalize();
    let mut id = [0; 16];
    id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    // Version 8, made by a rule of one's own (RFC 9562 §5.8).
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use testkit::Scratch;

    #[test]
    fn a_name_has_one_identifier() {
        let folder = Scratch::new();
        let tree = Tree::at(&folder.0);
        let named = Who::find(&tree, Some("nqn.a:uuid:6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11"));
        assert_eq!(named.id_text(), "6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11");
        let made = Who::find(&tree, Some("nqn.a"));
        assert_eq!(made, Who::find(&tree, Some("nqn.a")));
        assert_ne!(made.id, Who::find(&tree, Some("nqn.b")).id);
        fs::create_dir_all(folder.0.join("etc/nvme")).unwrap();
        fs::write(folder.0.join("etc/nvme/hostnqn"), "nqn.a\n").unwrap();
        fs::write(folder.0.join("etc/nvme/hostid"), "01234567-89ab-cdef-0123-456789abcdef\n")
            .unwrap();
        assert_eq!(Who::find(&tree, None).id_text(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_ne!(
            Who::find(&tree, Some("nqn.b")).id_text(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
    }

    #[test]
    fn what_is_no_uuid_is_none() {
        for wrong in [
            "",
            "1-2-3-4-5",
            "6b1c2f5e30c44a6e8d275b8f0a9c4d11",
            "gb1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
