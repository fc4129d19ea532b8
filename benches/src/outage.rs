//! How long a front-end that polls waits while its daemon is replaced: the longest time between two
//! things done for it, around each end of the daemon.
//!
//! The daemon runs under `serve --keep`; the front-end is in this process and looks without rest,
//! one request or frame after the other, so the pause it sees is the outage and no waiting of its
//! own. What the daemon costs otherwise, a microsecond or ten between two answers, is in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use towpath_common::testing::blk::{BlkClient, BlkQueue, ClientOptions, Done, OK, Op};
use towpath_common::testing::net::{Header, NetClient, NetOptions, NetPair};

use crate::process::Process;

/// Longest outage that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a daemon runs before it is ended again: it is at rest then, and its keeper, too.
const REST: Duration = Duration::from_millis(150);
/// Bytes of a frame.
const FRAME: usize = 64;

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its keeper is told to start it again (SIGUSR2).
    Planned,
    /// SIGKILL.
    Killed,
}

/// Outages, shortest first.
#[derive(Debug)]
pub struct Outages(Vec<Duration>);

impl Outages {
    /// The outage that `percent` of them do not exceed.
    #[must_use]
    pub fn at(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(rank).copied().unwrap_or_default()
    }
}

/// A daemon under its keeper, and a front-end that has something done.
struct Bed<F> {
    keeper: Process,
    /// Tries to get something done; true if something was.
    turn: F,
}

impl<F: FnMut() -> Result<bool>> Bed<F> {
    fn child(&self) -> Option<Pid> {
        let keeper = self.keeper.pid();
        let path = format!("/proc/{keeper}/task/{keeper}/children");
        let text = std::fs::read_to_string(path).ok()?;
        Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
    }

    /// Go on for `time`, without an outage.
    fn rest(&mut self, time: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            (self.turn)()?;
        }
        Ok(())
    }

    /// End the daemon and measure.
    fn outage(&mut self, end: End) -> Result<Duration> {
        self.rest(REST)?;
        let pid = self.child().context("no daemon runs")?;
        let keeper = i32::try_from(self.keeper.pid()).ok();
        let keeper = keeper.and_then(Pid::from_raw).context("a process id")?;
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        match end {
            End::Planned => kill_process(keeper, Signal::USR2)?,
            End::Killed => kill_process(pid, Signal::KILL)?,
        }
        let begin = last;
        // Over when another daemon has served for a while.
        let mut over = None;
        while over.is_none_or(|at| Instant::now() < at) {
            ensure!(begin.elapsed() < PATIENCE, "nothing is served any more");
            if !(self.turn)()? {
                continue;
            }
            let now = Instant::now();
            longest = longest.max(now - last);
            let pause = now - last > Duration::from_millis(1);
            if over.is_none() && pause && self.child().is_some_and(|p| p != pid) {
                over = Some(now + Duration::from_millis(20));
            }
            last = now;
        }
        Ok(longest)
    }

    fn run(mut self, end: End, count: usize) -> Result<Outages> {
        let outages: Result<Vec<Duration>> = (0..count).map(|_| self.outage(end)).collect();
        let mut outages = outages?;
        outages.sort_unstable();
        Ok(Outages(outages))
    }
}

/// Start `program serve --keep` with `item`, and wait for `socket`.
fn serve(program: &Path, dir: &Path, items: &[(&str, String)], socket: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(["serve", "--keep", "--control"]);
    command.arg(dir.join("control"));
    for (option, item) in items {
        command.args([*option, item]);
    }
    let mut process = Process::start_anywhere(&mut command, &dir.join("log"))?;
    let begin = Instant::now();
    while !socket.exists() {
        process.check()?;
        ensure!(begin.elapsed() < PATIENCE, "{} is late", socket.display());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(process)
}

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

/// Outages of a disk: 4 KiB reads of a file, one after the other.
///
/// # Errors
/// If the daemon does not serve as it should.
pub fn disk(program: &Path, end: End, count: usize) -> Result<Outages> {
    let dir = tempfile::tempdir()?;
    let (image, socket) = (path(dir.path(), "image"), path(dir.path(), "disk"));
    std::fs::File::create(&image)?.set_len(64 << 20)?;
    let item = format!("{},socket={}", image.display(), socket.display());
    let keeper = serve(program, dir.path(), &[("--disk", item)], &socket)?;
    let mut client = BlkClient::connect(&socket, ClientOptions::default())?;
    let mut queue: BlkQueue = client.take_queues().remove(0);
    queue.prepare(0, Op::In, 0, 4096)?;
    queue.post(0);
    queue.publish()?;
    let mut done: Vec<Done> = Vec::new();
    let turn = move || {
        done.clear();
        if queue.reap(&mut done)? == 0 {
            return Ok(false);
        }
        ensure!(done.iter().all(|d| d.status == OK), "{done:?}");
        queue.post(0);
        queue.publish()?;
        Ok(true)
    };
    let outages = Bed { keeper, turn }.run(end, count)?;
    drop(client);
    Ok(outages)
}

/// Outages of a port: frames from one guest to another, one after the other. A frame that is lost
/// is sent again after a millisecond.
///
/// # Errors
/// If the daemon does not serve as it should.
pub fn port(program: &Path, end: End, count: usize) -> Result<Outages> {
    const AGAIN: Duration = Duration::from_millis(1);
    let dir = tempfile::tempdir()?;
    let names = ["a", "b"].map(|name| (name, path(dir.path(), name)));
    let item = |(name, at): &(&str, PathBuf)| ("--port", format!("{name},socket={}", at.display()));
    let items: Vec<_> = names.iter().map(item).collect();
    let [(_, first), (_, second)] = &names;
    let keeper = serve(program, dir.path(), &items, second)?;
    let mut a = NetClient::connect(first, NetOptions::default())?;
    let mut b = NetClient::connect(second, NetOptions::default())?;
    let frame = |from: u8, to: u8| {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from];
        frame.extend([0x88, 0xb5]);
        frame.resize(FRAME, 0);
        frame
    };
    b.send(&frame(2, 0xff))?;
    // Learned, and written down: frames to it are not flooded, which is limited.
    std::thread::sleep(Duration::from_millis(2500));
    let there = frame(1, 2);
    let mut sender: NetPair = a.take_pairs().remove(0);
    let mut receiver: NetPair = b.take_pairs().remove(0);
    let mut sent = None::<Instant>;
    let turn = move || {
        sender.take_back()?;
        let mut received = false;
        while receiver.poll()?.is_some() {
            received = true;
        }
        if received || sent.is_none_or(|at| at.elapsed() > AGAIN) {
            if sender.queue(Header::default(), &there)? {
                sender.publish()?;
            }
            sent = Some(Instant::now());
        }
        Ok(received)
    };
    let outages = Bed { keeper, turn }.run(end, count)?;
    drop((a, b));
    Ok(outages)
}
