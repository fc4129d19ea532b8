//! The system calls that every daemon makes, and those that none ever does.

use std::ffi::c_long;

use libc as c;

/// A condition on an argument's lower 32 bits, which is all that the kernel looks at of the
/// arguments named here: `argument & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Which, from 0.
    pub index: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they are to be.
    pub value: u32,
}

impl Argument {
    /// Argument `index` is `value`.
    #[must_use]
    pub const fn is(index: u8, value: u32) -> Argument {
        Argument {
            index,
            mask: u32::MAX,
            value,
        }
    }

    /// The bits `mask` of argument `index` are `value`.
    #[must_use]
    pub const fn bits(index: u8, mask: u32, value: u32) -> Argument {
        Argument { index, mask, value }
    }
}

/// A system call that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number on this machine.
    pub number: c_long,
    /// All conditions of one of these lists are met; nothing: whatever its arguments.
    pub only: &'static [&'static [Argument]],
    /// What for.
    pub why: &'static str,
}

/// A call with whatever arguments.
#[must_use]
pub const fn call(number: c_long, why: &'static str) -> Call {
    let only = &[];
    Call { number, only, why }
}

/// A call with these arguments.
#[must_use]
pub const fn only(number: c_long, only: &'static [&'static [Argument]], why: &'static str) -> Call {
    Call { number, only, why }
}

/// PROT_WRITE, PROT_EXEC.
const WRITE: u32 = 2;
const EXEC: u32 = 4;

/// CLONE_THREAD.
const THREAD: u32 = 0x1_0000;

/// PR_SET_NAME, PR_SET_VMA, PR_SET_PDEATHSIG, PR_GET_NAME.
const NAME: u32 = 15;
const GET_NAME: u32 = 16;
const VMA: u32 = 0x5356_4d41;

/// FIONBIO, FIONREAD, TCGETS.
const FIONBIO: u32 = 0x5421;
const FIONREAD: u32 = 0x541b;
const TCGETS: u32 = 0x5401;

