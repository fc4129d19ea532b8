//! The machine's own ceiling: the generator's rings, served by a bare copy loop.
//!
//! Two ports, each one's frames go to the other: pop what one transmits, pop as many buffers of
//! the other, copy, put both, publish. No header is looked at and no address is learnt. It stands
//! on the same [`Ring`] as vswitch, in a thread of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use towpath_common::chain::{BURST, Burst};
use towpath_common::mem::{Mem, Region, RegionSpec, Segment};
use towpath_common::ring::{Ring, Setup};
use towpath_common::testing::GuestMemory;

use super::port::{FEATURES, Port};
use super::queue::Queue;
use crate::cpu;

/// The copy loop; it ends with this value.
#[derive(Debug)]
pub struct Loop {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Loop {
    /// Serves two ports on processor `cpu`.
    pub fn start(ports: &[Port], on: usize) -> Result<Self> {
        let [a, b] = ports else {
            return Err(anyhow!("the copy loop serves two ports"));
        };
        let mut ways = [Way::new(a, b)?, Way::new(b, a)?];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || -> Result<()> {
            while !stopped.load(Ordering::Relaxed) {
                for way in &mut ways {
                    way.step()?;
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new()
            .name("copy".into())
            .spawn(move || cpu::on_cpu(on, work)?)
            .context("cannot start the copy loop")?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("copy loop: {error:#}");
        }
    }
}

/// From one port to the other.
#[derive(Debug)]
struct Way {
    from: Ring,
    to: Ring,
    frames: Burst,
    buffers: Burst,
    /// Bytes of a buffer.
    buffer: u64,
}

impl Way {
    fn new(from: &Port, to: &Port) -> Result<Self> {
        let (from_memory, [_, transmit]) = from.parts();
        let (to_memory, [receive, _]) = to.parts();
        Ok(Self {
            from: ring(from_memory, transmit)?,
            to: ring(to_memory, receive)?,
            frames: Burst::new(),
            buffers: Burst::new(),
            buffer: to.buffer_len().into(),
        })
    }

    /// One burst.
    #[inline]
    fn step(&mut self) -> Result<()> {
        let frames = self.from.pop(&mut self.frames, BURST);
        if frames == 0 {
            let broken = self.from.broken();
            ensure!(broken.is_none(), "the generator broke its ring: {broken:?}");
            return Ok(());
        }
        let mut done = 0;
        while done < frames {
            // No more than are needed: each chain popped is work, also if it is given back.
            let rest = self.frames.iter().skip(done);
            let needed: u64 = rest.map(|f| f.readable_len.div_ceil(self.buffer)).sum();
            let needed = usize::try_from(needed).unwrap_or(BURST);
            let buffers = self.to.pop(&mut self.buffers, needed);
            let (copied, used) = self.copy(done)?;
            self.to.unpop(&self.buffers, buffers - used);
            // Nobody waits for a call: the generator polls.
            let _ = self.to.publish();
            if copied == 0 {
                break;
            }
            done += copied;
        }
        self.from.unpop(&self.frames, frames - done);
        let _ = self.from.publish();
        Ok(())
    }

    /// Copies frames from the one at `first` on, as long as there are buffers; how many of both
    /// were used.
    #[inline]
    fn copy(&mut self, first: usize) -> Result<(usize, usize)> {
        let (mut copied, mut used) = (0, 0);
        while let Some(frame) = self.frames.get(first + copied) {
            let buffer = self.buffers.get(used);
            let single = (
                frame.readable,
                buffer.map(|buffer| (buffer.id, buffer.writable)),
            );
            if let (&[data], Some((id, &[room]))) = single
                && data.len() <= room.len()
            {
                let whole = self.from.mem().copy_to(data, self.to.mem(), room);
                ensure!(whole, "a frame outside of memory");
                let frame = frame.id;
                self.to.put(id, data.len());
                self.from.put(frame, 0);
                used += 1;
            } else {
                let count = self.copy_scattered(first + copied, used)?;
                if count == 0 {
                    break;
                }
                used += count;
            }
            copied += 1;
        }
        Ok((copied, used))
    }

    /// Copies one frame of several pieces over several buffers; how many it took, none if there
    /// are too few.
    fn copy_scattered(&mut self, index: usize, first: usize) -> Result<usize> {
        let frame = self.frames.get(index).context("no such frame")?;
        let id = frame.id;
        let mut used = first;
        let mut room = Segment::default();
        let mut put: Vec<(u16, u32)> = Vec::new();
        for piece in frame.readable {
            let mut rest = *piece;
            while !rest.is_empty() {
                if room.is_empty() {
                    let Some(buffer) = self.buffers.get(used) else {
                        return Ok(0);
                    };
                    room = buffer.writable.first().copied().context("no room")?;
                    put.push((buffer.id, 0));
                    used += 1;
                }
                let part = rest.take(room.len());
                ensure!(
                    self.from.mem().copy_to(part, self.to.mem(), room),
                    "a piece does not fit"
                );
                if let Some((_, written)) = put.last_mut() {
                    *written += part.len();
                }
                (rest, room) = (rest.skip(part.len()), room.skip(part.len()));
            }
        }
        for (id, written) in put {
            self.to.put(id, written);
        }
        self.from.put(id, 0);
        Ok(used - first)
    }
}

/// Our ring on one of the generator's queues.
pub(crate) fn ring(memory: &GuestMemory, queue: &Queue) -> Result<Ring> {
    let mut regions = Vec::new();
    for region in memory.regions() {
        let spec = RegionSpec {
            gpa: region.gpa(),
            len: region.size(),
            uva: region.uva(),
            offset: 0,
        };
        regions.push(Region::map(spec, region.file().try_clone_to_owned()?)?);
    }
    let [desc, avail, used] = queue.places();
    let setup = Setup {
        size: queue.size(),
        desc: memory.uva(desc)?,
        avail: memory.uva(avail)?,
        used: memory.uva(used)?,
        base: None,
        features: FEATURES,
        log: None,
        log_addr: None,
        inflight: None,
    };
    let mut ring = Ring::new(setup, Arc::new(Mem::new(regions)?))?;
    ring.disarm();
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::shape::Shape;
    use crate::net::traffic::Generator;

    #[test]
    fn every_frame_arrives_once_in_order_also_in_pieces() {
        let segmented = Shape {
            segmented: true,
            ..Shape::plain(2, 256, crate::net::frame::LARGEST)
        };
        let many = Shape {
            stations: 1000,
            ..Shape::plain(2, 256, 60)
        };
        for shape in [Shape::plain(2, 256, 60), many, segmented] {
            let mut generator = Generator::new(shape).unwrap();
            let _copy = Loop::start(generator.ports(), 0).unwrap();
            generator.prime().unwrap();
            let tally = generator.pass(u64::MAX).unwrap();
            assert!(tally.is_clean() && tally.sent > 0, "{tally:?}");
        }
    }
}
