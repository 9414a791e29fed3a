//! The credentials of NVMe hosts in an access policy.

use export::{Credential, Proof, Secret};

/// Scheme: the configured PSK for TLS, in interchange format (NVMe/TCP 1.0 §3.6.1.5).
pub const TLS_PSK: &str = "nvme-tls-psk";

/// Scheme: the DH-HMAC-CHAP secret of the host (NVMe Base 2.0 §8.13.5).
pub const CHAP_HOST: &str = "nvme-dh-hmac-chap-host";

/// Scheme: the DH-HMAC-CHAP secret of the controller.
pub const CHAP_CONTROLLER: &str = "nvme-dh-hmac-chap-controller";

/// All schemes.
pub const SCHEMES: &[&str] = &[TLS_PSK, CHAP_HOST, CHAP_CONTROLLER];

/// Parameter of the host's credentials: PSKs are derived as by implementations that do not follow
/// RFC 8446, where the identity does not tell which.
const COMPAT: &str = "compat";

/// Returns the credential of a configured PSK. `compat` as for
/// [`derive_psks`](super::psk::derive_psks).
#[must_use]
pub fn tls_psk(text: Secret, compat: bool) -> Credential {
    credential(TLS_PSK, Proof::Tls, compat, text)
}

/// Returns the credential of the host's secret. `compat`: PSKs for secure channel concatenation are
/// derived as by Linux 6.15.
#[must_use]
pub fn chap_host(text: Secret, compat: bool) -> Credential {
    credential(CHAP_HOST, Proof::InBand, compat, text)
}

/// Returns the credential of the controller's secret.
#[must_use]
pub fn chap_controller(text: Secret) -> Credential {
    credential(CHAP_CONTROLLER, Proof::Target, false, text)
}

fn credential(scheme: &str, proof: Proof, compat: bool, secret: Secret) -> Credential {
    let parameter = if compat { COMPAT.to_owned() } else { String::new() };
    Credential { scheme: scheme.to_owned(), proof, parameter, secret }
}

/// Returns the `compat` with which a credential was made.
#[must_use]
pub fn is_compat(credential: &Credential) -> bool {
    credential.parameter == COMPAT
}
