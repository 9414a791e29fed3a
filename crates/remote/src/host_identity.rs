//! The identity with which this machine connects to targets: host NQN and host identifier.

use linux::tree::Tree;
use sha2::{Digest, Sha256};

use crate::host_nqn::HostNqn;

/// File from which nvme-cli reads the host identifier.
const FILE: &str = "/etc/nvme/hostid";

/// Host NQN and host identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// The host NQN.
    pub nqn: String,
    /// The host identifier (HOSTID).
    pub id: [u8; 16],
}

impl HostIdentity {
    /// Determines the NQN by [`HostNqn::find`]. Linux requires one identifier per NQN: nvme-cli's
    /// if the NQN is nvme-cli's, else the UUID in the NQN, else one derived from it.
    pub fn find(tree: &Tree, asked: Option<&str>) -> Self {
        let own = HostNqn::find(tree, asked);
        let usual = || tree.text(FILE).ok().and_then(|text| parse(text.lines().next()?.trim()));
        let file = if own.is_from_nvme_cli { usual() } else { None };
        let named = || parse(own.nqn.rsplit(':').next()?);
        Self { id: file.or_else(named).unwrap_or_else(|| derived(&own.nqn)), nqn: own.nqn }
    }

    /// The identifier as a UUID string.
    pub fn id_text(&self) -> String {
        let digits: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |range| digits.get(range).unwrap_or_default();
        [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
    }
}

/// Parses a UUID.
fn parse(text: &str) -> Option<[u8; 16]> {
    let parts = text.split('-').map(str::len);
    if !parts.eq([8, 4, 4, 4, 12]) || !text.is_ascii() {
        return None;
    }
    u128::from_str_radix(&text.replace('-', ""), 16).ok().map(u128::to_be_bytes)
}

fn derived(nqn: &str) -> [u8; 16] {
    let hash = Sha256::new_with_prefix(b"storagetm host id 1").chain_update(nqn).finalize();
    let mut id = [0; 16];
    id.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    // Version 8: custom (RFC 9562 §5.8).
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
    fn each_nqn_has_one_host_identifier() {
        let folder = Scratch::new();
        let tree = Tree::at(&folder.0);
        let named =
            HostIdentity::find(&tree, Some("nqn.a:uuid:6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11"));
        assert_eq!(named.id_text(), "6b1c2f5e-30c4-4a6e-8d27-5b8f0a9c4d11");
        let made = HostIdentity::find(&tree, Some("nqn.a"));
        assert_eq!(made, HostIdentity::find(&tree, Some("nqn.a")));
        assert_ne!(made.id, HostIdentity::find(&tree, Some("nqn.b")).id);
        fs::create_dir_all(folder.0.join("etc/nvme")).unwrap();
        fs::write(folder.0.join("etc/nvme/hostnqn"), "nqn.a\n").unwrap();
        fs::write(folder.0.join("etc/nvme/hostid"), "01234567-89ab-cdef-0123-456789abcdef\n")
            .unwrap();
        assert_eq!(
            HostIdentity::find(&tree, None).id_text(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
        assert_ne!(
            HostIdentity::find(&tree, Some("nqn.b")).id_text(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
    }

    #[test]
    fn malformed_uuid_is_refused() {
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
