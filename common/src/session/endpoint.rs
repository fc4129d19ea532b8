//! Where front-ends and we meet: a socket that we listen on, or one that we connect to.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::keep::{Keeper, Kept as Document, LISTENER, Place};

/// Which side opens the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// We listen and front-ends connect (QEMU's default).
    #[default]
    Server,
    /// The front-end listens and we connect, again whenever it goes.
    Client,
}

/// Where a front-end and we meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Path of the unix socket.
    pub path: PathBuf,
    /// Who listens.
    pub mode: Mode,
}

/// An endpoint that is ready: bound, if we are the server. Separate from [`super::Server`] so that
/// a whole configuration can be bound before any of it serves.
#[derive(Debug)]
pub struct Listening {
    pub(super) endpoint: Endpoint,
    pub(super) listener: Option<UnixListener>,
    /// Where the listening socket is kept: front-ends that come during a restart wait in it.
    pub(super) place: Option<Place>,
    /// Nobody listened there before.
    fresh: bool,
    /// Why nobody can connect for now, although a predecessor listened there.
    pub(super) deaf: Option<String>,
}

impl Drop for Listening {
    /// One that is not served after all leaves nothing: neither its file, nor, with the manager, a
    /// socket that nobody accepts from.
    fn drop(&mut self) {
        if !self.fresh {
            return;
        }
        if self.listener.take().is_some() {
            let _ = std::fs::remove_file(&self.endpoint.path);
        }
        if let Some(place) = &mut self.place {
            place.clear();
        }
    }
}

impl Endpoint {
    /// Bind the socket, if we are to listen. A socket file nobody listens on is replaced.
    ///
    /// # Errors
    /// If somebody listens there already, or the path cannot be bound.
    pub fn listen(self) -> std::io::Result<Listening> {
        let listener = match self.mode {
            Mode::Client => None,
            Mode::Server => Some(bind(&self.path)?),
        };
        Ok(Listening {
            endpoint: self,
            listener,
            place: None,
            fresh: true,
            deaf: None,
        })
    }

    /// The same with the socket that a predecessor listened on, if it left one with `keeper`, which
    /// keeps it from now on. If that one is lost and cannot be bound again, the front-end that is
    /// connected is served all the same, and it is tried again ([`super::Server::deaf`]).
    ///
    /// # Errors
    /// As [`Endpoint::listen`], if no predecessor listened there.
    pub fn listen_kept(self, keeper: &Keeper) -> std::io::Result<Listening> {
        if self.mode == Mode::Client || !keeper.keeps() {
            return self.listen();
        }
        let name = self.path.display().to_string();
        let left = keeper.claim(LISTENER, &name);
        let served = left.is_some();
        if let Some((mut place, mut kept)) = left {
            // Somebody may have removed the file, and nobody would find the socket any more.
            if let Some(fd) = kept.take("listener").filter(|_| is_socket(&self.path)) {
                return Ok(Listening {
                    endpoint: self,
                    listener: Some(fd.into()),
                    place: Some(place),
                    fresh: false,
                    deaf: None,
                });
            }
            place.clear();
        }
        let mut listening = match self.clone().listen() {
            Err(error) if served => Listening {
                endpoint: self,
                listener: None,
                place: None,
                fresh: true,
                deaf: Some(error.to_string()),
            },
            bound => bound?,
        };
        let mut place = keeper.place();
        keep(
            &mut place,
            &listening.endpoint.path,
            listening.listener.as_ref(),
        );
        listening.place = Some(place);
        Ok(listening)
    }
}

/// Keep the listening socket at `path`; without one, that there was to be one.
pub(super) fn keep(place: &mut Place, path: &Path, listener: Option<&UnixListener>) {
    let name = path.display().to_string();
    let kept = Document::new(LISTENER, &name, &()).and_then(|mut kept| {
        if let Some(listener) = listener {
            kept.keep("listener", listener)?;
        }
        place.put(&kept)
    });
    if let Err(error) = kept {
        warn!(socket = name, %error, "front-ends that come during a restart are refused");
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

pub(super) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    use std::io::{Error, ErrorKind};
    let named =
        |e: Error, what: &str| Error::new(e.kind(), format!("{what} {}: {e}", path.display()));
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            let text = format!("{} exists and is not a socket", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        match connect(path) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
            Err(e) if e.kind() != ErrorKind::WouldBlock => {
                return Err(named(e, "cannot tell who listens on"));
            }
            _ => {
                let text = format!("another process listens on {}", path.display());
                return Err(Error::new(ErrorKind::AddrInUse, text));
            }
        }
        std::fs::remove_file(path).map_err(|e| named(e, "cannot replace stale socket"))?;
    }
    let listener = UnixListener::bind(path).map_err(|e| match path.parent() {
        Some(dir) if e.kind() == ErrorKind::NotFound => {
            let (path, dir) = (path.display(), dir.display());
            let text = format!("cannot listen on {path}: there is no directory {dir}; make it");
            Error::new(e.kind(), text)
        }
        _ => named(e, "cannot listen on"),
    })?;
    // The VMM may run as another user of the same group.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660));
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connect without waiting: a listener whose queue is full is WOULDBLOCK.
pub(super) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}
