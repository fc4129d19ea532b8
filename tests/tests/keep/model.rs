//! Random sequences of what operators do to a vblk, restarts and kills among them, against a model:
//! after each step the daemon shows what the model has, and guests read what they wrote on the
//! connections they have had since their disks were configured.
//!
//! The seed is printed; `TOWPATH_SEED` in the environment repeats a run.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_tests::daemon::Vblk;

use crate::harness::{Random, child, until};

const STEPS: usize = 60;
const MIB: u64 = 1 << 20;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const POLICIES: [&str; 3] = ["report", "hold", "fail"];

/// What an operator may say of a disk, in the configuration or to the daemon.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Told {
    weight: u64,
    iops: Option<u64>,
    on_error: &'static str,
}

impl Told {
    fn random(random: &mut Random) -> Told {
        let iops = 1000 * (1 + random.below(50));
        Told {
            weight: 1 + random.below(500),
            iops: (random.below(2) == 0).then_some(iops),
            on_error: POLICIES[usize::try_from(random.below(3)).unwrap_or(0)],
        }
    }

    /// As a reload leaves what is `now`: what did not change in the file stays as it was told
    /// since.
    fn reloaded(now: Told, before: Told, after: Told) -> Told {
        fn kept<T: PartialEq>(now: T, before: &T, after: T) -> T {
            if *before == after { now } else { after }
        }
        Told {
            weight: kept(now.weight, &before.weight, after.weight),
            iops: kept(now.iops, &before.iops, after.iops),
            on_error: kept(now.on_error, &before.on_error, after.on_error),
        }
    }
}

/// A disk as it should be, and its guest.
struct Modelled {
    configured: Told,
    now: Told,
    bytes: u64,
    /// What was written last at the beginning.
    holds: u8,
    client: BlkClient,
}

struct World {
    vblk: Vblk,
    keeper: u32,
    config: PathBuf,
    disks: BTreeMap<&'static str, Modelled>,
    random: Random,
    stamp: u8,
}

impl World {
    fn new(seed: u64) -> Result<World> {
        let dir = tempfile::tempdir()?;
        for name in NAMES {
            File::create(dir.path().join(name))?.set_len(MIB)?;
        }
        let config = dir.path().join("vblk.toml");
        std::fs::write(&config, "[daemon]\n")?;
        let option = ["--keep", "--config", &config.display().to_string()];
        let mut vblk = Vblk::serve(dir, &[], &option)?;
        let keeper = vblk.daemon().process().child().id();
        Ok(World {
            vblk,
            keeper,
            config,
            disks: BTreeMap::new(),
            random: Random(seed | 1),
            stamp: 0,
        })
    }

