//! File system, network and signal restrictions (Landlock). Open descriptors are not affected.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetError, Scope,
};

/// The newest supported ABI. Older kernels apply what they support.
const NEWEST: ABI = ABI::V6;

/// Denies the calling thread and its children all access to the file system, new addresses, and
/// signals to other processes. Returns a sentence for each gap.
pub fn restrict_files() -> Vec<String> {
    match restrict() {
        Ok(status) => gap(&status).into_iter().collect(),
        Err(error) => vec![format!("Landlock cannot be used ({error})")],
    }
}

fn restrict() -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
}

fn gap(status: &RestrictionStatus) -> Option<String> {
    match status.landlock {
        LandlockStatus::NotImplemented => Some("this kernel has no Landlock".to_owned()),
        LandlockStatus::NotEnabled => {
            Some("Landlock is switched off (lsm= on the kernel command line)".to_owned())
        }
        // Kernels before 6.7 do not restrict addresses, those before 6.12 not signals; system calls
        // are filtered as well.
        LandlockStatus::Available { .. } => None,
    }
}
