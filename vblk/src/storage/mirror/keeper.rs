//! A mirror's own thread: it tells the worker the time, gives out what may be copied, lets requests
//! to a failed disk end, logs, and brings exports back. It ends with the mirror.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Inside, Order, Shared, Standing};
use crate::events;
use crate::storage::nbd;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(100);
/// Looks between two rings where nothing is copied.
const RING: u32 = 10;
/// Looks between two tries to bring a disk back.
const RETURN: u32 = 100;

pub(super) fn start(inside: &Arc<Inside>, shared: &Arc<Shared>) -> io::Result<()> {
    let (inside, shared) = (Arc::downgrade(inside), Arc::downgrade(shared));
    let thread = std::thread::Builder::new().name("mirror".to_owned());
    thread.spawn(move || {
        let mut seen: Vec<Standing> = Vec::new();
        let mut hurries: Vec<(usize, Vec<nbd::Hurry>)> = Vec::new();
        for look in 1u32.. {
            std::thread::sleep(TICK);
            let (Some(inside), Some(shared)) = (inside.upgrade(), shared.upgrade()) else {
                return;
            };
            tell(&shared, &mut seen);
            hurry(&inside, &shared, &mut hurries);
            if shared.is_behind() {
                refill(&shared);
                shared.ring();
            } else if look.is_multiple_of(RING) && is_busy(&shared) {
                shared.ring();
            }
            if look.is_multiple_of(RETURN) {
                bring_back(&inside, &shared);
            }
        }
    })?;
    Ok(())
}

fn is_busy(shared: &Shared) -> bool {
    let dirty = shared.dirty.load(Ordering::Relaxed) > 0;
    let bad = shared.record_errno.load(Ordering::Relaxed) != 0;
    dirty || bad || shared.flying.load(Ordering::Relaxed) > 0
}

fn refill(shared: &Shared) {
    let rate = i64::try_from(shared.rate.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
    let more = rate / 10;
    let left = shared.budget.load(Ordering::Relaxed);
    if left < more {
        shared.budget.fetch_add(more, Ordering::Relaxed);
    }
}

/// Say what became of the disks since the last look.
fn tell(shared: &Shared, seen: &mut Vec<Standing>) {
    let now: Vec<Standing> = shared.gauges.iter().map(super::Gauge::standing).collect();
    for (index, (name, standing)) in shared.names.iter().zip(&now).enumerate() {
        let before = seen.get(index);
        if before == Some(standing) {
            continue;
        }
        let gauge = shared.gauges.get(index);
        let errno = gauge.map_or(0, |g| g.errno.load(Ordering::Relaxed));
        match (standing, before) {
            (Standing::Failed, Some(_)) if errno == 0 => {
                tracing::warn!(disk = name, "taken out of its mirror by an operator");
            }
            (Standing::Failed, Some(_)) => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::error!(name: events::MIRROR_DISK_FAILED, disk = name, %error, "a disk \
                    of a mirror failed; the mirror goes on without it");
            }
            (Standing::Behind, _) => tracing::info!(disk = name, "a disk of a mirror catches up"),
            (Standing::Current, Some(_)) => {
                tracing::info!(name: events::MIRROR_DISK_CURRENT, disk = name, "a disk of a mirror \
                    is current again");
            }
            (Standing::Failed | Standing::Current, None) => {}
        }
    }
    *seen = now;
}

/// Let requests to failed disks end, where they wait for a server.
fn hurry(inside: &Inside, shared: &Shared, hurries: &mut Vec<(usize, Vec<nbd::Hurry>)>) {
    for (index, gauge) in shared.gauges.iter().enumerate() {
        let waits = gauge.standing() == Standing::Failed && !gauge.closed.load(Ordering::Acquire);
        let known = hurries.iter().any(|(i, _)| *i == index);
        if waits && !known {
            let disk = inside.disks().get(index).cloned().flatten();
            let guards = disk.map(|d| d.storage().hurry()).unwrap_or_default();
            hurries.push((index, guards));
        } else if !waits && known {
            hurries.retain(|(i, _)| *i != index);
        }
    }
}

fn bring_back(inside: &Inside, shared: &Shared) {
    for (index, (member, gauge)) in inside.members.iter().zip(&shared.gauges).enumerate() {
        let failed = gauge.standing() == Standing::Failed;
        // An operator's word counts until an operator takes it back.
        let ours = gauge.errno.load(Ordering::Relaxed) != 0;
        if member.returns && failed && ours && gauge.closed.load(Ordering::Acquire) {
            match inside.reopen(shared, index) {
                Ok(disk) => drop(shared.orders.push(Order::Add(index, disk, false))),
                Err(error) => tracing::debug!(disk = member.name, %error, "not back yet"),
            }
            shared.ring();
        }
    }
}
