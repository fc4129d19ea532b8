//! Starting workers over the engine that was chosen.

use std::io;
use std::os::fd::AsFd;

use towpath_common::worker::{Context, Idle, Worker};

use crate::engine::polled::Polled;
use crate::engine::router::Router;
use crate::engine::threads::Threads;
use crate::engine::uring::Uring;
use crate::engine::{Engine, Kind};
use crate::io::Io;
use crate::plane::{BlkPlane, Change};
use crate::stats::Events;

/// Requests in flight on one worker: eight disks at depth 128, and few enough that their slots stay
/// in the second-level cache.
const CAPACITY: u32 = 1024;

/// Operations in flight on one worker: a request of a composed disk is several.
const OPERATIONS: u32 = 2 * CAPACITY;

/// Start worker `index`.
///
/// # Errors
/// If its thread or engine cannot be made.
pub(super) fn spawn(
    engine: Kind,
    index: usize,
    cpu: Option<usize>,
    idle: Idle,
    events: Events,
) -> io::Result<Worker<Change>> {
    match engine {
        Kind::IoUring => Worker::spawn(index, cpu, idle, move |context| {
            let ring = Uring::new(OPERATIONS)?;
            let engine = Polled::new(ring, |how| Uring::polling(how, OPERATIONS));
            plane(engine, context, events)
        }),
        Kind::Threads => Worker::spawn(index, cpu, idle, move |context| {
            plane(Threads::new(OPERATIONS)?, context, events)
        }),
    }
}

/// A worker's plane over `engine`.
fn plane<E: Engine + AsFd>(
    engine: E,
    context: Context,
    events: Events,
) -> io::Result<BlkPlane<Router<E>>> {
    let engine = Router::new(engine);
    context.poller.add(engine.as_fd())?;
    Ok(BlkPlane::new(Io::new(engine, CAPACITY)?, context, events))
}
