//! The user, the capabilities and the limits of a process that gives them away.
//!
//! Does not know threads: all of this holds for the one that calls, so there must be no other yet.

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

/// The first of the user identifiers that neither people, services, containers nor systemd's own ranges have: the
/// process takes the one at its own number from here, so that no other process on the machine is of its user. As
/// `nobody` it would share one with whatever else runs as `nobody`, and that could trace and signal it.
const FIRST_USER: u32 = 0x7000_0000;

/// Where user identifiers are few, as in a container.
const NOBODY: u32 = 65534;

/// Gives away the user, the capabilities, and whatever a program that is started could have more; has the process end
/// with the one that started it, which is `parent`, leave no trace of its memory, and be traced by nobody. What could not
/// be done comes back, a sentence each.
///
/// # Errors
/// `parent` is gone already.
pub fn drop_privileges(parent: Pid) -> Result<Vec<String>, Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        return Err(Errno::SRCH);
    }
    let mut left = Vec::new();
    empty_bounding_set();
    // A root without capabilities is one whose service manager has taken even this right away.
    let is_able = !permitted().is_empty();
    if rustix::process::geteuid().is_root() && !become_another() && is_able {
        left.push("its user could not be changed, and stays root".to_owned());
    }
    if empty_capabilities().is_err() {
        left.push("its capabilities could not be given up".to_owned());
    }
    if set_no_new_privs(true).is_err() {
        left.push("it might gain rights by starting programs".to_owned());
    }
    // A change of the user clears it.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A change of the user clears this, too.
    if protect_memory().is_err() {
        left.push("its memory could be seen by others".to_owned());
    }
    if getppid() == Some(parent) { Ok(left) } else { Err(Errno::SRCH) }
}

/// Needs `CAP_SETPCAP`. Who does not have it has nothing to gain, with `no_new_privs`.
fn empty_bounding_set() {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Whether this process is of a user without any rights now.
fn become_another() -> bool {
    let own = u32::try_from(getpid().as_raw_nonzero().get()).ok();
    let own = own.and_then(|own| FIRST_USER.checked_add(own));
    own.into_iter().chain([NOBODY]).any(|number| become_user(number).is_ok())
}

fn become_user(number: u32) -> Result<(), Errno> {
    let (user, group) = (Uid::from_raw(number), Gid::from_raw(number));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}

fn empty_capabilities() -> Result<(), Errno> {
    // Needs nothing; a kernel without it has no ambient capabilities either.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    match set_capabilities(None, sets) {
        // Who has none may not be allowed to say so.
        Err(_) if permitted().is_empty() => Ok(()),
        result => result,
    }
}

fn permitted() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::all(), |sets| sets.permitted)
}

/// Keeps the memory of this process, which may hold keys, from other processes of its user, and out of core dumps. Programs
/// that it starts write no core dumps either.
///
/// # Errors
/// One of the two is not allowed.
pub fn protect_memory() -> Result<(), Errno> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

/// Has no program that this one starts inherit a descriptor that it is not given: some come from whoever started this one,
/// and from there from anywhere. On a kernel before 5.11 it is as it always was.
pub fn set_cloexec_on_all() {
    let _ = crate::syscall::close_on_exec(3);
}
