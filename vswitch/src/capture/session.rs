//! Captures as the control thread runs them: from an order to a stream of pcapng, and to its end.
//!
//! ```text
//! order ─▶ place (at most 4) ─▶ taps on all workers ─▶ every 5 ms: drain, encode, send
//!                                                         │
//!      count, time, DELETE, client gone or stuck ◀────────┘
//!                     └─▶ taps off ─▶ last drain ─▶ statistics ─▶ remembered
//! ```
//!
//! A capture lives in a task of its own, so that it ends in order whatever becomes of the request
//! that asked for it. Its memory is bounded: the rings, what one drain takes, and [`CHUNKS`] of
//! that on their way to the client. A client that does not read fills these; from then on the
//! workers count what they would have captured as missed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use towpath_common::clock::Clock;

use super::anchor::Anchor;
use super::pcapng::Pcapng;
use super::tap::{Captured, Reader, Tap, open};
use super::{CAPTURES, CaptureId, Order, OrderError};
use crate::table::PortNo;

/// How often the rings are drained.
const PERIOD: Duration = Duration::from_millis(5);
/// Bytes taken from each ring at a time: 100 MB/s.
const DRAIN_BYTES: usize = 512 << 10;
/// Chunks on their way to the client.
const CHUNKS: usize = 4;
/// How long a client may leave the stream unread, such as a person who looks at a page of it.
const STALL: Duration = Duration::from_secs(60);
/// Ended captures that can still be asked about.
const REMEMBERED: usize = 16;

/// What captures need of the data plane. Verbs may be called from any thread; `tap` and `untap`
/// may block for as long as a worker takes to finish a burst.
pub trait Tapping: Send + Sync {
    /// Number of workers; it does not change.
    fn workers(&self) -> usize;

    /// The port called `name`.
    fn port(&self, name: &str) -> Option<PortNo>;

    /// What a port is called; none if it is gone.
    fn port_name(&self, port: PortNo) -> Option<String>;

    /// Hands a tap to a worker.
    ///
    /// # Errors
    /// A sentence, if the worker does not answer.
    fn tap(&self, worker: usize, tap: Tap) -> Result<(), String>;

    /// Takes a tap back from a worker and drops it; nothing happens if it is not there.
    fn untap(&self, worker: usize, id: CaptureId);
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It has as many frames as were asked for.
    Count,
    /// It lasted as long as was asked for.
    Time,
    /// It was told to.
    Stopped,
    /// The client closed the connection.
    ClientGone,
    /// The client did not read for a minute.
    ClientStuck,
    /// It could not be written.
    Broken,
}

/// A capture as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureStatus {
    /// Its number.
    pub id: u64,
    /// What was asked for.
    pub order: Order,
    /// How long it has been running, or ran.
    pub seconds: f64,
    /// Frames captured.
    pub captured: u64,
    /// Frames that matched and could not be taken.
    pub missed: u64,
    /// Bytes of pcapng made.
    pub bytes: u64,
    /// Why it ended; none while it runs.
    pub end: Option<End>,
}

struct Running {
    id: CaptureId,
    order: Order,
    started: Instant,
    captured: AtomicU64,
    missed: AtomicU64,
    bytes: AtomicU64,
    stop: Notify,
}

impl Running {
    fn status(&self, end: Option<End>) -> CaptureStatus {
        CaptureStatus {
            id: self.id.0,
            order: self.order.clone(),
            seconds: self.started.elapsed().as_secs_f64(),
            captured: self.captured.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            end,
        }
    }
}

#[derive(Default)]
struct Book {
    /// Captures begun so far.
    begun: u64,
    running: Vec<Arc<Running>>,
    ended: VecDeque<CaptureStatus>,
}

/// Why a capture did not begin.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The order makes no sense here.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Every place is taken.
    #[error("{CAPTURES} captures are running already; `vswitch capture --list` shows them")]
    Full,
    /// The data plane did not take it.
    #[error("cannot start the capture: {0}")]
    Plane(String),
}

/// All captures of a daemon.
pub struct Captures {
    plane: Arc<dyn Tapping>,
    clock: Clock,
    /// [`STALL`], but in tests.
    stall: Duration,
    book: Mutex<Book>,
}

