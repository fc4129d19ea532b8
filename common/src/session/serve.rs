//! The thread behind a socket: wait for a front-end (or connect to it), run its session, again.
//!
//! One front-end at a time: the next one waits in the listen queue until the first has gone, so
//! two front-ends never share a device and a storm of connections costs no more than its backlog.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::{info, warn};

use crate::logging::events;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::deaf::Deaf;
use super::divert::{Next, next};
use super::endpoint::{Endpoint, Listening, Mode, connect};
use super::error::SessionError;
use super::kept::{Keeping, Kept};
use super::notifier::{Notifier, Notify};
use super::state::{Session, Status, lock};
use super::{Alarm, Device};
use crate::keep::{Keeper, Place};

/// First and longest pause between two attempts to reach a front-end's socket.
pub(super) const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// Stack of a session's thread: messages are at most 4 KiB, and 64 disks are 64 threads.
const STACK: usize = 256 * 1024;

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
pub(super) struct Shared {
    stop: AtomicBool,
    /// The session is for a successor.
    pub(super) leave: AtomicBool,
    /// A predecessor's session may go on.
    go: AtomicBool,
    /// A quarantined session is to be tried again.
    pub(super) release: AtomicBool,
    pub(super) bell: OwnedFd,
    /// The connection in use, to hang it up.
    current: Mutex<Option<Arc<Alarm>>>,
    pub(super) status: Arc<Mutex<Status>>,
    pub(super) notify: Mutex<Option<Box<dyn Notify>>>,
    pub(super) keeper: Keeper,
    /// Where the listening socket is kept.
    pub(super) place: Mutex<Option<Place>>,
    /// There is none for now.
    pub(super) deaf: Deaf,
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
        Server::start_kept(listening, device, Keeping::nobody())
    }

    /// The same; its sessions are kept as `keeping` says, beginning with what a predecessor left,
    /// which goes on after [`Server::go`].
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_kept<D>(
        mut listening: Listening,
        device: Arc<D>,
        keeping: Keeping,
    ) -> std::io::Result<Server>
    where
        D: Device + std::fmt::Debug,
    {
        let Keeping { keeper, left } = keeping;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            leave: AtomicBool::new(false),
            go: AtomicBool::new(left.is_none()),
            release: AtomicBool::new(false),
            bell,
            current: Mutex::new(None),
            status: Arc::default(),
            notify: Mutex::new(None),
            keeper,
            place: Mutex::new(listening.place.take()),
            deaf: Deaf::of(listening.deaf.take()),
        });
        let endpoint = listening.endpoint.clone();
        let mode = endpoint.mode;
        let listener = listening.listener.take();
        let (mine, path) = (Arc::clone(&shared), endpoint.path.clone());
        if shared.deaf.why().is_some() {
            Shared::listen_later(&shared, device.name(), &path)?;
        }
        let thread = std::thread::Builder::new()
            .name(thread_name(device.name()))
            .stack_size(STACK)
            .spawn(move || {
                if let Some(left) = left
                    && mine.gate()
                {
                    mine.resume(left, &device);
                }
                match listener.or_else(|| mine.late_listener(mode)) {
                    Some(listener) => mine.accept_loop(&listener, &device),
                    None => mine.connect_loop(&path, &device),
                }
            })?;
        Ok(Server {
            shared,
            thread: Some(thread),
            endpoint,
        })
    }

    /// Why no front-end can connect for now, if a predecessor's listening socket was lost and
    /// cannot be bound again. The one that is connected is served, and it is tried again.
    #[must_use]
    pub fn deaf(&self) -> Option<String> {
        self.shared.deaf.why()
    }

    /// What the session looks like now.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = lock(&self.shared.status).clone();
        if let Some(why) = self.deaf() {
            let why = format!("no front-end can connect: {why}; it is tried again all the time");
            status.last_error = Some(why);
        }
        status
    }

    /// Tell the front-end that configuration space changed; false if it cannot be told. Waits
    /// while the session carries out a message, as a drain.
    #[must_use]
    pub fn config_changed(&self) -> bool {
        self.notifier().config_changed()
    }

    /// What tells the front-end, for a caller that must not hold on to the server meanwhile.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        Notifier::of(&self.shared)
    }

    /// Hang up, drain and end the thread; the socket file of a server is removed.
    pub fn stop(mut self) {
        self.shut();
    }

    /// What changed in the session by other ways than messages is kept as well.
    pub fn refresh(&self) {
        let notify = self.shared.notify.lock();
        if let Some(session) = &*notify.unwrap_or_else(PoisonError::into_inner) {
            session.refresh();
        }
    }

    /// All is ready for the session that a predecessor left.
    pub fn go(&self) {
        if !self.shared.go.swap(true, Ordering::SeqCst) {
            // Fails only if the counter is full, and then the thread is awake.
            let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
        }
    }

    /// Try a quarantined session again.
    pub fn release(&self) {
        self.shared.release.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
    }

    /// End the thread with nothing in flight, and leave the session and the listening socket to a
    /// successor of this process. Where nobody keeps them, this is [`Server::stop`].
    pub fn leave(mut self) {
        if !self.shared.keeper.keeps() {
            return;
        }
        self.shared.leave.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn wake(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
    }

    fn shut(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.wake();
        // First: who is about to listen after all has done so by then, or sees that it is to stop.
        let bound = self.shared.deaf.why().is_none();
        if let Some(place) = self.shared.place().as_mut() {
            place.clear();
        }
        if let Some(alarm) = self.shared.current().as_ref() {
            alarm.raise();
        }
        if self.endpoint.mode == Mode::Server && bound {
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

    pub(super) fn place(&self) -> std::sync::MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Wait for [`Server::go`]; false if the server is to stop.
    fn gate(&self) -> bool {
        while !self.go.load(Ordering::SeqCst) && !self.stopping() {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN)];
            let _ = poll(&mut fds, None);
        }
        // The bell is read, or it would ring for ever; it is rung again by whoever stops us later.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        !self.stopping()
    }

    /// Wait until `fd` is readable; false if the server is to stop, or after `timeout`.
    pub(super) fn wait(&self, fd: Option<&UnixListener>, timeout: Option<Duration>) -> bool {
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
        let Some((alarm, peek)) = self.begin(&stream, device) else {
            return;
        };
        info!(name: events::SESSION_ATTACHED, device = device.name(), "front-end connected");
        lock(&self.status).sessions += 1;
        let mut session = Session::new(Arc::clone(device), alarm, Arc::clone(&self.status));
        if self.keeper.keeps() {
            let place = self.keeper.place();
            match Kept::new(place, &stream, None, device.max_queues()) {
                Ok(kept) => session.keep_in(kept),
                Err(error) => {
                    warn!(name: events::SESSION_NOT_KEPT, device = device.name(), %error,
                        "the session cannot be kept");
                }
            }
        }
        let session = Arc::new(Mutex::new(session));
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        self.run(handler, &peek, &session);
    }

    /// A connection is there: its alarm, and a second handle; `None` if it cannot be served.
    pub(super) fn begin<D: Device>(
        &self,
        stream: &UnixStream,
        device: &Arc<D>,
    ) -> Option<(Arc<Alarm>, UnixStream)> {
        let (Ok(()), Ok(peek), Ok(hangup)) = (
            stream.set_nonblocking(false),
            stream.try_clone(),
            stream.try_clone(),
        ) else {
            let device = device.name();
            warn!(device, "no file descriptors left for a session");
            return None;
        };
        let alarm = Arc::new(Alarm::new(hangup));
        *self.current() = Some(Arc::clone(&alarm));
        if self.stopping() {
            return None;
        }
        let mut status = lock(&self.status);
        *status = Status {
            connected: true,
            sessions: status.sessions,
            resumed: status.resumed,
            ..Status::default()
        };
        Some((alarm, peek))
    }

    /// The conversation, and what comes after it.
    pub(super) fn run<D: Device + std::fmt::Debug>(
        &self,
        handler: BackendReqHandler<Mutex<Session<D>>>,
        peek: &UnixStream,
        session: &Arc<Mutex<Session<D>>>,
    ) {
        *self.notify.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(Arc::clone(session)));
        let run = std::panic::AssertUnwindSafe(|| self.converse(handler, peek, session));
        let why = std::panic::catch_unwind(run).unwrap_or_else(|_| Some("panicked".to_owned()));
        *self.notify.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let why = {
            let mut session = locked(session);
            // A worker that met truncated memory hung up, which looks like the front-end's wish.
            let lost = session.mem.poisoned();
            if self.leave.load(Ordering::SeqCst) && why.is_none() && !lost {
                session.leave();
                info!(
                    device = session.device.name(),
                    "the session is left to a successor"
                );
                return;
            }
            session.forget();
            session.end();
            why.or_else(|| lost.then(|| SessionError::Truncated.to_string()))
        };
        let device = locked(session).device.name().to_owned();
        match &why {
            None => info!(name: events::SESSION_DETACHED, device, "front-end disconnected"),
            Some(why) => warn!(name: events::SESSION_ENDED, device, why, "session ended"),
        }
        self.end(why);
    }

    /// No front-end is there any more.
    pub(super) fn end(&self, why: Option<String>) {
        *self.current() = None;
        let mut status = lock(&self.status);
        *status = Status {
            sessions: status.sessions,
            resumed: status.resumed,
            last_error: why.or_else(|| status.last_error.take()),
            ..Status::default()
        };
    }

    /// Handle messages until the connection ends or the server is to stop; `Some` says why if that
    /// was not anybody's wish.
    fn converse<D: Device>(
        &self,
        mut handler: BackendReqHandler<Mutex<Session<D>>>,
        peek: &UnixStream,
        session: &Mutex<Session<D>>,
    ) -> Option<String> {
        loop {
            let mut fds = [
                PollFd::new(&self.bell, PollFlags::IN),
                PollFd::new(peek, PollFlags::IN),
            ];
            let polled = poll(&mut fds, None);
            if self.leave.load(Ordering::SeqCst) {
                return None;
            }
            if polled.is_err() || fds.get(1).is_none_or(|f| f.revents().is_empty()) {
                if self.stopping() {
                    return None;
                }
                continue;
            }
            if let ControlFlow::Break(why) = exchange(&mut handler, peek, session) {
                return why;
            }
        }
    }
}

/// A poisoned lock only means that a message's handler panicked: the session ends then.
pub(super) fn locked<D: Device>(
    session: &Mutex<Session<D>>,
) -> std::sync::MutexGuard<'_, Session<D>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
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
    let session = locked(session);
    session.set_handling(false);
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
