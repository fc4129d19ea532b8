//! The end of a step: used rings are published, drivers notified, and what went wrong is told.

use std::sync::Arc;

use super::{BlkPlane, DiskHere};
use crate::engine::Engine;
use crate::mortal::Point;
use crate::stats::{Event, Events};

impl<E: Engine> BlkPlane<E> {
    /// Publish every ring that has something to publish; tell what went wrong, once a burst.
    #[inline]
    pub(super) fn publish(&mut self) {
        let BlkPlane {
            queues,
            disks,
            by_queue,
            dirty,
            events,
            drains,
            clock,
            mortal,
            ..
        } = self;
        for key in dirty.drain(..) {
            let Some(Some(queue)) = queues.get_mut(key as usize) else {
                continue;
            };
            if queue.failed.is_some() {
                let at = by_queue.get(key as usize).copied().unwrap_or(u16::MAX);
                let disk = disks.get(usize::from(at)).and_then(Option::as_ref);
                queue.note_failures(disk.map_or(0, |disk| disk.disk.failures()));
            }
            let wanted = queue.publish();
            mortal.at(Point::Used);
            if queue.reaped.is_empty() {
                queue.notify(wanted);
            } else {
                let used = clock.now();
                queue.notify(wanted);
                let notified = wanted.then(|| clock.now());
                let reaped = std::mem::take(&mut queue.reaped);
                let at = by_queue.get(key as usize).copied().unwrap_or(u16::MAX);
                if let Some(Some(disk)) = disks.get_mut(usize::from(at)) {
                    disk.stages
                        .told(queue.index, reaped, used, notified, clock.rate());
                }
            }
            let broken = queue.newly_broken();
            let failed = queue.failed.take();
            if broken.is_none() && failed.is_none() {
                continue;
            }
            let at = by_queue.get(key as usize).copied().unwrap_or(u16::MAX);
            if let Some(Some(disk)) = disks.get(usize::from(at)) {
                tell(events, disk, queue.index, broken, failed);
            }
        }
        if !drains.is_empty() {
            self.finish_drains();
        }
    }

    /// End the sessions whose memory was truncated.
    pub(super) fn check_poison(&mut self) {
        let BlkPlane {
            queues,
            disks,
            events,
            naps,
            ..
        } = self;
        for at in &naps.awake {
            let disk = disks.get_mut(usize::from(*at)).and_then(Option::as_mut);
            let Some(disk) = disk.filter(|disk| !disk.poisoned) else {
                continue;
            };
            let mut here = disk
                .queues
                .iter()
                .filter_map(|k| queues.get(*k as usize)?.as_ref());
            if let Some(queue) = here.find(|q| q.ring.mem().poisoned()) {
                queue.alarm.raise();
                disk.poisoned = true;
                events.tell(Event::Poisoned {
                    disk: Arc::clone(&disk.name),
                });
            }
        }
    }
}

#[cold]
fn tell(
    events: &Events,
    disk: &DiskHere,
    queue: u16,
    broken: Option<towpath_common::ring::Violation>,
    failed: Option<(u64, crate::request::Kind, i32)>,
) {
    let shared = disk.shared.queues.get(usize::from(queue));
    if let Some(violation) = broken {
        if let Some(shared) = shared {
            shared.set_broken(Some(violation));
        }
        events.tell(Event::Broken {
            disk: Arc::clone(&disk.name),
            queue,
            violation,
        });
    }
    if let Some((count, kind, errno)) = failed {
        if let Some(shared) = shared {
            shared.failed(errno, count);
        }
        let disk = Arc::clone(&disk.name);
        events.tell(Event::Failed {
            disk,
            queue,
            kind,
            errno,
            count,
        });
    }
}