impl std::fmt::Debug for Captures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Captures")
            .field("running", &self.book().running.len())
            .finish_non_exhaustive()
    }
}

impl Captures {
    /// None yet. `clock` is that of the workers.
    #[must_use]
    pub fn new(plane: Arc<dyn Tapping>, clock: Clock) -> Captures {
        Captures {
            plane,
            clock,
            stall: STALL,
            book: Mutex::default(),
        }
    }

    /// Nothing in here can be left half done by a panic.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that run, and some that have ended; the latest last.
    #[must_use]
    pub fn list(&self) -> Vec<CaptureStatus> {
        let book = self.book();
        let running = book.running.iter().map(|running| running.status(None));
        book.ended.iter().cloned().chain(running).collect()
    }

    /// Tells a capture to end; its stream then ends in order. False if it does not run.
    #[must_use]
    pub fn stop(&self, id: CaptureId) -> bool {
        let book = self.book();
        let found = book.running.iter().find(|running| running.id == id);
        found.inspect(|running| running.stop.notify_one()).is_some()
    }

    /// Begins a capture: its number and its pcapng. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`CaptureError`]; nothing runs then.
    pub async fn start(
        self: &Arc<Self>,
        order: Order,
    ) -> Result<(CaptureId, mpsc::Receiver<Bytes>), CaptureError> {
        let filter = order.resolve(|name| self.plane.port(name))?;
        let running = self.place(order).ok_or(CaptureError::Full)?;
        let id = running.id;
        let workers = self.plane.workers();
        let (taps, reader) = open(id, &filter, running.order.snaplen(), workers);
        let (chunks, stream) = mpsc::channel(CHUNKS);
        let (begun, outcome) = oneshot::channel();
        let all = Arc::clone(self);
        let (theirs, run) = (Arc::clone(self), Arc::clone(&running));
        // From here on it does not matter whether anybody waits for the outcome.
        let task = tokio::spawn(async move {
            match theirs.install(taps).await {
                Ok(()) => {
                    let _ = begun.send(Ok(()));
                    theirs.run(&run, reader, &chunks).await
                }
                Err(error) => {
                    theirs.uninstall(id).await;
                    let _ = begun.send(Err(error));
                    End::Broken
                }
            }
        });
        // A fault in there must not cost a place, nor leave the workers copying for nobody.
        tokio::spawn(async move {
            let end = match task.await {
                Ok(end) => end,
                Err(error) => all.broken(&running, &error).await,
            };
            all.remember(&running, end);
        });
        let lost = |_| Err("the task that ran it has ended".to_owned());
        outcome
            .await
            .unwrap_or_else(lost)
            .map_err(CaptureError::Plane)?;
        Ok((id, stream))
    }

    /// Takes one of the places.
    fn place(&self, order: Order) -> Option<Arc<Running>> {
        let mut book = self.book();
        if book.running.len() >= CAPTURES {
            return None;
        }
        book.begun += 1;
        let running = Arc::new(Running {
            id: CaptureId(book.begun),
            order,
            started: Instant::now(),
            captured: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            stop: Notify::new(),
        });
        book.running.push(Arc::clone(&running));
        Some(running)
    }

    fn remember(&self, running: &Running, end: End) {
        let status = running.status(Some(end));
        tracing::info!(
            capture = status.id,
            captured = status.captured,
            missed = status.missed,
            ?end,
            "a capture ended"
        );
        let mut book = self.book();
        book.running.retain(|other| other.id != running.id);
        if book.ended.len() == REMEMBERED {
            book.ended.pop_front();
        }
        book.ended.push_back(status);
    }

    async fn install(&self, taps: Vec<Tap>) -> Result<(), String> {
        let plane = Arc::clone(&self.plane);
        let installed = spawn_blocking(move || {
            let mut taps = taps.into_iter().enumerate();
            taps.try_for_each(|(worker, tap)| plane.tap(worker, tap))
        });
        installed.await.map_err(|error| error.to_string())?
    }

    async fn uninstall(&self, id: CaptureId) {
        let plane = Arc::clone(&self.plane);
        let gone = spawn_blocking(move || {
            (0..plane.workers()).for_each(|worker| plane.untap(worker, id));
        });
        if let Err(error) = gone.await {
            tracing::error!(%error, capture = id.0, "a capture could not be taken off the workers");
        }
    }

