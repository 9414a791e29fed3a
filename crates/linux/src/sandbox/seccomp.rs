//! System call filters (seccomp) for a process that serves open disks to peers that it accepts.
//! Independent of the restrictions of files and privileges.
//!
//! There are three classes. Required calls are allowed, where it matters only with certain
//! arguments. Calls that no legitimate code path makes (starting a program, tracing a process,
//! mounting) kill the process: that is an attack, and the supervisor is informed. All others fail
//! with EPERM, since libraries try some (for a locale, the number of processors, a backtrace) and
//! continue without.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};

/// Required calls, with any arguments: disks, connections, threads, memory, time.
const NEEDED: &[c_long] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_lseek,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_close,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Refused by a separate filter, whose error would otherwise be overruled.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcpu,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Older names of the same, which only some architectures have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Calls that no legitimate code path makes.
const DANGEROUS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_capset,
    libc::SYS_personality,
    libc::SYS_mknodat,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
];

#[cfg(target_arch = "x86_64")]
const DANGEROUS_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DANGEROUS_HERE: &[c_long] = &[];

/// `prctl`: the name of a thread, and of a piece of memory.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// `fcntl`: the allowed operations.
const FCNTL: [i32; 7] = [
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GET_SEALS,
    libc::F_GETPIPE_SZ,
];
/// `setsockopt`: the allowed levels: sockets, TCP, and kernel TLS.
const SOCKET_LEVELS: [i32; 3] = [libc::SOL_SOCKET, libc::IPPROTO_TCP, libc::SOL_TLS];

/// Allows all threads of the process, and those started later, only the calls that serving
/// requires. Returns a sentence for each gap.
pub fn restrict_syscalls() -> Vec<String> {
    let left =
        restrict().err().map(|error| format!("its system calls are not restricted ({error})"));
    left.into_iter().collect()
}

/// Denies all threads of the process, and those started later, the calls that no legitimate code
/// path makes: for a process that opens sockets. Returns a sentence for each gap.
pub fn deny_dangerous_syscalls() -> Vec<String> {
    let left = dangerous().and_then(|filter| apply_filter_all_threads(&filter));
    left.err()
        .map(|error| format!("its system calls are not restricted ({error})"))
        .into_iter()
        .collect()
}

/// The last filter denies adding another one.
fn restrict() -> seccompiler::Result<()> {
    for filter in [dangerous()?, without_clone3()?, needed()?] {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> seccompiler::Result<BpfProgram> {
    let machine = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, action, machine)?.try_into()?)
}

fn any(calls: &[c_long]) -> impl Iterator<Item = (c_long, Vec<SeccompRule>)> {
    calls.iter().map(|call| (*call, Vec::new()))
}

