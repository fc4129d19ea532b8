//! Daemons under `--keep`: found, killed, and looked at while they come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use towpath_tests::daemon::Service;

/// Longest a daemon may be away before it counts as lost: a guard against hangs, no measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A test that was not run for so long was stopped, with all it watches: nobody waited meanwhile.
const STOPPED: Duration = Duration::from_millis(500);

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

/// Waits until `seen` makes something of what there is; `what` names it in the error.
pub(crate) fn until<T>(what: &str, mut seen: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = seen()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
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

/// When the next kill comes.
#[derive(Clone, Copy)]
enum Due {
    /// This long after somebody was served again.
    Served(Duration),
    /// This long after the daemon was started, whatever it does then: it reads its configuration,
    /// takes up sessions, has just begun to serve.
    Started(Duration),
}

/// Kills a keeper's daemon now and then, and measures how long its guests waited.
pub(crate) struct Killer {
    keeper: u32,
    /// Which signal ends it; SIGUSR2 is for the keeper.
    signal: Signal,
    left: usize,
    random: Random,
    due: Due,
    /// The daemon that was killed last, and the one that is seen since, with the time.
    killed: Option<Pid>,
    seen: Option<(Pid, Instant)>,
    /// When somebody was served first since the last kill.
    served: Option<Instant>,
    /// Kills of a daemon that had served nobody.
    early: usize,
    /// When something was done last, and the longest pause since somebody was served.
    last: Instant,
    pause: Duration,
    /// When [`Killer::turn`] was called last.
    turned: Instant,
    /// The longest pause of a guest from one time it was served to the next kill but one.
    outages: Vec<Duration>,
}

impl Killer {
    pub(crate) fn new(keeper: u32, signal: Signal, kills: usize) -> Killer {
        Killer {
            keeper,
            signal,
            left: kills,
            random: Random(0x9e37_79b9_7f4a_7c15),
            due: Due::Served(Duration::from_millis(50)),
            killed: None,
            seen: None,
            served: None,
            early: 0,
            last: Instant::now(),
            pause: Duration::ZERO,
            turned: Instant::now(),
            outages: Vec::new(),
        }
    }

    /// Something was done for a guest.
    pub(crate) fn served(&mut self) {
        let now = Instant::now();
        self.served.get_or_insert(now);
        self.pause = self.pause.max(now - self.last);
        self.last = now;
    }

    /// To be called all the time; false once every kill is done.
    pub(crate) fn turn(&mut self) -> Result<bool> {
        let away = self.turned.elapsed();
        self.turned += away;
        if away > STOPPED {
            self.last += away;
        }
        ensure!(
            self.last.elapsed() < PATIENCE,
            "nothing is served after a kill, with {} to come",
            self.left
        );
        if self.left == 0 {
            return Ok(false);
        }
        let waits = match self.due {
            Due::Served(pause) => self.served.is_none_or(|at| at.elapsed() < pause),
            Due::Started(pause) => self.seen.is_some_and(|(_, at)| at.elapsed() < pause),
        };
        if waits {
            return Ok(true);
        }
        let Some(pid) = child(self.keeper).filter(|pid| Some(*pid) != self.killed) else {
            return Ok(true);
        };
        let (seen, at) = *self.seen.get_or_insert((pid, Instant::now()));
        if seen != pid {
            // It ended by itself; the pause is the new one's.
            self.seen = None;
            return Ok(true);
        }
        if let Due::Started(pause) = self.due
            && at.elapsed() < pause
        {
            return Ok(true);
        }
        let whom = match self.signal {
            // Asks a keeper for another daemon.
            Signal::USR2 => i32::try_from(self.keeper).ok().and_then(Pid::from_raw),
            _ => Some(pid),
        };
        let whom = whom.context("a process id is positive")?;
        kill_process(whom, self.signal).context("the daemon cannot be killed")?;
        if self.killed.replace(pid).is_some() && self.served.is_some() {
            self.outages.push(self.pause);
            self.pause = Duration::ZERO;
        }
        self.early += usize::from(self.served.is_none());
        self.left -= 1;
        (self.served, self.seen) = (None, None);
        // Mostly at work, and one time of four in the first moments of its life.
        self.due = if self.random.below(4) == 0 {
            Due::Started(Duration::from_micros(self.random.below(40_000)))
        } else {
            Due::Served(Duration::from_micros(self.random.below(90_000)))
        };
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
            "{what}: {} kills before anybody was served; {} outages, median {:?}, p99 {:?}, \
             longest {:?}",
            self.early,
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
