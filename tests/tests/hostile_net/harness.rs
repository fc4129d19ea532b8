//! The stage: one vswitch, a victim, a witness, an honest pair, and what must be the same
//! afterwards.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use towpath_common::testing::net::frame::{BROADCAST, station};
use towpath_common::testing::net::{Frame, Header, NetClient, NetOptions, Received};
use towpath_common::testing::{Driver, Frontend, GuestMemory, Wanted, feature};
use towpath_tests::daemon::Daemon;
use towpath_tests::process::command;
use towpath_tests::{api, cargo};

use crate::honest::Honest;
pub(crate) use crate::victim::{Victim, desc};

/// Guards against hanging; nothing here takes a hundredth of it on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const MIB: u64 = 1 << 20;
/// Entries of a victim's rings.
pub(crate) const QUEUE: u16 = 64;
/// Bytes of a victim's buffer for frames.
pub(crate) const DATA: u32 = 128 << 10;
/// The victim's transmit ring, among its device's: the one that is polled.
pub(crate) const RING: u32 = 1;
/// A ring that the victim does not use.
pub(crate) const SPARE: u32 = 2;
/// The first ring that its device surely does not have: two pairs and a control queue.
pub(crate) const BEYOND: u32 = 5;
/// A feature that no port offers: fragmented UDP, which nobody can segment correctly.
pub(crate) const FOREIGN: u64 = 1 << 14;
/// Bytes of a victim's receive buffer.
pub(crate) const RX_BUFFER: u32 = 2048;
/// How far the honest pair must get after an attack.
const PROGRESS: u64 = 20;
/// Anonymous memory the daemon may keep after an attack, in KiB: allocator slack.
const GROWTH: u64 = 8 << 10;
/// Lines of the daemon's log that are shown if a test fails.
const LOG: usize = 30;
const TICK: Duration = Duration::from_millis(5);
/// All ports. The first three are in VLAN 1; `trunk` carries 1 and 10, `ten` is in 10; the honest
/// pair is alone in VLAN 2.
const PORTS: [&str; 7] = [
    "victim", "guarded", "witness", "trunk", "ten", "left", "right",
];
/// What the victim, the guarded port's guest and the witness are called.
pub(crate) const VICTIM: u32 = 1;
pub(crate) const GUARDED: u32 = 2;
pub(crate) const WITNESS: u32 = 3;

/// The ports of a scene; `{dir}` stands for the daemon's directory.
const CONFIG: &str = r#"
[switch]
fdb_size = 4096

[[port]]
name = "victim"
socket = "{dir}/victim.sock"
queues = 2
guards = { broadcast_limit = "off", multicast_limit = "off", unknown_limit = "off" }

[[port]]
name = "guarded"
socket = "{dir}/guarded.sock"
mac = "02:54:00:00:00:02"
queues = 2

[[port]]
name = "witness"
socket = "{dir}/witness.sock"
guards = { broadcast_limit = "off", multicast_limit = "off", unknown_limit = "off" }

[[port]]
name = "trunk"
socket = "{dir}/trunk.sock"
trunk = "1,10"
guards.mac_limit = "off"
guards.broadcast_limit = "off"
guards.multicast_limit = "off"
guards.unknown_limit = "off"

[[port]]
name = "ten"
socket = "{dir}/ten.sock"
access = 10

[[port]]
name = "left"
socket = "{dir}/left.sock"
access = 2

[[port]]
name = "right"
socket = "{dir}/right.sock"
access = 2
"#;

/// Polls until `done` gives something, or fails with what it waited for.
pub(crate) fn until<T>(what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        sleep(TICK);
    }
}

/// What front-ends ask for.
pub(crate) fn wanted() -> Wanted {
    NetOptions::default().wanted
}

/// Counters by reason.
pub(crate) type Counts = BTreeMap<String, u64>;

fn counts(value: &Value) -> Counts {
    let pairs = value.as_object().into_iter().flatten();
    let pairs = pairs.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)));
    pairs.filter(|(_, count)| *count > 0).collect()
}

