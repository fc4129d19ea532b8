//! A disk at rest for a moment: no request of it is in flight, none is taken, and its guest only
//! waits.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::backup::volume::Buffer;
use crate::device::BlkDevice;
use crate::engine::Guest;
use crate::plane::{Change, DiskKey, Flush};
use crate::service::ServiceError;

/// How often, and how long apart, a worker is asked for a flush that has no room for one.
const TRIES: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(20);

/// A disk at rest, until this is dropped.
#[derive(Debug)]
pub(crate) struct Paused {
    device: Arc<BlkDevice>,
    key: DiskKey,
    since: Instant,
}

/// Stop taking requests of a disk and wait for those in flight.
///
/// # Errors
/// If a worker does not get there: its storage is stuck. The disk goes on then.
pub(crate) fn pause(device: &Arc<BlkDevice>, key: DiskKey) -> Result<Paused, ServiceError> {
    if device.disk().policy().held() > 0 {
        let why = "its storage fails and requests are held; repair it, or set on-error=report";
        return Err(ServiceError::Refused(why.to_owned()));
    }
    // Dropped on an error, too: what was paused goes on.
    let paused = Paused {
        device: Arc::clone(device),
        key,
        since: Instant::now(),
    };
    for worker in device.workers() {
        let answer = worker.call(|reply| Change::Pause(key, reply));
        answer.map_err(|e| ServiceError::Refused(format!("it cannot be brought to rest: {e}")))?;
    }
    Ok(paused)
}

impl Paused {
    /// Make durable what the disk acknowledged.
    ///
    /// # Errors
    /// If that cannot be done.
    pub(crate) fn flush(&self) -> Result<(), ServiceError> {
        let refused = |why: &dyn Display| {
            ServiceError::Refused(format!(
                "what it acknowledged cannot be made durable: {why}"
            ))
        };
        let buffer = Buffer::new().map_err(|e| refused(&e))?;
        let worker = self.device.workers().first();
        let worker = worker.ok_or_else(|| refused(&"no worker serves it"))?;
        for _ in 0..TRIES {
            let flush = Flush {
                guest: Guest::plain(Arc::clone(&buffer.mem)),
                status: buffer.status,
            };
            let answer = worker.call(|reply| Change::Flush(self.key, flush, reply));
            match answer.map_err(|e| refused(&e))? {
                // Others have all its room for a moment.
                Err(Errno::BUSY) => std::thread::sleep(BETWEEN),
                other => return other.map_err(|e| refused(&e)),
            }
        }
        Err(refused(&Errno::BUSY))
    }

    /// For how long it has been at rest, or on its way there.
    pub(crate) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for worker in self.device.workers() {
            // A worker that is gone serves nobody.
            let _ = worker.post(Change::Resume(self.key));
        }
    }
}
