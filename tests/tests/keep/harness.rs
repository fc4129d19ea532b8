//! Daemons under `--keep`: found, killed, and looked at while they come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use towpath_tests::daemon::Service;

/// Longest a daemon may be away before it counts as lost: a guard against hangs, no measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Kills in each test, `usual` unless the environment says more.
pub(crate) fn kills(usual: usize) -> usize {
    let asked = std::env::var("TOWPATH_KILLS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// The daemon that a keeper runs now.
pub(crate) fn child(keeper: u32) -> Option<Pid> {
    let path = format!("/proc/{keeper}/task/{keeper}/children");
    let text = std::fs::read_to_string(path).ok()?;
    Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
}

/// Numbers without a pattern, the same in each run (xorshift64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Kills a keeper's daemon now and then, and measures how long its guests waited.
pub(crate) struct Killer {
    keeper: u32,
    /// Which signal ends it.
    signal: Signal,
    left: usize,
    random: Random,
    next: Instant,
    /// Somebody was served since the last kill.
    served: bool,
    killed: Option<Pid>,
    /// When something was done last, and the longest pause since the last kill.
    last: Instant,
    pause: Duration,
    /// The longest pause of a guest from each kill to the next.
    outages: Vec<Duration>,
}

impl Killer {
    pub(crate) fn new(keeper: u32, signal: Signal, kills: usize) -> Killer {
        Killer {
            keeper,
            signal,
            left: kills,
            random: Random(0x9e37_79b9_7f4a_7c15),
            next: Instant::now() + Duration::from_millis(50),
            served: false,
            killed: None,
            last: Instant::now(),
            pause: Duration::ZERO,
            outages: Vec::new(),
        }
    }

    /// Something was done for a guest.
    pub(crate) fn served(&mut self) {
        self.served = true;
        let now = Instant::now();
        self.pause = self.pause.max(now - self.last);
        self.last = now;
    }

    /// To be called all the time; false once every kill is done.
    pub(crate) fn turn(&mut self) -> Result<bool> {
        ensure!(
            self.last.elapsed() < PATIENCE,
            "nothing is served after a kill"
        );
        if self.left == 0 {
            return Ok(false);
        }
        let now = Instant::now();
        // Mostly at work, and one time of four whatever it does: starting, for example.
        if now < self.next || !(self.served || self.random.below(4) == 0) {
            return Ok(true);
        }
        let Some(pid) = child(self.keeper).filter(|pid| Some(*pid) != self.killed) else {
            return Ok(true);
        };
        kill_process(pid, self.signal).context("the daemon cannot be killed")?;
        if self.killed.replace(pid).is_some() && self.served {
            self.outages.push(self.pause);
            self.pause = Duration::ZERO;
        }
        self.left -= 1;
        self.served = false;
        self.next = now + Duration::from_millis(5 + self.random.below(90));
        Ok(true)
    }

    /// What the outages were, for people to read.
    pub(crate) fn report(&mut self, what: &str) {
        self.outages.sort_unstable();
        let at = |part: usize| {
            self.outages
                .get((self.outages.len() * part / 100).max(1) - 1)
        };
        println!(
            "{what}: {} outages, median {:?}, p99 {:?}, longest {:?}",
            self.outages.len(),
            at(50).copied().unwrap_or_default(),
            at(99).copied().unwrap_or_default(),
            self.outages.last().copied().unwrap_or_default(),
        );
    }
}

/// Go on until the API shows the session of the disk or port at `path` as one that was resumed.
pub(crate) fn resumed(
    service: &Service,
    path: &str,
    mut go_on: impl FnMut() -> Result<()>,
) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    let mut looked = Instant::now();
    let mut last = String::new();
    while Instant::now() < deadline {
        go_on()?;
        if looked.elapsed() < Duration::from_millis(50) {
            continue;
        }
        looked = Instant::now();
        match service.get(path) {
            Ok(shown) if shown["session"]["resumed"] == true => return Ok(shown),
            Ok(shown) => last = shown.to_string(),
            Err(error) => last = format!("{error:#}"),
        }
    }
    bail!("{path} does not show a session that was resumed: {last}")
}
