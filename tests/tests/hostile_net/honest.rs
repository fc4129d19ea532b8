//! Two ports that exchange numbered frames and check each of them: order, content, and that nothing
//! else arrives in their VLAN.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use towpath_common::testing::net::frame::station;
use towpath_common::testing::net::{Frame, NetClient, NetOptions};

use crate::harness::PATIENCE;

/// Frames on their way at once: far fewer than there are receive buffers.
const WINDOW: usize = 8;
/// The stations, in a range that no attack uses.
const STATIONS: [u32; 2] = [0x00aa_0001, 0x00aa_0002];

/// The pair, until it is stopped.
pub(crate) struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Honest {
    pub(crate) fn start(sockets: [&Path; 2]) -> Result<Self> {
        let options = NetOptions {
            patience: PATIENCE,
            ..NetOptions::default()
        };
        let left = NetClient::connect(sockets[0], options)?;
        let right = NetClient::connect(sockets[1], options)?;
        let (rounds, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (count, end) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut ends = [left, right];
            while !end.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                exchange(&mut ends, round).with_context(|| format!("round {round}"))?;
            }
            Ok(())
        });
        Ok(Self {
            rounds,
            stop,
            thread,
        })
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result.context("the honest pair"),
            Err(_) => bail!("the honest pair panicked"),
        }
    }
}

/// A window of frames from each end to the other, of lengths that vary.
fn exchange(ends: &mut [NetClient; 2], round: u64) -> Result<()> {
    for from in 0..2 {
        let to = 1 - from;
        let frame = |i: usize| {
            let number = round * 100 + (from * 10 + i) as u64;
            let len = 46 + (usize::try_from(round % 97).unwrap_or(0) * 31 + i * 173) % 1455;
            Frame::new(station(STATIONS[to]), station(STATIONS[from])).numbered(number, len)
        };
        for i in 0..WINDOW {
            ends[from].send(&frame(i).bytes())?;
        }
        for i in 0..WINDOW {
            let got = ends[to].expect().with_context(|| format!("frame {i}"))?;
            ensure!(
                got.frame == frame(i).bytes(),
                "frame {i} to end {to}: another came: {:02x?}",
                &got.frame[..got.frame.len().min(64)]
            );
        }
        // Nothing comes twice, and nothing back.
        ensure!(ends[from].poll()?.is_none(), "end {from}: one too many");
        ensure!(ends[to].poll()?.is_none(), "end {to}: one too many");
    }
    Ok(())
}
