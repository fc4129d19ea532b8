//! The copying itself: one thread reads the disk, another one hashes and writes.
//!
//! Between them are [`AHEAD`] blocks of memory. The reader takes blocks in order, slowed down to
//! the rate that was asked for, but those that a guest waits for come first, at any rate.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use towpath_common::worker::Handle;

use super::bitmap::BLOCK;
use super::lent::Source;
use super::manifest::{Journal, Sum};
use super::volume::Volume;
use super::{BackupError, GRACE, Progress, Totals, Tracker};
use crate::disk::Disk;
use crate::plane::{Change, DiskKey};

/// Blocks read and not yet written: 16 MiB.
const AHEAD: usize = 64;

/// How long the reader sleeps where it has to wait. A guest's request waits no longer for it.
const TICK: Duration = Duration::from_millis(1);

/// Blocks after which the journal is written out, so that little is done again.
const WRITE_OUT: u32 = 16;

/// A block on its way.
type Block = (u64, Vec<u8>);

/// What is copied, and who is told.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) disk: Arc<Disk>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) progress: Arc<Progress>,
    pub(super) size: u64,
    /// Most bytes a second.
    pub(super) rate: Option<u64>,
    /// Who reads the disk for us, if nobody else may.
    pub(super) worker: Option<(Handle<Change>, DiskKey)>,
}

/// Where it goes.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) disk: Arc<Disk>,
    /// It is all zeroes.
    pub(super) fresh: bool,
    pub(super) journal: Option<Journal>,
}

/// While it lives a copy is under way; guests wait for blocks of it no longer.
struct UnderWay<'a>(&'a Tracker);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Copy {
    /// Copy all pending blocks to `sink`, and make that durable. The copy has begun.
    pub(super) fn run(&self, sink: Sink, totals: &Totals) -> Result<(), BackupError> {
        let under_way = UnderWay(&self.tracker);
        let target = Arc::clone(&sink.disk);
        let (blocks, taken) = sync_channel(AHEAD);
        let progress = Arc::clone(&self.progress);
        let writer = std::thread::Builder::new().name("backup-write".to_owned());
        let writer = writer.spawn(move || write(sink, &taken, &progress));
        let writer = writer.map_err(|e| BackupError::NoMemory(e.to_string()))?;
        let read = self.read(&blocks, totals);
        drop(blocks);
        drop(under_way);
        // A target that hangs must not hang us, once nothing comes of it.
        let _until_joined = read.as_ref().err().map(|_| target.storage().hurry());
        let written = writer.join();
        let written = written.map_err(|_| BackupError::NoMemory("the writer failed".to_owned()));
        // Why the writer ended is why the reader could not go on.
        written??;
        read
    }

    fn read(&self, to: &SyncSender<Block>, totals: &Totals) -> Result<(), BackupError> {
        let source = Source::new(&self.disk, self.worker.clone());
        let mut source = source.map_err(|e| BackupError::NoMemory(e.to_string()))?;
        let (began, mut paced, mut cursor) = (Instant::now(), 0_u64, 0);
        loop {
            self.progress.check()?;
            let urgent = self.tracker.next_urgent();
            if urgent.is_none() && self.is_ahead(paced, began) {
                std::thread::sleep(TICK);
                continue;
            }
            let next = || self.tracker.next(cursor).or_else(|| self.tracker.next(0));
            let Some(block) = urgent.or_else(next) else {
                return Ok(());
            };
            let at = block * BLOCK;
            let len = self.size.saturating_sub(at).min(BLOCK);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            while !source.read(at, &mut bytes)? {
                self.progress.check()?;
                std::thread::sleep(TICK);
            }
            self.tracker.read(block);
            if urgent.is_some() {
                self.progress.first.fetch_add(1, Relaxed);
                totals.first.fetch_add(1, Relaxed);
            } else {
                cursor = block + 1;
                paced += len;
            }
            totals.bytes.fetch_add(len, Relaxed);
            self.hand_over(to, (block, bytes))?;
        }
    }

    /// More was copied since `began` than the rate allows.
    fn is_ahead(&self, bytes: u64, began: Instant) -> bool {
        let Some(rate) = self.rate else {
            return false;
        };
        let due = u128::from(bytes) * 1_000_000 / u128::from(rate.max(1));
        due > began.elapsed().as_micros()
    }

    fn hand_over(&self, to: &SyncSender<Block>, block: Block) -> Result<(), BackupError> {
        let mut block = block;
        let mut waited_for: Option<Instant> = None;
        loop {
            block = match to.try_send(block) {
                // The writer's error is told in place of this one.
                Ok(()) | Err(TrySendError::Disconnected(_)) => return self.progress.check(),
                Err(TrySendError::Full(block)) => block,
            };
            self.progress.check()?;
            if self.tracker.is_wanted() {
                let since = *waited_for.get_or_insert_with(Instant::now);
                if since.elapsed() > GRACE {
                    return Err(BackupError::TooSlow);
                }
            } else {
                waited_for = None;
            }
            std::thread::sleep(TICK);
        }
    }
}

fn write(sink: Sink, from: &Receiver<Block>, progress: &Progress) -> Result<(), BackupError> {
    let Sink {
        disk,
        fresh,
        mut journal,
    } = sink;
    let target = Volume::new(disk);
    let mut target = target.map_err(|e| BackupError::NoMemory(e.to_string()))?;
    let mut unwritten = 0;
    let mut put = |block: u64, bytes: &[u8], journal: &mut Option<Journal>| {
        progress.check()?;
        let (at, len) = (block * BLOCK, bytes.len() as u64);
        let sum = Sum::of(bytes);
        match sum {
            Sum::Zero if fresh => {}
            Sum::Zero => target.zero(at, len)?,
            Sum::Hash(_) => target.write(at, bytes)?,
        }
        if let Some(journal) = journal {
            journal.add(block, sum)?;
            unwritten += 1;
            if unwritten >= WRITE_OUT {
                unwritten = 0;
                journal.flush()?;
            }
        }
        Ok(())
    };
    let mut result: Result<(), BackupError> = Ok(());
    for (block, bytes) in from {
        // Dropping the receiver would lose the error; what is read is taken and thrown away.
        if result.is_ok() {
            result = put(block, &bytes, &mut journal);
            progress.done.fetch_add(bytes.len() as u64, Relaxed);
        }
        if result.is_err() {
            progress.cancel();
        }
    }
    if let Some(journal) = &mut journal {
        journal.flush()?;
    }
    result?;
    // The reader ended early: there is nothing to finish.
    progress.check()?;
    if !progress.is_whole() {
        return Ok(());
    }
    target.flush()?;
    match journal {
        Some(journal) => journal.finish(),
        None => Ok(()),
    }
}
