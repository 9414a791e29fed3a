//! Drops privileges: user, capabilities and core dumps. User and capabilities are attributes of the
//! calling thread, so no other threads may exist yet.

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, getpid, getppid,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// The base of an unassigned range of user identifiers: not used by people, services, containers or
/// systemd. The process identifier is added, so that no other process has the same user. As
/// `nobody` it would share a user with other processes, which could trace and signal it.
const FIRST_UID: u32 = 0x7000_0000;

/// Fallback where the user namespace does not map the range above, as in a container.
const NOBODY: u32 = 65534;

/// Changes to an unprivileged user, clears the capabilities and sets `no_new_privs`. Makes the
/// process die with its parent, excludes its memory from core dumps, and prevents others from
/// tracing it. Returns a message for each of these steps that failed.
///
/// # Errors
/// Fails if `parent` has ended already.
pub fn drop_privileges(parent: Pid) -> Result<Vec<String>, Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        return Err(Errno::SRCH);
    }
    let mut failures = Vec::new();
    empty_bounding_set();
    // Root without capabilities: the service manager has removed even the right to change the user.
    let had_capabilities = !permitted_capabilities().is_empty();
    if rustix::process::geteuid().is_root() && !change_user() && had_capabilities {
        failures.push("it could not change its user, and still runs as root".to_owned());
    }
    if empty_capabilities().is_err() {
        failures.push("its capabilities could not be dropped".to_owned());
    }
    if set_no_new_privs(true).is_err() {
        failures.push("it may gain privileges by executing programs".to_owned());
    }
    // A change of the user clears the parent-death signal,
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // and makes the process dumpable.
    if protect_memory().is_err() {
        failures.push("other processes may read its memory".to_owned());
    }
    if getppid() == Some(parent) { Ok(failures) } else { Err(Errno::SRCH) }
}

/// Clears the capability bounding set. Requires `CAP_SETPCAP`; without it nothing is lost, because
/// `no_new_privs` has the same effect.
fn empty_bounding_set() {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Changes to an unprivileged user. Returns whether that succeeded.
fn change_user() -> bool {
    let pid = u32::try_from(getpid().as_raw_nonzero().get()).ok();
    let uid = pid.and_then(|pid| FIRST_UID.checked_add(pid));
    uid.into_iter().chain([NOBODY]).any(|uid| set_user(uid).is_ok())
}

fn set_user(uid: u32) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

fn empty_capabilities() -> Result<(), Errno> {
    // Failure is harmless: the kernel has no ambient capabilities then.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    match set_capabilities(None, sets) {
        // A process without capabilities may not be allowed to set them.
        Err(_) if permitted_capabilities().is_empty() => Ok(()),
        result => result,
    }
}

fn permitted_capabilities() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::all(), |sets| sets.permitted)
}

/// Protects the memory of this process, which may hold keys, from other processes of its user, and
/// excludes it from core dumps. Child processes do not dump core either.
///
/// # Errors
/// Fails if one of the two is not allowed.
pub fn protect_memory() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// Sets close-on-exec on all descriptors from 3: some are inherited from the parent of this
/// process. Has no effect before Linux 5.11.
pub fn set_cloexec_on_all() {
    let _ = crate::syscall::close_on_exec(3);
}
