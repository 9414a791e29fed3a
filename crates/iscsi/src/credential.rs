//! The credentials of iSCSI initiators in an access policy.

use export::{Credential, Host, Proof, Secret};

/// Scheme: the CHAP secret of the initiator. Its CHAP name is its iSCSI name, which is the
/// identifier of the host, or its display name.
pub const CHAP_INITIATOR: &str = "iscsi-chap-initiator";

/// Scheme: the CHAP secret of the target, for mutual authentication. Its CHAP name is that of the
/// target; in a discovery session, which has no target, `storagetm`.
pub const CHAP_TARGET: &str = "iscsi-chap-target";

/// All schemes.
pub const SCHEMES: &[&str] = &[CHAP_INITIATOR, CHAP_TARGET];

/// Parameter of [`CHAP_INITIATOR`]: MD5 is allowed, the only algorithm of Windows.
const MD5: &str = "md5";

/// The lengths of secrets that Windows accepts, in bytes.
pub const SECRET_LENGTHS: std::ops::RangeInclusive<usize> = 12..=16;

/// Returns the credential of the initiator's secret. `md5`: the weak algorithm MD5 is allowed.
#[must_use]
pub fn chap_initiator(secret: Secret, md5: bool) -> Credential {
    let parameter = if md5 { MD5.to_owned() } else { String::new() };
    Credential { scheme: CHAP_INITIATOR.to_owned(), proof: Proof::InBand, parameter, secret }
}

/// Returns the credential of the target's secret.
#[must_use]
pub fn chap_target(secret: Secret) -> Credential {
    let (scheme, parameter) = (CHAP_TARGET.to_owned(), String::new());
    Credential { scheme, proof: Proof::Target, parameter, secret }
}

/// Returns whether the host may use MD5.
#[must_use]
pub fn allows_md5(host: &Host) -> bool {
    host.credential(CHAP_INITIATOR).is_some_and(|credential| credential.parameter == MD5)
}
