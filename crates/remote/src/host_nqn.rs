//! The host NQN of this machine.

use linux::identity::machine_id;
use linux::tree::Tree;
use sha2::{Digest, Sha256};

use nvme::nqn;

/// File from which nvme-cli reads the host NQN.
pub const FILE: &str = "/etc/nvme/hostnqn";

/// A host NQN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNqn {
    /// The NQN.
    pub nqn: String,
    /// Whether it equals the one in nvme-cli's file.
    pub is_from_nvme_cli: bool,
}

impl HostNqn {
    /// Returns `asked` if given, else the content of nvme-cli's file, else an NQN made of the
    /// firmware's UUID as nvme-cli makes it, else one derived from the machine ID.
    pub fn find(tree: &Tree, asked: Option<&str>) -> Self {
        let usual =
            tree.text(FILE).ok().and_then(|text| Some(text.lines().next()?.trim().to_owned()));
        let usual = usual.filter(|nqn| !nqn.is_empty());
        if let Some(nqn) = asked {
            return Self { is_from_nvme_cli: usual.as_deref() == Some(nqn), nqn: nqn.to_owned() };
        }
        match usual {
            Some(nqn) => Self { nqn, is_from_nvme_cli: true },
            None => Self { nqn: derived(tree), is_from_nvme_cli: false },
        }
    }
}

fn derived(tree: &Tree) -> String {
    let firmware = tree.attribute("sys/class/dmi/id/product_uuid").filter(|uuid| is_uuid(uuid));
    if let Some(uuid) = firmware {
        return format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}");
    }
    let hash = Sha256::new_with_prefix(b"storagetm host 1")
        .chain_update(machine_id(tree).bytes)
        .finalize();
    let mut uuid = [0; 16];
    uuid.iter_mut().zip(hash).for_each(|(to, from)| *to = from);
    // Version 8: custom (RFC 9562 §5.8).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    nqn::of(&uuid.into())
}

fn is_uuid(text: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && parts.iter().all(|part| digits(part))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use testkit::Scratch;

    fn write(folder: &Scratch, path: &str, text: &str) {
        let path = folder.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn host_nqn_is_taken_from_nvme_cli() {
        let folder = Scratch::new();
        let tree = Tree::at(&folder.0);
        let find = |asked| HostNqn::find(&tree, asked);
        write(&folder, "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        let made = find(None);
        assert_eq!(made, find(None), "the same each time");
        assert!(made.nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:") && !made.is_from_nvme_cli);
        assert!(!made.nqn.contains("0123"), "the machine ID is not revealed");
        write(&folder, "sys/class/dmi/id/product_uuid", "4c4c4544-0000-1111-2222-333344445555\n");
        assert!(find(None).nqn.ends_with(":4c4c4544-0000-1111-2222-333344445555"));
        write(&folder, "etc/nvme/hostnqn", "nqn.2024-01.test:a\n");
        assert_eq!(
            find(None),
            HostNqn { nqn: "nqn.2024-01.test:a".to_owned(), is_from_nvme_cli: true }
        );
        assert!(find(Some("nqn.2024-01.test:a")).is_from_nvme_cli);
        assert!(!find(Some("nqn.2024-01.test:b")).is_from_nvme_cli);
    }

    #[test]
    fn uuid_form_is_checked() {
        assert!(is_uuid("4c4c4544-0000-1111-2222-333344445555"));
        for wrong in [
            "",
            "4c4c4544",
            "4c4c4544-0000-1111-2222-33334444555",
            "4c4c4544-0000-1111-2222-33334444555g",
        ] {
            assert!(!is_uuid(wrong), "{wrong}");
        }
    }
}
