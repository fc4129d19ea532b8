//! The listening end of a control socket: claimed before anything else, removed at the end.
//!
//! A path is taken over only from a daemon that is gone: a socket on which nobody answers. A live
//! daemon's socket, or a file that is no socket, is never touched.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Access;

/// Owner and group may connect: what a VM's disks are doing is nobody else's business.
const SOCKET_MODE: u32 = 0o660;
/// Of a socket whose clients are judged one by one ([`Access`]).
const OPEN_MODE: u32 = 0o666;
/// Anybody may look up the sockets inside; each socket guards itself.
const DIRECTORY_MODE: u32 = 0o755;

/// Why a socket could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "another daemon is listening on {}: stop it, or choose another socket with --control",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a socket has that name.
    #[error("{} exists and is not a socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound, listening unix socket; dropping it removes the path again.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Of the socket file, if it is ours to remove.
    inode: Option<u64>,
    access: Arc<Access>,
}

impl ControlSocket {
    /// As [`ControlSocket::bind`], or on the socket that the service manager listens on for us;
    /// that one stays when we go.
    ///
    /// # Errors
    /// As [`ControlSocket::bind`].
    pub fn claim(path: &Path, opened: Option<OwnedFd>) -> Result<Self, SocketError> {
        match opened {
            None => Self::bind(path),
            Some(listener) => Ok(Self {
                listener: listener.into(),
                path: path.to_owned(),
                inode: None,
                access: Arc::default(),
            }),
        }
    }

    /// Listens on `path`, creating its directory (0755) and taking over a stale socket.
    ///
    /// # Errors
    /// [`SocketError`]: somebody listens there, the path is no socket, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let system = |action: &'static str| {
            move |source| SocketError::System {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if let Some(directory) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)
                .map_err(system("create the directory of"))?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(system("listen on"))?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
            .map_err(system("set the mode of"))?;
        let inode = fs::symlink_metadata(path).map_err(system("look at"))?.ino();
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: Some(inode),
            access: Arc::default(),
        })
    }

    /// Let `access` decide who is answered, not the socket's mode: where it decides something, the
    /// socket is opened to all. One that a manager opened has the mode that the manager gave it.
    ///
    /// # Errors
    /// If the mode cannot be set.
    pub fn guarded(mut self, access: &Access) -> Result<Self, SocketError> {
        if !access.is_open() && self.inode.is_some() {
            let open = Permissions::from_mode(OPEN_MODE);
            fs::set_permissions(&self.path, open).map_err(|source| SocketError::System {
                action: "set the mode of",
                path: self.path.clone(),
                source,
            })?;
        }
        self.access = Arc::new(access.clone());
        Ok(self)
    }

    /// Who is answered.
    #[must_use]
    pub fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access)
    }

    /// The listener, for [`serve`](super::server::serve).
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or made non-blocking.
    pub fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only our own: a successor may have taken the path over already.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| Some(meta.ino()) == self.inode) {
            let _gone_is_what_we_want = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on; says why not otherwise.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| SocketError::System {
                action: "remove the stale socket",
                path: path.to_owned(),
                source,
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_taken_over_and_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/x.sock");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let live = ControlSocket::bind(&path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert!(matches!(&error, SocketError::InUse { path: named } if *named == path));
        UnixStream::connect(live.path()).unwrap();
    }

    #[test]
    fn a_file_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, "data").unwrap();
        assert!(matches!(
            ControlSocket::bind(&path),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let old = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = ControlSocket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }
}
