//! The thread behind a socket: wait for a front-end (or connect to it), run its session, again.
//!
//! One front-end at a time: the next one waits in the listen queue until the first has gone, so
//! two front-ends never share a device and a storm of connections costs no more than its backlog.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::{info, warn};
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::divert::{Next, next};
use super::error::SessionError;
use super::state::{Session, Status, lock};
use super::{Alarm, Device};

/// First and longest pause between two attempts to reach a front-end's socket.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// Stack of a session's thread: messages are at most 4 KiB, and 64 disks are 64 threads.
const STACK: usize = 256 * 1024;

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

/// An endpoint that is ready: bound, if we are the server. Separate from [`Server`] so that a whole
/// configuration can be bound before any of it serves.
#[derive(Debug)]
pub struct Listening {
    endpoint: Endpoint,
    listener: Option<UnixListener>,
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
        })
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
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
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A thread's name has at most 15 bytes, none of them zero.
pub(super) fn thread_name(device: &str) -> String {
    let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    let short: String = device.chars().filter(plain).take(13).collect();
    format!("s:{short}")
}

/// A device being served at an endpoint, until it is dropped or stopped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    endpoint: Endpoint,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    bell: OwnedFd,
    /// The connection in use, to hang it up.
    current: Mutex<Option<Arc<Alarm>>>,
    status: Arc<Mutex<Status>>,
    notify: Mutex<Option<Box<dyn Notify>>>,
}

/// A session that can be told about a changed configuration space, whatever its device.
trait Notify: Send + std::fmt::Debug {
    fn config_changed(&self) -> bool;
}

impl<D: Device + std::fmt::Debug> Notify for Arc<Mutex<Session<D>>> {
    fn config_changed(&self) -> bool {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .notify_config_change()
    }
}

impl Server {
    /// Serve `device` at `listening` on a thread of its own.
    ///
    /// # Errors
    /// If the thread or its eventfd cannot be made.
    pub fn start<D>(listening: Listening, device: Arc<D>) -> std::io::Result<Server>
    where
        D: Device + std::fmt::Debug,
    {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            bell,
            current: Mutex::new(None),
            status: Arc::default(),
            notify: Mutex::new(None),
        });
        let Listening { endpoint, listener } = listening;
        let (mine, path) = (Arc::clone(&shared), endpoint.path.clone());
        let thread = std::thread::Builder::new()
            .name(thread_name(device.name()))
            .stack_size(STACK)
            .spawn(move || match listener {
                Some(listener) => mine.accept_loop(&listener, &device),
                None => mine.connect_loop(&path, &device),
            })?;
        Ok(Server {
            shared,
            thread: Some(thread),
            endpoint,
        })
    }

    /// What the session looks like now.
    #[must_use]
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }

    /// Tell the front-end that configuration space changed; false if it cannot be told.
    #[must_use]
    pub fn config_changed(&self) -> bool {
        let notify = self
            .shared
            .notify
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        notify.as_ref().is_some_and(|n| n.config_changed())
    }

    /// Hang up, drain and end the thread; the socket file of a server is removed.
    pub fn stop(mut self) {
        self.shut();
    }

    fn shut(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.stop.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
        if let Some(alarm) = self.shared.current().as_ref() {
            alarm.raise();
        }
        if self.endpoint.mode == Mode::Server {
            let _ = std::fs::remove_file(&self.endpoint.path);
        }
        let _ = thread.join();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Shared {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<Arc<Alarm>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Wait until `fd` is readable; false if the server is to stop, or after `timeout`.
    fn wait(&self, fd: Option<&UnixListener>, timeout: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
        if let Some(fd) = fd {
            fds.push(PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        }
        let timeout = timeout.and_then(|t| rustix::event::Timespec::try_from(t).ok());
        let _ = poll(&mut fds, timeout.as_ref());
        !self.stopping() && fds.get(1).is_some_and(|f| !f.revents().is_empty())
    }

    fn accept_loop<D: Device + std::fmt::Debug>(&self, listener: &UnixListener, device: &Arc<D>) {
        while !self.stopping() {
            if !self.wait(Some(listener), None) {
                continue;
            }
            match listener.accept() {
                Ok((stream, _)) => self.session(stream, device),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    warn!(device = device.name(), error = %e, "cannot accept a front-end");
                    self.wait(None, Some(RETRY[1])); // out of fds: do not spin
                }
            }
        }
    }

    fn connect_loop<D: Device + std::fmt::Debug>(&self, path: &Path, device: &Arc<D>) {
        let mut pause = RETRY[0];
        while !self.stopping() {
            match connect(path) {
                Ok(stream) => {
                    pause = RETRY[0];
                    self.session(stream, device);
                    self.wait(None, Some(pause)); // a front-end that hangs up at once
                }
                Err(_) => {
                    self.wait(None, Some(pause));
                    pause = (pause * 2).min(RETRY[1]);
                }
            }
        }
    }

    /// Run one session to its end, whatever that is.
    fn session<D: Device + std::fmt::Debug>(&self, stream: UnixStream, device: &Arc<D>) {
        let name = device.name().to_owned();
        let (Ok(()), Ok(peek), Ok(hangup)) = (
            stream.set_nonblocking(false),
            stream.try_clone(),
            stream.try_clone(),
        ) else {
            warn!(device = name, "no file descriptors left for a session");
            return;
        };
        let alarm = Arc::new(Alarm::new(hangup));
        *self.current() = Some(Arc::clone(&alarm));
        if self.stopping() {
            return;
        }
        let sessions = lock(&self.status).sessions + 1;
        *lock(&self.status) = Status {
            connected: true,
            sessions,
            ..Status::default()
        };
        info!(device = name, "front-end connected");
        let session = Session::new(Arc::clone(device), alarm, Arc::clone(&self.status));
        let session = Arc::new(Mutex::new(session));
        *self.notify.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(Arc::clone(&session)));
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        let run = std::panic::AssertUnwindSafe(|| converse(handler, &peek, &session));
        let why = std::panic::catch_unwind(run).unwrap_or_else(|_| Some("panicked".to_owned()));
        let why = {
            let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
            session.end();
            // A worker that met truncated memory hung up, which looks like the front-end's wish.
            let lost = session.mem.poisoned();
            why.or_else(|| lost.then(|| SessionError::Truncated.to_string()))
        };
        *self.notify.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.current() = None;
        match &why {
            None => info!(device = name, "front-end disconnected"),
            Some(why) => warn!(device = name, why, "session ended"),
        }
        let mut status = lock(&self.status);
        *status = Status {
            sessions,
            last_error: why.or_else(|| status.last_error.take()),
            ..Status::default()
        };
    }
}