    fn pick(&mut self) -> Option<&'static str> {
        let count = self.disks.len() as u64;
        let at = self.random.below(count.max(1));
        self.disks.keys().nth(usize::try_from(at).ok()?).copied()
    }

    /// The file as the model has it, with `told` for disks that differ from it.
    fn write_config(&self, told: &BTreeMap<&str, Told>) -> Result<()> {
        let mut text = "[daemon]\n".to_owned();
        for (name, told) in told {
            let [file, socket] = [*name, &format!("{name}.sock")].map(|n| self.vblk.path(n));
            let (file, socket) = (file.display(), socket.display());
            writeln!(
                text,
                "[[disk]]\nname = \"{name}\"\npath = \"{file}\"\nsocket = \"{socket}\"\n\
                 queues = 1\nshrink = true\nweight = {}\non_error = \"{}\"",
                told.weight, told.on_error
            )?;
            if let Some(iops) = told.iops {
                writeln!(text, "iops = {iops}")?;
            }
        }
        Ok(std::fs::write(&self.config, text)?)
    }

    fn configured(&self) -> BTreeMap<&'static str, Told> {
        let disks = self.disks.iter();
        disks.map(|(name, disk)| (*name, disk.configured)).collect()
    }

    fn connect(&self, name: &str) -> Result<BlkClient> {
        let socket = self.vblk.path(&format!("{name}.sock"));
        Ok(BlkClient::connect(&socket, ClientOptions::default())?)
    }

    /// Another configuration: a disk more, one less, or one told something else.
    fn reload(&mut self) -> Result<String> {
        let mut wanted = self.configured();
        let at = usize::try_from(self.random.below(NAMES.len() as u64))?;
        let name = NAMES[at];
        let told = Told::random(&mut self.random);
        let removed = self.random.below(3) == 0 && wanted.remove(name).is_some();
        if !removed {
            wanted.insert(name, told);
        }
        self.write_config(&wanted)?;
        self.vblk.client(&["reload"])?;
        if removed {
            let mut gone = self.disks.remove(name).context("no such disk")?;
            let closed = gone.client.frontend().raw();
            ensure!(
                closed.closes_within(Duration::from_secs(10))?,
                "{name} lives"
            );
        } else if let Some(disk) = self.disks.get_mut(name) {
            disk.now = Told::reloaded(disk.now, disk.configured, told);
            disk.configured = told;
        } else {
            let bytes = std::fs::metadata(self.vblk.path(name))?.len();
            let mut client = self.connect(name)?;
            let mut first = [0; 512];
            client.read(0, &mut first)?;
            let disk = Modelled {
                configured: told,
                now: told,
                bytes,
                holds: first[0],
                client,
            };
            self.disks.insert(name, disk);
        }
        Ok(format!("reload {name} {told:?} removed={removed}"))
    }

    /// A configuration that cannot be applied changes nothing.
    fn bad_reload(&mut self) -> Result<String> {
        let mut wanted = self.configured();
        let told = Told::random(&mut self.random);
        for name in NAMES {
            wanted.insert(name, told);
        }
        wanted.insert("nowhere", told);
        self.write_config(&wanted)?;
        let refused = self.vblk.client(&["reload"]);
        self.write_config(&self.configured())?;
        ensure!(refused.is_err(), "a disk that is nowhere is served");
        Ok("a reload that is refused".to_owned())
    }

    fn set(&mut self) -> Result<String> {
        let Some(name) = self.pick() else {
            return Ok(String::new());
        };
        let told = Told::random(&mut self.random);
        let iops = told.iops.map(|n| n.to_string()).unwrap_or_default();
        let words = [
            format!("weight={}", told.weight),
            format!("iops={iops}"),
            format!("on-error={}", told.on_error),
        ];
        let mut arguments = vec!["disk", "set", name];
        arguments.extend(words.iter().map(String::as_str));
        self.vblk.client(&arguments)?;
        self.disks.get_mut(name).context("no such disk")?.now = told;
        let wrong = self.vblk.client(&["disk", "set", name, "weight=0"]);
        ensure!(wrong.is_err(), "a weight of 0 is taken");
        Ok(format!("set {name} {told:?}"))
    }

    fn resize(&mut self) -> Result<String> {
        let Some(name) = self.pick() else {
            return Ok(String::new());
        };
        let bytes = MIB * (1 + self.random.below(4));
        let size = bytes.to_string();
        self.vblk
            .client(&["disk", "resize", name, &size, "--shrink"])?;
        let disk = self.disks.get_mut(name).context("no such disk")?;
        disk.bytes = bytes;
        Ok(format!("resize {name} {bytes}"))
    }

    fn write(&mut self) -> Result<String> {
        let Some(name) = self.pick() else {
            return Ok(String::new());
        };
        self.stamp = self.stamp.wrapping_add(1);
        let (stamp, disk) = (self.stamp, self.disks.get_mut(name));
        let disk = disk.context("no such disk")?;
        disk.client.write(0, &[stamp; 512])?;
        disk.holds = stamp;
        Ok(format!("write {name} {stamp}"))
    }

    /// Restarted or killed: what was told since the file was read is forgotten, and nothing else.
    fn restart(&mut self, signal: Signal) -> Result<String> {
        let before = child(self.keeper).context("no daemon")?;
        if signal == Signal::USR2 {
            self.vblk.daemon().process().signal(signal)?;
        } else {
            kill_process(before, signal)?;
        }
        for disk in self.disks.values_mut() {
            disk.now = disk.configured;
        }
        until("a successor", || {
            let anew = child(self.keeper).is_some_and(|now| now != before);
            let shown = self.vblk.get("/v1/disks").ok();
            let back = |disk: &Value| disk["session"]["resumed"] == true;
            let all = |shown: &Value| shown.as_array().is_some_and(|d| d.iter().all(back));
            Ok(shown.filter(|shown| anew && all(shown)))
        })?;
        Ok(format!("{signal:?}"))
    }

    fn step(&mut self) -> Result<String> {
        match self.random.below(16) {
            0..5 => self.reload(),
            5 => self.bad_reload(),
            6..9 => self.set(),
            9..11 => self.resize(),
            11..14 => self.write(),
            14 => self.restart(Signal::USR2),
            _ => self.restart(Signal::KILL),
        }
    }

    /// The daemon shows what the model has, and guests see what they should.
    fn check(&mut self) -> Result<()> {
        let shown = self.vblk.get("/v1/disks")?;
        let shown = shown.as_array().context("no disks")?;
        let names: Vec<_> = shown.iter().filter_map(|d| d["name"].as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        ensure!(sorted.iter().eq(self.disks.keys()), "{names:?} are served");
        for disk in shown {
            let name = disk["name"].as_str().context("no name")?;
            let model = self.disks.get_mut(name).context("no such disk")?;
            let (now, limit) = (model.now, &disk["limit"]);
            ensure!(
                disk["weight"] == now.weight
                    && limit["iops"].as_u64() == now.iops
                    && disk["on_error"] == now.on_error
                    && disk["size_bytes"] == model.bytes
                    && disk["connected"] == true
                    && disk["trouble"].is_null(),
                "{name} should be {now:?} and {} bytes: {disk}",
                model.bytes
            );
            ensure!(model.client.capacity()? == model.bytes / 512, "{name}");
            let mut first = [0; 512];
            model.client.read(0, &mut first)?;
            ensure!(first == [model.holds; 512], "{name} holds something else");
            let closed = model.client.frontend().raw();
            ensure!(!closed.closes_within(Duration::ZERO)?, "{name} hung up");
        }
        Ok(())
    }
}

#[test]
fn whatever_operators_do_a_vblk_is_what_it_should_be() -> Result<()> {
    let given = std::env::var("TOWPATH_SEED").ok();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let seed = given.and_then(|s| s.parse().ok()).unwrap_or(now.into());
    let mut world = World::new(seed)?;
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let step = world.step();
        let context = || format!("TOWPATH_SEED={seed}, after {done:#?}");
        let step = step.with_context(context)?;
        let checked = world.check();
        checked.with_context(|| format!("TOWPATH_SEED={seed}, {step} after {done:#?}"))?;
        done.push(step);
    }
    println!("seed {seed}, {} steps", done.len());
    world.vblk.daemon().stop()
}