    /// Streams until there is a reason to end; then ends in order.
    async fn run(&self, running: &Running, reader: Reader, chunks: &mpsc::Sender<Bytes>) -> End {
        let file = match Pcapng::new(running.order.snaplen()) {
            Ok(file) => file,
            Err(error) => return self.broken(running, &error).await,
        };
        let mut stream = Stream {
            running,
            reader,
            file,
            left: running.order.count.unwrap_or(u64::MAX),
        };
        let end = self.stream(&mut stream, chunks).await;
        self.uninstall(running.id).await;
        if matches!(end, End::ClientGone | End::ClientStuck | End::Broken) {
            stream
                .running
                .missed
                .store(stream.reader.missed(), Ordering::Relaxed);
            return end;
        }
        // What the workers had written before the taps were taken off.
        let last = stream.drain(self, usize::MAX).and_then(|()| {
            let anchor = Anchor::new(&self.clock);
            stream.file.end(anchor.wall, stream.reader.missed())
        });
        if let Err(error) = last {
            return self.broken(running, &error).await;
        }
        match stream.send(chunks, self.stall).await {
            Ok(()) => end,
            Err(why) => why,
        }
    }

    async fn broken(&self, running: &Running, error: &(dyn std::error::Error + Sync)) -> End {
        tracing::error!(%error, capture = running.id.0, "a capture could not be written");
        self.uninstall(running.id).await;
        End::Broken
    }

    async fn stream(&self, stream: &mut Stream<'_>, chunks: &mpsc::Sender<Bytes>) -> End {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let seconds = stream.running.order.seconds.unwrap_or(u64::MAX);
        loop {
            tokio::select! {
                () = chunks.closed() => return End::ClientGone,
                () = stream.running.stop.notified() => return End::Stopped,
                _ = ticks.tick() => {}
            }
            if let Err(error) = stream.drain(self, DRAIN_BYTES) {
                tracing::error!(%error, "a captured frame could not be written");
                return End::Broken;
            }
            if let Err(why) = stream.send(chunks, self.stall).await {
                return why;
            }
            if stream.left == 0 {
                return End::Count;
            }
            if stream.running.started.elapsed().as_secs() >= seconds {
                return End::Time;
            }
        }
    }
}

/// One capture between its rings and its client.
struct Stream<'a> {
    running: &'a Running,
    reader: Reader,
    file: Pcapng,
    /// Frames still wanted.
    left: u64,
}

impl Stream<'_> {
    /// Encodes what the workers have written, up to about `bytes` of each.
    fn drain(
        &mut self,
        all: &Captures,
        bytes: usize,
    ) -> Result<(), pcap_file::pcapng::PcapNgWriteError> {
        let anchor = Anchor::new(&all.clock);
        self.file.rename(|port| all.plane.port_name(port));
        let (file, left) = (&mut self.file, &mut self.left);
        let name = |port: PortNo| {
            let name = all.plane.port_name(port);
            name.unwrap_or_else(|| format!("port {}", port.0))
        };
        self.reader.drain(bytes, |frame: &Captured<'_>| {
            if *left == 0 {
                return Ok(());
            }
            *left -= 1;
            file.frame(frame, anchor.wall(frame.time), name)
        })?;
        let running = self.running;
        running
            .captured
            .store(self.file.captured(), Ordering::Relaxed);
        running
            .missed
            .store(self.reader.missed(), Ordering::Relaxed);
        Ok(())
    }

    /// Sends what was encoded, if anything was. Who asks meanwhile hears what is missed by then.
    async fn send(&mut self, chunks: &mpsc::Sender<Bytes>, stall: Duration) -> Result<(), End> {
        let chunk = self.file.take();
        if chunk.is_empty() {
            return Ok(());
        }
        self.running
            .bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let sending = timeout(stall, chunks.send(Bytes::from(chunk)));
        tokio::pin!(sending);
        loop {
            tokio::select! {
                sent = &mut sending => return match sent {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(_)) => Err(End::ClientGone),
                    Err(_) => Err(End::ClientStuck),
                },
                () = sleep(PERIOD) => {
                    let missed = self.reader.missed();
                    self.running.missed.store(missed, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