/// Handle messages until the connection ends; `Some` says why if that was not the front-end's wish.
fn converse<D: Device>(
    mut handler: BackendReqHandler<Mutex<Session<D>>>,
    peek: &UnixStream,
    session: &Mutex<Session<D>>,
) -> Option<String> {
    loop {
        if let ControlFlow::Break(why) = exchange(&mut handler, peek, session) {
            return why;
        }
    }
}

/// Wait for one message and handle it; breaks, with the reason, if the connection is over.
pub(super) fn exchange<D: Device>(
    handler: &mut BackendReqHandler<Mutex<Session<D>>>,
    peek: &UnixStream,
    session: &Mutex<Session<D>>,
) -> ControlFlow<Option<String>> {
    use ControlFlow::{Break, Continue};
    let (mut refused, mut told) = (None, true);
    match next(peek, session) {
        Ok(Next::Closed) => return Break(None),
        Ok(Next::Done) => {}
        Ok(Next::Refused(why)) => refused = Some(why),
        Ok(Next::Crate(header)) => match handler.handle_request() {
            Ok(()) => {}
            Err(VhostError::Disconnected) => return Break(None),
            Err(VhostError::ReqHandlerError(e)) => {
                told = header.is_acknowledged();
                refused = Some(e.to_string());
            }
            Err(e) => return Break(Some(format!("{header}: {e}"))),
        },
        Err(e) => return Break(Some(e.to_string())),
    }
    let session = session.lock().unwrap_or_else(PoisonError::into_inner);
    session.report();
    if let Some(why) = refused {
        // The front-end was told, if it asked, and may do better next time.
        if !told || !session.speaks(Protocol::REPLY_ACK) {
            return Break(Some(why));
        }
        warn!(device = session.device.name(), why, "message refused");
        session.note(why);
    }
    Continue(())
}