/// What every daemon needs: memory, threads, files, sockets, time.
pub(super) const SHARED: &[Call] = &[
    // Memory.
    only(
        c::SYS_mmap,
        &[
            &[Argument::bits(2, EXEC, 0)],
            &[Argument::bits(2, WRITE, 0)],
        ],
        "guest memory, heap, stacks; libraries that resolve names; nothing to write and execute",
    ),
    only(
        c::SYS_mprotect,
        &[&[Argument::bits(2, EXEC, 0)]],
        "guard pages, the heap",
    ),
    call(c::SYS_munmap, "the same"),
    call(c::SYS_mremap, "the heap"),
    call(c::SYS_madvise, "the heap, huge pages"),
    call(c::SYS_brk, "the heap"),
    call(c::SYS_mlock, "a disk's resident pages"),
    call(c::SYS_mlock2, "the same"),
    call(c::SYS_munlock, "the same"),
    call(c::SYS_mincore, "which pages are there"),
    call(
        c::SYS_memfd_create,
        "what outlives the process, tables of requests, ledgers",
    ),
    call(c::SYS_membarrier, "fences on all processors"),
    // Threads.
    only(
        c::SYS_clone,
        &[&[Argument::bits(0, THREAD, THREAD)]],
        "threads; no processes",
    ),
    call(c::SYS_clone3, "answered with ENOSYS: clone is used instead"),
    call(c::SYS_set_robust_list, "the beginning of a thread"),
    call(c::SYS_rseq, "the same"),
    call(c::SYS_futex, "locks, channels, joins"),
    call(c::SYS_sched_yield, "a worker that waits for kernel threads"),
    call(c::SYS_sched_getaffinity, "which processors there are"),
    call(c::SYS_sched_setaffinity, "pinning workers"),
    call(c::SYS_gettid, "logs"),
    call(c::SYS_getpid, "logs, the manager's messages"),
    call(c::SYS_exit, "the end of a thread"),
    call(c::SYS_exit_group, "the end"),
    only(
        c::SYS_prctl,
        &[
            &[Argument::is(0, NAME)],
            &[Argument::is(0, GET_NAME)],
            &[Argument::is(0, VMA)],
        ],
        "names of threads and of memory",
    ),
    // Signals.
    call(c::SYS_rt_sigaction, "handlers, of SIGBUS among others"),
    call(c::SYS_rt_sigprocmask, "threads, abort"),
    call(c::SYS_rt_sigreturn, "the end of a handler"),
    call(c::SYS_sigaltstack, "stacks for handlers"),
    call(c::SYS_tgkill, "abort"),
    call(c::SYS_restart_syscall, "after a stop"),
    // Files.
    call(
        c::SYS_openat,
        "configuration, disks, captures, /proc and /sys",
    ),
    call(c::SYS_close, "everything"),
    call(c::SYS_close_range, "inherited descriptors"),
    call(c::SYS_read, "files, eventfds, sockets"),
    call(c::SYS_readv, "the same"),
    call(c::SYS_pread64, "the same"),
    call(c::SYS_preadv, "the same"),
    call(c::SYS_preadv2, "guest memory, by threads"),
    call(c::SYS_write, "the same, logs"),
    call(c::SYS_writev, "the same"),
    call(c::SYS_pwrite64, "the same"),
    call(c::SYS_pwritev, "the same"),
    call(c::SYS_pwritev2, "guest memory, by threads"),
    call(c::SYS_lseek, "sizes, holes"),
    call(c::SYS_fstat, "kinds, sizes"),
    call(c::SYS_newfstatat, "the same"),
    call(c::SYS_statx, "the same"),
    call(c::SYS_statfs, "kinds of file systems"),
    call(c::SYS_fstatfs, "the same"),
    call(c::SYS_getdents64, "directories of /proc and /sys"),
    call(c::SYS_readlinkat, "the same"),
    call(c::SYS_faccessat, "whether a file may be used"),
    call(c::SYS_faccessat2, "the same"),
    call(c::SYS_getcwd, "relative paths"),
    call(c::SYS_fcntl, "locks, leases, seals, flags"),
    call(c::SYS_flock, "locks of disks and control sockets"),
    call(c::SYS_ftruncate, "memfds, images, ledgers"),
    call(c::SYS_fallocate, "discard, zeroes, images"),
    call(c::SYS_fsync, "what must last"),
    call(c::SYS_fdatasync, "the same"),
    call(c::SYS_copy_file_range, "copies"),
    call(c::SYS_sendfile, "the same"),
    call(c::SYS_unlinkat, "sockets"),
    call(c::SYS_renameat, "files replaced whole"),
    call(c::SYS_renameat2, "the same"),
    call(c::SYS_linkat, "the same, not over another"),
    call(c::SYS_mkdirat, "the directory of sockets"),
    call(c::SYS_fchmod, "modes of sockets and files"),
    call(c::SYS_fchmodat, "the same"),
    call(c::SYS_fchown, "a configuration that is another's"),
    call(c::SYS_umask, "sockets made with their mode"),
    only(
        c::SYS_ioctl,
        &[
            &[Argument::is(1, FIONBIO)],
            &[Argument::is(1, FIONREAD)],
            &[Argument::is(1, TCGETS)],
        ],
        "sockets that do not wait, whether a log is a terminal",
    ),
    // Waiting.
    call(c::SYS_epoll_create1, "workers, the control thread"),
    call(c::SYS_epoll_ctl, "the same"),
    call(c::SYS_epoll_pwait, "the same"),
    call(c::SYS_epoll_pwait2, "the same"),
    call(c::SYS_timerfd_create, "sleeps shorter than a millisecond"),
    call(c::SYS_timerfd_settime, "the same"),
    call(c::SYS_ppoll, "sessions"),
    call(c::SYS_eventfd2, "mailboxes, notifications"),
    call(c::SYS_pipe2, "the same"),
    call(c::SYS_dup, "descriptors for another owner"),
    call(c::SYS_dup3, "a session's connection under its number"),
    call(
        c::SYS_io_uring_setup,
        "engines and bells, limited by themselves",
    ),
    call(c::SYS_io_uring_enter, "the same"),
    call(c::SYS_io_uring_register, "the same"),
    call(c::SYS_io_setup, "bells where io_uring is forbidden"),
    call(c::SYS_io_submit, "the same"),
    call(c::SYS_io_getevents, "the same"),
    call(c::SYS_io_destroy, "the same"),
    // Sockets.
    only(
        c::SYS_socket,
        &[&[Argument::is(0, c::AF_UNIX as u32)]],
        "front-ends, control, the manager, the journal",
    ),
    only(
        c::SYS_socketpair,
        &[&[Argument::is(0, c::AF_UNIX as u32)]],
        "what is kept, sessions taken up, the runtime's signals",
    ),
    call(c::SYS_bind, "the same"),
    call(c::SYS_listen, "the same"),
    call(c::SYS_accept4, "the same"),
    call(c::SYS_connect, "the same"),
    call(c::SYS_shutdown, "the same"),
    call(c::SYS_sendto, "the same"),
    call(c::SYS_sendmsg, "the same"),
    call(c::SYS_recvfrom, "the same"),
    call(c::SYS_recvmsg, "the same"),
    call(c::SYS_getsockopt, "who is there"),
    call(c::SYS_setsockopt, "times to wait"),
    call(c::SYS_getsockname, "what is listened on"),
    call(c::SYS_getpeername, "who is there"),
    // Time, chance, identity.
    call(c::SYS_clock_gettime, "time"),
    call(c::SYS_clock_getres, "time"),
    call(c::SYS_clock_nanosleep, "pauses"),
    call(c::SYS_nanosleep, "pauses"),
    call(c::SYS_gettimeofday, "time"),
    call(c::SYS_getrandom, "keys of hashes"),
    call(c::SYS_uname, "the journal"),
    call(c::SYS_sysinfo, "the heap"),
    call(c::SYS_getuid, "who may control"),
    call(c::SYS_geteuid, "the same"),
    call(c::SYS_getgid, "the same"),
    call(c::SYS_getegid, "the same"),
    call(c::SYS_prlimit64, "limits of stacks, files, locked memory"),
    call(c::SYS_getrusage, "figures about itself"),
    call(c::SYS_getcpu, "the heap"),
    // Under older names.
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_open, "as openat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_stat, "as newfstatat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_lstat, "as newfstatat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_access, "as faccessat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_readlink, "as readlinkat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_unlink, "as unlinkat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_rename, "as renameat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_link, "as linkat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_mkdir, "as mkdirat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_rmdir, "as unlinkat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_chmod, "as fchmodat"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_poll, "as ppoll"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_epoll_wait, "as epoll_pwait"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_dup2, "as dup3"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_pipe, "as pipe2"),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_time, "time"),
];

