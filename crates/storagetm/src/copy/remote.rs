//! Remote disks as ends of a copy.

use std::time::Duration;

use ::copy::{Endpoint, IscsiEndpoint, NbdEndpoint, NvmeEndpoint, NvmeHost};
use linux::tree::Tree;

use super::summary::refused;
use crate::options::copy::Copy;
use ::remote::credentials::Options;
use ::remote::disk::{self, IscsiDisk, NbdDisk, NvmeDisk};
use ::remote::uri::Locator;
use failure::Failure;

/// Returns the endpoint of a remote disk. Does not connect to it yet, except to select a key.
///
/// # Errors
/// Fails if a required key is missing or cannot be read.
pub(super) fn endpoint(
    tree: &Tree,
    options: &Copy,
    there: &Locator,
) -> Result<Box<dyn Endpoint>, Failure> {
    let (name, timeout) = (there.to_string(), response_timeout(options.patience));
    let connection = Options {
        keys: options.keys.as_deref(),
        key: options.key.as_deref(),
        hostnqn: options.hostnqn.as_deref(),
        insecure: options.insecure,
    };
    match there {
        Locator::Nvme(nvme) => {
            let NvmeDisk { name: wanted, host, credentials, hint, dial } =
                disk::nvme(tree, &connection, nvme).map_err(with_status)?;
            let host = NvmeHost { nqn: host.nqn, id: host.id, credentials };
            let endpoint = NvmeEndpoint::new(&name, &wanted, host, dial).with_hint(hint);
            let endpoint = endpoint.with_timeout(timeout);
            Ok(Box::new(if options.digests { endpoint.with_digests() } else { endpoint }))
        }
        Locator::Nbd(nbd) => {
            let NbdDisk { dial, secured } =
                disk::nbd(tree, &connection, nbd).map_err(with_status)?;
            let endpoint = NbdEndpoint::new(&name, &nbd.name, dial).with_timeout(timeout);
            Ok(Box::new(if secured { endpoint.with_tls() } else { endpoint }))
        }
        Locator::Iscsi(iscsi) => {
            let IscsiDisk { initiator, credentials, dial, redirected } =
                disk::iscsi(tree, &connection, iscsi).map_err(with_status)?;
            let endpoint = IscsiEndpoint::new(&name, &initiator, &iscsi.target, iscsi.lun, dial);
            let endpoint = endpoint.with_redirection(redirected).with_timeout(timeout);
            Ok(Box::new(endpoint.with_credentials(credentials)))
        }
        Locator::Path(_) | Locator::Pipe | Locator::Web(_) => {
            Err(refused(format!("{there} is no disk of another machine")))
        }
    }
}

/// How long a machine that is connected may leave all requests unanswered: as long as the user waits for a lost
/// one (`--patience`, in seconds), but at least as long as a disk takes to start that was asleep.
fn response_timeout(patience: u64) -> Duration {
    Duration::from_secs(patience.clamp(10, 180))
}

/// Sets the exit status of a copy that is not begun, except for a usage error.
fn with_status(failure: Failure) -> Failure {
    if failure.status() == Failure::usage("").status() { failure } else { refused(failure) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn connected_machine_has_ten_seconds_to_three_minutes() {
        let seconds = [0, 3, 60, 300, u64::MAX].map(|it| response_timeout(it).as_secs());
        assert_eq!(seconds, [10, 10, 60, 180, 180]);
    }
}
