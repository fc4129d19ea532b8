//! What the control plane and the sessions ask of a worker.

use std::io;
use std::sync::Arc;

use towpath_common::clock::Cycles;
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::Ring;
use towpath_common::sched::Share;
use towpath_common::session::{Attach, Update};

use super::loan::{Fetch, Fetched, Flush};
use crate::disk::Disk;
use crate::engine::Guest;
use crate::qos::Throttle;
use crate::slow::Trace;
use crate::stats::DiskShared;

/// Names a disk on all workers, for the daemon's life.
pub type DiskKey = u64;

/// What the control plane and the sessions ask of a worker.
#[derive(Debug)]
pub enum Change {
    /// Serve a disk from now on.
    AddDisk(NewDisk, ReplyTo<io::Result<()>>),
    /// Stop serving a disk; its queues have been detached.
    RemoveDisk(DiskKey, ReplyTo<()>),
    /// Another weight or cap.
    SetShare(DiskKey, Share),
    /// Other limits: the disk's own, and its group's.
    Throttle(DiskKey, [Option<Arc<Throttle>>; 2]),
    /// The guest's memory map changed; no queue of the disk is attached.
    Memory(DiskKey, Guest, ReplyTo<io::Result<()>>),
    /// Serve a queue.
    Attach(DiskKey, u16, Box<Attach>, ReplyTo<bool>),
    /// Stop popping, let what is in flight finish, give the ring back.
    Detach(DiskKey, u16, ReplyTo<Ring>),
    /// The same, for a successor of this process: requests held for the storage to get better stay
    /// in the in-flight table, for it to do.
    Leave(DiskKey, u16, ReplyTo<Ring>),
    /// A change that needs no drain.
    Update(DiskKey, u16, Update),
    /// Stop popping from the disk's queues; answered when nothing of it is in flight.
    Pause(DiskKey, ReplyTo<()>),
    /// Go on after a pause.
    Resume(DiskKey),
    /// Read from the disk for a copy; answered when it ended.
    Fetch(DiskKey, Fetch, ReplyTo<Fetched>),
    /// Make durable what the disk acknowledged; answered when that ended.
    Flush(DiskKey, Flush, ReplyTo<Fetched>),
    /// Check requests against what the disk is now; answered when all later ones are.
    Resize(DiskKey, ReplyTo<()>),
    /// The slowest recent requests, and the time.
    Slow(DiskKey, ReplyTo<(Cycles, Vec<Trace>)>),
}

/// A disk as a worker gets it.
#[derive(Debug)]
pub struct NewDisk {
    /// Its key.
    pub key: DiskKey,
    /// Its name, for events.
    pub name: Arc<str>,
    /// The disk.
    pub disk: Arc<Disk>,
    /// Weight and cap.
    pub share: Share,
    /// Its limits, and its group's.
    pub throttles: [Option<Arc<Throttle>>; 2],
    /// Where its counters go.
    pub shared: Arc<DiskShared>,
}
