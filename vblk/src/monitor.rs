//! Looks after the workers from outside: logs what they saw, measures how busy they are, and ends
//! the process if one of them died.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_common::clock::Cycles;
use towpath_common::logging::events::{RING_BROKEN, WORKER_DIED};
use towpath_common::worker::Worker;
use tracing::{error, warn};

use crate::events;
use crate::plane::Change;
use crate::stats::{Event, Events};

/// How often events are taken to the log and workers are looked after.
const MONITOR: Duration = Duration::from_millis(250);

/// What the monitor saw of a worker, for its busy ratio.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) busy: u64,
    pub(crate) ratio: f64,
}

/// Log events, call `refresh`, and end the process if a worker died: its successor finds all state
/// in place.
pub(crate) fn start(
    workers: &[Worker<Change>],
    events: Events,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    refresh: impl Fn() + Send + 'static,
) -> JoinHandle<()> {
    let watched: Vec<_> = workers
        .iter()
        .map(|w| (Arc::clone(w.pulse()), w.rate()))
        .collect();
    std::thread::spawn(move || {
        while !stop.load(Relaxed) {
            std::thread::park_timeout(MONITOR);
            while let Some(event) = events.take() {
                log(&event);
            }
            refresh();
            let lost = events.take_lost();
            if lost > 0 {
                warn!(lost, "more went wrong than could be logged");
            }
            for ((pulse, rate), seen) in watched.iter().zip(
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .iter_mut(),
            ) {
                let elapsed = seen.at.elapsed();
                if elapsed >= Duration::from_secs(1) {
                    let busy = rate.ns(Cycles(pulse.busy()));
                    let used = Duration::from_nanos(busy.saturating_sub(seen.busy));
                    let ratio = (used.as_secs_f64() / elapsed.as_secs_f64()).min(1.0);
                    *seen = Seen {
                        at: Instant::now(),
                        busy,
                        ratio,
                    };
                }
                if pulse.ended() && !stop.load(Relaxed) {
                    error!(name: WORKER_DIED,
                        "a worker died; ending, so that a restart can take over");
                    std::process::exit(1);
                }
            }
        }
    })
}

fn log(event: &Event) {
    match event {
        Event::Broken {
            disk,
            queue,
            violation,
        } => {
            warn!(name: RING_BROKEN, disk = &**disk, queue, %violation,
                "the driver broke its ring; it is stopped");
        }
        Event::Failed {
            disk,
            queue,
            kind,
            errno,
            count,
        } => {
            let error = io::Error::from_raw_os_error(*errno);
            let kind = kind.name();
            warn!(name: events::REQUESTS_FAILED, disk = &**disk, queue, kind, errno, %error, count,
                "requests failed");
        }
        Event::Held { disk, errno } => {
            let error = io::Error::from_raw_os_error(*errno);
            warn!(name: events::REQUESTS_HELD, disk = &**disk, errno, %error,
                "requests are held and tried again");
        }
        Event::Poisoned { disk } => {
            warn!(
                disk = &**disk,
                "guest memory was truncated; the session is ended"
            );
        }
    }
}