/// What was counted between two looks.
fn difference(before: &Counts, after: &Counts) -> Counts {
    let grown = |(name, count): (&String, &u64)| {
        let more = count - before.get(name).copied().unwrap_or(0).min(*count);
        (more > 0).then(|| (name.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

/// A vswitch with its honest pair and its witness.
pub(crate) struct Scene {
    honest: Option<Honest>,
    witness: Option<Rc<RefCell<NetClient>>>,
    daemon: Daemon,
    dir: TempDir,
    fds: usize,
    anonymous_kib: u64,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let program = match std::env::var_os("TOWPATH_VSWITCH") {
            Some(named) => named.into(),
            None => cargo::program("vswitch", "vswitch")?,
        };
        let here = dir.path().display().to_string();
        let config = dir.path().join("vswitch.toml");
        fs::write(&config, CONFIG.replace("{dir}", &here))?;
        let mut command = command(&program);
        command.arg("serve").arg("--config").arg(config);
        command.arg("--control").arg(dir.path().join("control"));
        let daemon = Daemon::notifying("vswitch", &mut command, dir.path())?;
        let mut scene = Self {
            honest: None,
            witness: None,
            daemon,
            dir,
            fds: 0,
            anonymous_kib: 0,
        };
        // One session each first: what the daemon makes once and keeps is no growth.
        let warm = PORTS.into_iter().map(|port| scene.client(port));
        drop(warm.collect::<Result<Vec<_>>>()?);
        scene.settle()?;
        // All rings that a victim may have: two pairs and a control queue.
        let all = NetOptions {
            pairs: 2,
            control: Some(4),
            ..NetOptions::default()
        };
        let all = all.with(feature::NET_CTRL_VQ);
        drop(NetClient::connect(&scene.socket("victim"), all)?);
        scene.settle()?;
        scene.fds = scene.daemon.process().open_fds()?;
        scene.anonymous_kib = scene.daemon.process().anonymous_kib()?;
        let pair = ["left", "right"].map(|port| scene.socket(port));
        scene.honest = Some(Honest::start([&pair[0], &pair[1]])?);
        scene.witness = Some(Rc::new(RefCell::new(scene.client("witness")?)));
        Ok(scene)
    }

    pub(crate) fn socket(&self, port: &str) -> PathBuf {
        self.dir.path().join(format!("{port}.sock"))
    }

    /// What the API says about a port.
    pub(crate) fn port(&self, name: &str) -> Result<Value> {
        self.get(&format!("/v1/ports/{name}"))
    }

    /// What the API answers.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        api::data(&self.dir.path().join("control"), path)
    }

    /// What the API says about the victim's port.
    pub(crate) fn status(&self) -> Result<Value> {
        self.port("victim")
    }

    /// Frames that a port discarded so far, by reason.
    pub(crate) fn discards(&self, port: &str) -> Result<Counts> {
        Ok(counts(&self.port(port)?["stats"]["discards"]))
    }

    /// Rings of a port that broke so far, by reason.
    pub(crate) fn violations(&self, port: &str) -> Result<Counts> {
        Ok(counts(&self.port(port)?["stats"]["ring_broken"]))
    }

    /// Runs `attack`, for which a port must discard exactly this many frames for each reason, and
    /// none for others.
    pub(crate) fn discarded<T>(
        &self,
        port: &str,
        expected: &[(&str, u64)],
        attack: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = self.discards(port)?;
        let result = attack()?;
        let expected: Counts = expected
            .iter()
            .map(|(n, c)| ((*n).to_owned(), *c))
            .collect();
        let total = |counts: &Counts| counts.values().sum::<u64>();
        let mut now = Counts::new();
        let all = until("frames discarded", || {
            now = difference(&before, &self.discards(port)?);
            Ok((total(&now) >= total(&expected)).then_some(()))
        });
        ensure!(
            all.is_ok() && now == expected,
            "{port} discarded {now:?}, expected {expected:?}"
        );
        Ok(result)
    }

    /// A front-end on the victim's port, well behaved so far.
    pub(crate) fn victim(&self) -> Result<Victim> {
        self.victim_with(wanted(), &GuestMemory::new(MIB)?)
    }

    pub(crate) fn victim_on(&self, memory: &GuestMemory) -> Result<Victim> {
        self.victim_with(wanted(), memory)
    }

    pub(crate) fn victim_with(&self, wanted: Wanted, memory: &GuestMemory) -> Result<Victim> {
        let frontend = Frontend::connect(&self.socket("victim"), wanted, PATIENCE)?;
        let witness = self.witness.as_ref().context("a witness runs")?;
        Victim::over(frontend, memory, Rc::clone(witness))
    }

    /// A front-end that has connected, and shaken hands.
    pub(crate) fn frontend(&self) -> Result<Frontend> {
        let socket = self.socket("victim");
        Ok(Frontend::connect(&socket, wanted(), PATIENCE)?)
    }

    /// An honest guest on a port.
    pub(crate) fn client(&self, port: &str) -> Result<NetClient> {
        let options = NetOptions {
            patience: PATIENCE,
            ..NetOptions::default()
        };
        Ok(NetClient::connect(&self.socket(port), options)?)
    }

    /// What the witness gets next, within `patience`.
    pub(crate) fn seen(&self, patience: Duration) -> Result<Option<Received>> {
        let witness = self.witness.as_ref().context("a witness runs")?;
        Ok(witness.borrow_mut().receive(patience)?)
    }

    /// The witness sends a frame.
    pub(crate) fn say(&self, frame: &Frame) -> Result<()> {
        let witness = self.witness.as_ref().context("a witness runs")?;
        witness.borrow_mut().send(&frame.bytes())?;
        Ok(witness.borrow_mut().flush()?)
    }

    /// The witness sends frames that are taken in one burst.
    pub(crate) fn burst(&self, frames: &[Vec<u8>]) -> Result<()> {
        let mut witness = self
            .witness
            .as_ref()
            .context("a witness runs")?
            .borrow_mut();
        let pair = witness.pair()?;
        for frame in frames {
            ensure!(pair.queue(Header::default(), frame)?, "no room to send");
        }
        Ok(pair.flush(PATIENCE)?)
    }

    /// Whatever the witness got so far is forgotten; how many frames that was.
    pub(crate) fn forget(&self) -> Result<usize> {
        let mut frames = 0;
        while self.seen(Duration::ZERO)?.is_some() {
            frames += 1;
        }
        Ok(frames)
    }

    /// Runs an attack that must break the victim's transmit ring, for `reason`, once.
    pub(crate) fn breaks(
        &self,
        reason: &str,
        attack: impl FnOnce(&mut Victim) -> Result<()>,
    ) -> Result<()> {
        let before = self.violations("victim")?;
        let mut victim = self.victim()?;
        attack(&mut victim)?;
        ensure!(
            victim.ring.events().broken(PATIENCE)?,
            "not broken, and should be for {reason}"
        );
        self.broke_once(&before, 1, reason)
    }

    /// Runs an attack on the victim's receive ring, which breaks for `reason`, once, when a frame
    /// is to be written to it. There are no receive buffers but those of the attack.
    pub(crate) fn breaks_receive(
        &self,
        reason: &str,
        attack: impl FnOnce(&mut Victim) -> Result<()>,
    ) -> Result<()> {
        let before = self.violations("victim")?;
        let mut victim = self.victim()?;
        victim.withdraw()?;
        attack(&mut victim)?;
        // Several at once, so that several buffers are taken at once.
        let frame = Frame::new(BROADCAST, station(WITNESS)).numbered(1, 100);
        self.burst(&vec![frame.bytes(); 4])?;
        ensure!(
            victim.rx.events().broken(PATIENCE)?,
            "not broken, and should be for {reason}"
        );
        self.broke_once(&before, 0, reason)?;
        // The transmit ring is another one.
        victim.transmits()
    }

    /// The API says that ring `index` of the victim is broken, and counted it once.
    fn broke_once(&self, before: &Counts, index: u64, reason: &str) -> Result<()> {
        let mut now = Value::Null;
        until(&format!("ring {index} broken for {reason}"), || {
            now = self.ring(index)?;
            let counted = difference(before, &self.violations("victim")?);
            let once = counted == Counts::from([(reason.to_owned(), 1)]);
            Ok((now["broken"] == reason && once).then_some(()))
        })
        .with_context(|| {
            format!(
                "the ring is {now}, counters {:?}",
                self.violations("victim")
            )
        })
    }

    /// What the API says about a ring of the victim's.
    pub(crate) fn ring(&self, index: u64) -> Result<Value> {
        let mut status = self.status()?;
        let rings = status["session"]["rings"].as_array_mut();
        let ring = rings.and_then(|rings| rings.iter_mut().find(|r| r["index"] == index));
        Ok(ring.map_or(Value::Null, Value::take))
    }

    /// The API says that the victim's transmit ring is broken for `reason`.
    pub(crate) fn is_latched(&self, reason: &str) -> Result<()> {
        until("ring broken", || {
            Ok((self.ring(RING.into())?["broken"] == reason).then_some(()))
        })
    }

    /// The API says that the last session of the victim's port met an error with `text` in it.
    pub(crate) fn error_says(&self, text: &str) -> Result<()> {
        let mut last = Value::Null;
        until(text, || {
            last = self.status()?["last_error"].take();
            Ok(last.as_str().filter(|why| why.contains(text)).map(drop))
        })
        .with_context(|| format!("the last error was {last}"))
    }

    /// The honest pair still gets on.
    pub(crate) fn unaffected(&self) -> Result<()> {
        let honest = self.honest.as_ref().context("an honest pair runs")?;
        let goal = honest.rounds() + PROGRESS;
        until("the honest pair's progress", || {
            ensure!(!honest.has_failed(), "the honest pair failed");
            Ok((honest.rounds() >= goal).then_some(()))
        })
    }

    /// How far the honest pair got.
    pub(crate) fn rounds(&self) -> u64 {
        self.honest.as_ref().map_or(0, Honest::rounds)
    }

    /// All that must hold after an attack; every front-end of the test is gone by now.
    pub(crate) fn finish(mut self) -> Result<()> {
        let unaffected = self.unaffected();
        let honest = self.honest.take().context("an honest pair ran")?;
        honest.stop()?;
        unaffected?;
        drop(self.witness.take());
        self.settle()?;
        let fds = self.fds;
        until("file descriptors as before", || {
            let now = self.daemon.process().open_fds()?;
            Ok((now <= fds).then_some(()))
        })
        .with_context(|| format!("more than {fds} are open"))?;
        let kib = self.daemon.process().anonymous_kib()?;
        let most = self.anonymous_kib + GROWTH;
        ensure!(kib <= most, "{kib} KiB of anonymous memory, at most {most}");
        self.daemon.stop()
    }

    /// Waits until no front-end is connected.
    pub(crate) fn settle(&self) -> Result<()> {
        self.gone(&PORTS)
    }

    /// Waits until no front-end is connected but the witness and the honest pair.
    pub(crate) fn settle_but_witness(&self) -> Result<()> {
        self.gone(&["victim", "guarded", "trunk", "ten"])
    }

    fn gone(&self, ports: &[&str]) -> Result<()> {
        for name in ports {
            until("disconnected", || {
                Ok((self.port(name)?["connected"] == false).then_some(()))
            })?;
        }
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Shown by the test runner if the test failed.
        println!("{}", self.daemon.log().tail(LOG));
        for port in PORTS {
            let about = self.port(port).map(|mut port| port["stats"].take());
            println!("{port}: {about:?}");
        }
    }
}

/// Offloads besides what front-ends usually ask for here.
pub(crate) fn with_offloads() -> Wanted {
    let mut wanted = wanted();
    wanted.features |= feature::NET_OFFLOADS;
    wanted
}
