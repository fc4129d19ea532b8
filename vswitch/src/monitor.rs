//! Looks after the workers from outside: logs what they saw, measures how busy they are, ages the
//! FDB, and ends the process if a worker died.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_common::clock::{Clock, Cycles};
use towpath_common::logging::events::{RING_BROKEN, WORKER_DIED};
use towpath_common::worker::Worker;
use tracing::{error, warn};

use crate::events;
use crate::fdb::Fdb;
use crate::plane::{Change, moment};
use crate::stats::{Event, Events};

/// How often events are taken to the log and workers are looked after.
const MONITOR: Duration = Duration::from_millis(250);

/// Turns of the monitor in which the whole FDB is looked through once: two seconds.
const AGEING_TURNS: usize = 8;

/// What the monitor saw of a worker, for its busy ratio.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) busy: u64,
    pub(crate) ratio: f64,
}

/// Log events, age the FDB, call `keep` every quarter of a second, and end the process if a worker
/// died: its successor finds all state in place.
pub(crate) fn start(
    workers: &[Worker<Change>],
    fdb: Arc<Fdb>,
    events: Events,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    mut keep: impl FnMut() + Send + 'static,
) -> JoinHandle<()> {
    let watched: Vec<_> = workers
        .iter()
        .map(|w| (Arc::clone(w.pulse()), w.rate()))
        .collect();
    std::thread::spawn(move || {
        let clock = Clock::new();
        while !stop.load(Relaxed) {
            std::thread::park_timeout(MONITOR);
            while let Some(event) = events.take() {
                log(&event);
            }
            keep();
            let lost = events.lost();
            if lost > 0 {
                warn!(lost, "more went wrong than could be logged");
            }
            let now = moment(&clock, clock.now());
            fdb.age(now.seconds, fdb.buckets().div_ceil(AGEING_TURNS));
            let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
            for ((pulse, rate), seen) in watched.iter().zip(all.iter_mut()) {
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
            port,
            queue,
            violation,
        } => {
            warn!(name: RING_BROKEN, port = &**port, queue, %violation,
                "the driver broke its ring; it is stopped");
        }
        Event::Poisoned { port } => {
            warn!(
                port = &**port,
                "guest memory was truncated; the session is ended"
            );
        }
        Event::UplinkFailed { port, error } => {
            warn!(name: events::UPLINK_FAILED, port = &**port, error,
                "the uplink failed; it is down");
        }
    }
}
