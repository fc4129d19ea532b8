//! What a process may hold: as many file descriptors as it is allowed to.
//!
//! A session takes some six descriptors, so the 1,024 that a shell gives (`RLIMIT_NOFILE`, its soft
//! limit) end at 150 disks. The soft limit is kept low for programs that still use `select`; ours
//! wait in `epoll` and `io_uring`, and raise it to the hard one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to what the process may raise it to; says so if that is refused,
/// and goes on with what it had.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_allowed() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
