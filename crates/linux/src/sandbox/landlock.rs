//! No file can be opened any more, nothing be bound or connected, nobody outside be signalled (Landlock).
//!
//! Does not know descriptors: those that are open stay as they are.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetError, Scope,
};

/// What is known of Landlock here. A kernel that knows less does what it can.
const NEWEST: ABI = ABI::V6;

/// Denies the calling thread, and those that it starts, all of the file system and all new addresses. What the kernel
/// cannot deny comes back, a sentence each.
pub fn restrict_files() -> Vec<String> {
    match restrict() {
        Ok(status) => said(&status).into_iter().collect(),
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

fn said(status: &RestrictionStatus) -> Option<String> {
    match status.landlock {
        LandlockStatus::NotImplemented => Some("this kernel has no Landlock".to_owned()),
        LandlockStatus::NotEnabled => {
            Some("Landlock is switched off (lsm= on the kernel command line)".to_owned())
        }
        // Older ones do not know addresses (6.7) or signals (6.12); system calls are restricted besides.
        LandlockStatus::Available { .. } => None,
    }
}
