//! What a port carried, by VLAN.
//!
//! Each worker has its own cells, one for each VLAN from the port's first to its last, which it
//! writes once for a run of frames of one VLAN. An access port takes one cache line for each
//! worker, a trunk of all VLANs 128 KiB: VLANs are few, or trunks are.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::vlan::{Mode, Vid};

/// Frames and bytes of one VLAN; bytes from the destination address on, as received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Frames taken from the port, without those dropped on their way in.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames given to the port; one that is segmented for it counts once.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
}

impl Carried {
    /// Both together.
    #[must_use]
    pub fn with(self, other: Carried) -> Carried {
        Carried {
            rx_frames: self.rx_frames.wrapping_add(other.rx_frames),
            rx_bytes: self.rx_bytes.wrapping_add(other.rx_bytes),
            tx_frames: self.tx_frames.wrapping_add(other.tx_frames),
            tx_bytes: self.tx_bytes.wrapping_add(other.tx_bytes),
        }
    }
}

/// Frames and bytes, in and out.
#[derive(Debug, Default)]
struct Cell([AtomicU64; 4]);

/// Cells of two workers never share a line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([Cell; 2]);

/// Which way frames go.
#[derive(Debug, Clone, Copy)]
enum Way {
    In = 0,
    Out = 2,
}

/// Counters of one port in one mode.
#[derive(Debug)]
pub struct VlanCounters {
    first: u16,
    /// By worker, then by VLAN from `first` on, two to a line.
    workers: Box<[Box<[Line]>]>,
}

impl VlanCounters {
    /// For the VLANs of a port, all zero.
    #[must_use]
    pub fn new(mode: &Mode, workers: usize) -> VlanCounters {
        let members = mode.members();
        let first = members.iter().next().map_or(1, Vid::get);
        let last = members.iter().last().map_or(first, Vid::get);
        let lines = usize::from((last - first) / 2) + 1;
        let cells = || (0..lines).map(|_| Line::default()).collect();
        VlanCounters {
            first,
            workers: (0..workers).map(|_| cells()).collect(),
        }
    }

    /// Frames of a VLAN came in; for the worker they belong to.
    #[inline]
    pub fn received(&self, worker: usize, vid: Vid, frames: u64, bytes: u64) {
        self.count(worker, vid, Way::In, frames, bytes);
    }

    /// Frames of a VLAN went out.
    #[inline]
    pub fn sent(&self, worker: usize, vid: Vid, frames: u64, bytes: u64) {
        self.count(worker, vid, Way::Out, frames, bytes);
    }

    #[inline]
    fn count(&self, worker: usize, vid: Vid, way: Way, frames: u64, bytes: u64) {
        let at = usize::from(vid.get().wrapping_sub(self.first));
        let Some(line) = self.workers.get(worker).and_then(|w| w.get(at / 2)) else {
            return;
        };
        let cell = &line.0[at % 2].0;
        for (place, more) in [(way as usize, frames), (way as usize + 1, bytes)] {
            let counter = &cell[place];
            counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
        }
    }

    /// What was counted so far, by ascending VLAN, those that carried something.
    pub fn carried(&self) -> impl Iterator<Item = (Vid, Carried)> + '_ {
        let vids = (self.first..=4094).filter_map(Vid::new);
        let all = vids.enumerate().map(|(at, vid)| (vid, self.sum(at)));
        let cells = self.workers.first().map_or(0, |lines| lines.len() * 2);
        all.take(cells)
            .filter(|(_, sum)| *sum != Carried::default())
    }

    fn sum(&self, at: usize) -> Carried {
        let lines = self.workers.iter().filter_map(|w| w.get(at / 2));
        lines.fold(Carried::default(), |sum, line| {
            let [rx_frames, rx_bytes, tx_frames, tx_bytes] =
                [0, 1, 2, 3].map(|i: usize| line.0[at % 2].0[i].load(Relaxed));
            sum.with(Carried {
                rx_frames,
                rx_bytes,
                tx_frames,
                tx_bytes,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vid(vid: u16) -> Vid {
        Vid::new(vid).unwrap()
    }

    #[test]
    fn every_worker_counts_and_all_are_summed() {
        let mode = Mode::Trunk {
            allowed: "10,12-13".parse().unwrap(),
            native: Some(vid(4094)),
        };
        let counters = VlanCounters::new(&mode, 2);
        counters.received(0, vid(10), 3, 300);
        counters.received(1, vid(10), 1, 60);
        counters.sent(1, vid(13), 2, 128);
        counters.sent(0, vid(4094), 1, 64);
        let carried: Vec<_> = counters.carried().collect();
        let rx = |rx_frames, rx_bytes| Carried {
            rx_frames,
            rx_bytes,
            ..Carried::default()
        };
        let tx = |tx_frames, tx_bytes| Carried {
            tx_frames,
            tx_bytes,
            ..Carried::default()
        };
        let expected = [
            (vid(10), rx(4, 360)),
            (vid(13), tx(2, 128)),
            (vid(4094), tx(1, 64)),
        ];
        assert_eq!(carried, expected);
    }

    #[test]
    fn a_vlan_or_worker_that_is_not_there_counts_nothing() {
        let access = VlanCounters::new(&Mode::Access { pvid: vid(10) }, 1);
        for stranger in [1, 9, 12, 4094] {
            access.received(0, vid(stranger), 1, 1);
        }
        access.sent(1, vid(10), 1, 1);
        assert_eq!(access.carried().count(), 0);
        access.sent(0, vid(10), 1, 1);
        assert_eq!(access.carried().count(), 1);
    }
}