fn dangerous() -> seccompiler::Result<BpfProgram> {
    let rules = any(DANGEROUS).chain(any(DANGEROUS_HERE)).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// Its arguments are in memory, where a filter cannot see them. The C library falls back to
/// `clone`.
fn without_clone3() -> seccompiler::Result<BpfProgram> {
    let rules = any(&[libc::SYS_clone3]).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

fn needed() -> seccompiler::Result<BpfProgram> {
    let mut rules: Rules = any(NEEDED).chain(any(OLDER)).collect();
    rules.extend(bounded()?);
    compile(rules, SeccompAction::Errno(libc::EPERM.unsigned_abs()), SeccompAction::Allow)
}

/// Required calls that are allowed with certain arguments only.
fn bounded() -> seccompiler::Result<Rules> {
    let own = u64::from(std::process::id());
    let not_executable = bits(2, libc::PROT_EXEC, 0)?;
    let by_descriptor = |argument| bits(argument, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH);
    Ok([
        (libc::SYS_mmap, vec![not_executable.clone()]),
        (libc::SYS_mprotect, vec![not_executable]),
        // A thread of this process, in the same namespaces.
        (libc::SYS_clone, vec![bits(0, THREAD | NAMESPACES, THREAD)?]),
        (libc::SYS_fcntl, one_of(1, FCNTL)?),
        (libc::SYS_setsockopt, one_of(1, SOCKET_LEVELS)?),
        // Non-blocking mode. No ioctl for disks is allowed.
        (libc::SYS_ioctl, vec![word(1, u64::from(FIONBIO))?]),
        (libc::SYS_newfstatat, vec![by_descriptor(3)?]),
        (libc::SYS_statx, vec![by_descriptor(2)?]),
        (libc::SYS_prctl, vec![word(0, name_of_a_thread())?, word(0, PR_SET_VMA)?]),
        // Limits of this process can be read, not set.
        (libc::SYS_prlimit64, vec![rule(2, Width::Qword, Is::Eq, 0)?]),
        (libc::SYS_tgkill, vec![word(0, own)?]),
    ]
    .into_iter()
    .collect())
}

const THREAD: i32 = libc::CLONE_THREAD;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;
/// `FIONBIO` of `asm-generic/ioctls.h`.
const FIONBIO: u32 = 0x5421;

fn name_of_a_thread() -> u64 {
    u64::from(libc::PR_SET_NAME.unsigned_abs())
}

fn rule(argument: u8, width: Width, is: Is, value: u64) -> seccompiler::Result<SeccompRule> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(argument, width, is, value)?])?)
}

fn word(argument: u8, value: u64) -> seccompiler::Result<SeccompRule> {
    rule(argument, Width::Dword, Is::Eq, value)
}

/// Matches if the bits `mask` of an argument equal `value`.
fn bits(argument: u8, mask: i32, value: i32) -> seccompiler::Result<SeccompRule> {
    let mask = Is::MaskedEq(u64::from(mask.cast_unsigned()));
    rule(argument, Width::Dword, mask, u64::from(value.cast_unsigned()))
}

fn one_of<const N: usize>(argument: u8, values: [i32; N]) -> seccompiler::Result<Vec<SeccompRule>> {
    values.iter().map(|value| word(argument, u64::from(value.cast_unsigned()))).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn x45_dangerous_calls_are_not_allowed() {
        let deadly = |call: &c_long| DANGEROUS.contains(call) || DANGEROUS_HERE.contains(call);
        assert!(!NEEDED.iter().chain(OLDER).any(deadly));
        let bounded = bounded().unwrap();
        assert!(!bounded.keys().any(deadly));
        assert!(!bounded.keys().any(|call| NEEDED.contains(call)));
        let kernels = [libc::SYS_kexec_load, libc::SYS_kexec_file_load, libc::SYS_finit_module];
        let worst = [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mount, libc::SYS_bpf];
        for worst in worst.iter().chain(&kernels) {
            assert!(deadly(worst), "{worst}");
        }
    }

    /// Calls that open, bind, connect, name or signal something new are on no list.
    #[test]
    fn x45_calls_that_open_something_are_not_allowed() {
        let new = [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_open_by_handle_at,
            libc::SYS_open_tree,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_connect,
            libc::SYS_pipe2,
            libc::SYS_memfd_create,
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_truncate,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_ftruncate,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_io_uring_setup,
            libc::SYS_execve,
        ];
        let bounded = bounded().unwrap();
        for call in new {
            let listed = NEEDED.contains(&call) || OLDER.contains(&call);
            assert!(!listed && !bounded.contains_key(&call), "{call}");
        }
        #[cfg(target_arch = "x86_64")]
        assert!(![libc::SYS_open, libc::SYS_creat].iter().any(|call| NEEDED.contains(call)));
    }

    #[test]
    fn filters_do_not_exceed_the_kernel_limit() {
        for filter in [dangerous().unwrap(), without_clone3().unwrap(), needed().unwrap()] {
            assert!(filter.len() < 4096, "{}", filter.len());
        }
    }
}
