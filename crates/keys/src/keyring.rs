//! Derives PSKs for one host and one subsystem each, for the keyring of the Linux kernel and for
//! import by nvme-cli.

use export::Secret;
use nvme::auth::psk::{ConfiguredPsk, Identity, Psk};
use nvme::wire::fabrics::DISCOVERY_NQN as DISCOVERY;
use zeroize::Zeroizing;

use failure::Failure;

/// Longest line that nvme-cli reads, in bytes, with line break.
const MAX_LINE: usize = 511;

/// Derives the PSKs for the discovery service and for `subsystems`, each with identity version 1,
/// which Linux tries first.
///
/// # Errors
/// Fails if no PSK can be derived for one of the names.
pub fn psks(key: &Secret, host: &str, subsystems: &[&str]) -> Result<Vec<Psk>, Failure> {
    let mut wanted = vec![DISCOVERY];
    wanted.extend(subsystems.iter().filter(|nqn| **nqn != DISCOVERY));
    let mut found = Vec::new();
    for subsystem in wanted {
        let psks = nvme::auth::psk::derive_psks(key, false, host, subsystem)
            .map_err(|error| Failure::new(format!("{subsystem}: {error}")))?;
        let is_newer = |psk: &Psk| Identity::parse(&psk.identity).is_some_and(|it| it.version == 1);
        // Those defined by the specification come first.
        found.extend(psks.into_iter().find(is_newer));
    }
    Ok(found)
}

/// Formats PSKs for `nvme tls-key --import`, one per line: identity, and PSK in interchange format.
///
/// # Errors
/// Fails if a line is too long for nvme-cli.
pub fn import_lines(psks: &[Psk]) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut lines = Zeroizing::new(Vec::with_capacity(psks.len().saturating_mul(MAX_LINE)));
    for psk in psks {
        let key = ConfiguredPsk { hash: Some(psk.hash), key: psk.secret.clone() }.emit();
        let length = psk.identity.len().saturating_add(key.bytes().len()).saturating_add(2);
        if length > MAX_LINE {
            return Err(Failure::new(
                "the NQNs of the host and the disk are too long for nvme-cli to import a key",
            ));
        }
        for part in [psk.identity.as_bytes(), b" ", key.bytes(), b"\n"] {
            lines.extend_from_slice(part);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod test {
    use super::*;

    const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    const DISK: &str = "nqn.2024-01.test:disk0";

    fn lines(key: &str, disks: &[&str]) -> Result<String, Failure> {
        let psks = psks(&Secret::new(key.as_bytes().to_vec()), HOST, disks)?;
        Ok(String::from_utf8(import_lines(&psks)?.to_vec()).unwrap())
    }

    /// Reference: libnvme 1.14 with the same key.
    #[test]
    fn import_line_has_identity_and_matching_psk() {
        let key = "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
        let found = lines(key, &[DISK, DISCOVERY]).unwrap();
        let found: Vec<&str> = found.lines().collect();
        assert_eq!(found.len(), 2, "discovery is asked once");
        assert!(found[0].starts_with(&format!("NVMe1R01 {HOST} {DISCOVERY} ")));
        let (identity, text) = found[1].rsplit_once(' ').unwrap();
        let all =
            nvme::auth::psk::derive_psks(&Secret::new(key.as_bytes().to_vec()), false, HOST, DISK)
                .unwrap();
        let psk = all.iter().find(|psk| psk.identity == identity).unwrap();
        assert!(Identity::parse(identity).unwrap().is_for(HOST, DISK));
        assert_eq!(ConfiguredPsk::parse(text.as_bytes()).unwrap().key, psk.secret);
        let long = lines(
            "NVMeTLSkey-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:",
            &[DISK],
        );
        assert!(long.unwrap().lines().all(|line| line.contains("NVMeTLSkey-1:02:")));
    }

    #[test]
    fn too_long_names_are_refused() {
        let key = "NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
        assert!(lines(key, &["a b"]).is_err());
        assert!(lines(key, &[&"a".repeat(223)]).is_ok());
        let long =
            psks(&Secret::new(key.as_bytes().to_vec()), &"h".repeat(223), &[&"d".repeat(223)])
                .unwrap();
        assert!(import_lines(&long).is_err());
    }
}