/// What no daemon and none of its libraries ever does, and an intruder might.
pub(super) const FATAL: &[(c_long, &str)] = &[
    (c::SYS_execve, "programs: a daemon begins none"),
    (c::SYS_execveat, "the same"),
    (c::SYS_ptrace, "other processes' memory"),
    (c::SYS_process_vm_readv, "the same"),
    (c::SYS_process_vm_writev, "the same"),
    (c::SYS_pidfd_getfd, "other processes' files"),
    (c::SYS_open_by_handle_at, "files past their paths"),
    (c::SYS_init_module, "the kernel's code"),
    (c::SYS_finit_module, "the same"),
    (c::SYS_delete_module, "the same"),
    (c::SYS_kexec_load, "the same"),
    (c::SYS_bpf, "the same"),
    (c::SYS_perf_event_open, "the same"),
    (c::SYS_userfaultfd, "the kernel's races"),
    (c::SYS_mount, "file systems"),
    (c::SYS_umount2, "the same"),
    (c::SYS_pivot_root, "the same"),
    (c::SYS_chroot, "the same"),
    (c::SYS_open_tree, "the same"),
    (c::SYS_move_mount, "the same"),
    (c::SYS_fsopen, "the same"),
    (c::SYS_fsmount, "the same"),
    (c::SYS_unshare, "namespaces"),
    (c::SYS_setns, "the same"),
    (c::SYS_add_key, "keys"),
    (c::SYS_request_key, "the same"),
    (c::SYS_keyctl, "the same"),
    (c::SYS_reboot, "the machine"),
    (c::SYS_swapon, "the same"),
    (c::SYS_swapoff, "the same"),
    (c::SYS_settimeofday, "the same"),
];
