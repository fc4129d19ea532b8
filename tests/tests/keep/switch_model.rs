//! Random sequences of what operators do to a vswitch, restarts and kills among them, against a
//! model: after each step the switch shows what the model has, and a frame that a guest sends
//! reaches those that it should, on the connections they have had since their ports were there.
//!
//! The seed is printed; `TOWPATH_SEED` in the environment repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use towpath_common::testing::net::{NetClient, NetOptions};
use towpath_tests::daemon::Vswitch;

use crate::harness::{Random, child, until};

const STEPS: usize = 60;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const VLANS: [u64; 3] = [1, 10, 20];
/// Addresses that nobody sends from.
const ADDRESSES: u64 = 4;

/// A port as it is configured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Port {
    access: u64,
    isolated: bool,
    mac_limit: u64,
}

/// A configuration: of the file, or in force.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    ports: BTreeMap<&'static str, Port>,
    /// By address and VLAN.
    statics: BTreeMap<(u64, u64), &'static str>,
    /// From one port to another.
    mirror: Option<(&'static str, &'static str)>,
}

impl Told {
    fn carries(&self, port: &str, vlan: u64) -> bool {
        self.ports.get(port).is_some_and(|port| port.access == vlan)
    }

    /// Without what names a port that is not there, or not in the VLAN.
    fn pruned(mut self) -> Told {
        let statics = std::mem::take(&mut self.statics).into_iter();
        let right = statics.filter(|((_, vlan), port)| self.carries(port, *vlan));
        self.statics = right.collect();
        let ports = &self.ports;
        self.mirror = self
            .mirror
            .filter(|(from, to)| ports.contains_key(from) && ports.contains_key(to));
        self
    }

    fn names(&self, port: &str) -> bool {
        let mirrored = self.mirror.is_some_and(|(a, b)| a == port || b == port);
        mirrored || self.statics.values().any(|at| *at == port)
    }

    fn text(&self, vswitch: &Vswitch) -> Result<String> {
        let mut text = String::new();
        for (name, port) in &self.ports {
            let socket = vswitch.path(&format!("{name}.sock"));
            writeln!(
                text,
                "[[port]]\nname = {name:?}\nsocket = {socket:?}\nqueues = 1\naccess = {}\n\
                 isolated = {}\nguards = {{ mac_limit = {} }}",
                port.access, port.isolated, port.mac_limit
            )?;
        }
        for ((mac, vlan), port) in &self.statics {
            let mac = written(station(100 + mac));
            writeln!(
                text,
                "[[fdb]]\nmac = {mac:?}\nvlan = {vlan}\nport = {port:?}"
            )?;
        }
        if let Some((from, to)) = self.mirror {
            writeln!(
                text,
                "[[mirror]]\nname = \"m\"\nfrom = [{from:?}]\nto = {to:?}"
            )?;
        }
        Ok(text)
    }
}

fn station(number: u64) -> [u8; 6] {
    [2, 0x54, 0, 0, 0, u8::try_from(number).unwrap_or(u8::MAX)]
}

fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

struct World {
    vswitch: Vswitch,
    keeper: u32,
    config: PathBuf,
    /// What the file says, and what is in force.
    file: Told,
    now: Told,
    guests: BTreeMap<&'static str, NetClient>,
    random: Random,
    /// Sent so far; and by port, those of which it may have got copies.
    frames: u64,
    copied: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> Result<World> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("vswitch.toml");
        std::fs::write(&config, "[switch]\n")?;
        let option = ["--keep", "--config", &config.display().to_string()];
        let mut vswitch = Vswitch::serve(dir, &[], &option)?;
        let keeper = vswitch.daemon().process().child().id();
        Ok(World {
            vswitch,
            keeper,
            config,
            file: Told::default(),
            now: Told::default(),
            guests: BTreeMap::new(),
            random: Random(seed | 1),
            frames: 0,
            copied: BTreeMap::new(),
        })
    }

    fn any(&mut self) -> &'static str {
        let at = self.random.below(NAMES.len() as u64);
        NAMES[usize::try_from(at).unwrap_or(0)]
    }

    fn vlan(&mut self) -> u64 {
        VLANS[usize::try_from(self.random.below(3)).unwrap_or(0)]
    }

    fn port(&mut self) -> Port {
        Port {
            access: self.vlan(),
            isolated: self.random.below(3) == 0,
            mac_limit: 8 + self.random.below(50),
        }
    }

    /// A port that is served.
    fn pick(&mut self) -> Option<&'static str> {
        let count = self.now.ports.len() as u64;
        let at = usize::try_from(self.random.below(count.max(1))).ok()?;
        self.now.ports.keys().nth(at).copied()
    }

    /// `change` with these arguments, which `works` or is refused.
    fn change(&self, arguments: &[&str], works: bool) -> Result<()> {
        let said = self.vswitch.client(arguments);
        ensure!(said.is_ok() == works, "{arguments:?}: {said:?}");
        Ok(())
    }

    /// Guests of ports that are gone see that; those of new ones connect.
    fn reconnect(&mut self) -> Result<()> {
        let gone: Vec<_> = self.guests.keys().copied().collect();
        for name in gone
            .iter()
            .filter(|name| !self.now.ports.contains_key(*name))
        {
            let mut guest = self.guests.remove(name).context("a guest")?;
            let closed = guest.frontend().raw();
            ensure!(
                closed.closes_within(Duration::from_secs(10))?,
                "{name} lives"
            );
        }
        for name in self.now.ports.keys() {
            if !self.guests.contains_key(name) {
                let socket = self.vswitch.path(&format!("{name}.sock"));
                let guest = NetClient::connect(&socket, NetOptions::default())?;
                self.guests.insert(name, guest);
                let path = format!("/v1/ports/{name}");
                until("a link", || {
                    let rings = self.vswitch.get(&path)?["session"]["rings"].clone();
                    let run = |ring: &Value| ring["running"] == true && ring["enabled"] == true;
                    let running = rings
                        .as_array()
                        .map(|all| all.iter().filter(|r| run(r)).count());
                    Ok((running == Some(2)).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Another file, with what is wrong in it or not; in force only if it is right.
    fn reload(&mut self) -> Result<String> {
        let mut wanted = self.file.clone();
        let name = self.any();
        let port = self.port();
        if self.random.below(4) == 0 {
            wanted.ports.remove(name);
        } else {
            wanted.ports.insert(name, port);
        }
        wanted
            .statics
            .insert((self.random.below(ADDRESSES), port.access), name);
        let (from, to) = (self.any(), self.any());
        wanted.mirror = (from != to && self.random.below(3) == 0).then_some((from, to));
        let wanted = wanted.pruned();
        let text = wanted.text(&self.vswitch)?;
        let wrong = match self.random.below(6) {
            // It does not hold together; it cannot be served.
            0 => "[[fdb]]\nmac = \"02:54:00:00:00:77\"\nport = \"nobody\"\n",
            1 => "[[port]]\nname = \"z\"\nsocket = \"/nowhere/z\"\n",
            _ => "",
        };
        std::fs::write(&self.config, format!("{text}{wrong}[switch]\n"))?;
        self.change(&["reload"], wrong.is_empty())?;
        if wrong.is_empty() {
            self.file = wanted.clone();
            self.now = wanted;
        } else {
            let text = self.file.text(&self.vswitch)?;
            std::fs::write(&self.config, format!("{text}[switch]\n"))?;
        }
        Ok(format!("reload {wrong:?}: {text}"))
    }

    fn add(&mut self) -> Result<String> {
        let (name, port) = (self.any(), self.port());
        let socket = self.vswitch.path(&format!("{name}.sock"));
        let mut words = format!(
            "{name},socket={},queues=1,access={},guards.mac_limit={}",
            socket.display(),
            port.access,
            port.mac_limit
        );
        if port.isolated {
            words += ",isolated";
        }
        let new = !self.now.ports.contains_key(name);
        self.change(&["port", "add", &words], new)?;
        if new {
            self.now.ports.insert(name, port);
        }
        Ok(format!("add {words}"))
    }

    fn set(&mut self) -> Result<String> {
        let Some(name) = self.pick() else {
            return Ok(String::new());
        };
        let port = self.port();
        let isolated = if port.isolated {
            "isolated"
        } else {
            "isolated="
        };
        let words = format!(
            "{name},access={},guards.mac_limit={},{isolated}",
            port.access, port.mac_limit
        );
        let mut statics = self.now.statics.iter();
        let works = statics.all(|((_, vlan), at)| *at != name || *vlan == port.access);
        self.change(&["port", "set", &words], works)?;
        if works {
            self.now.ports.insert(name, port);
        }
        self.change(&["port", "set", &format!("{name},access=4095")], false)?;
        Ok(format!("set {words}"))
    }

    fn remove(&mut self) -> Result<String> {
        let name = self.any();
        let works = self.now.ports.contains_key(name) && !self.now.names(name);
        self.change(&["port", "remove", name], works)?;
        if works {
            self.now.ports.remove(name);
        }
        Ok(format!("remove {name}"))
    }

    fn address(&mut self) -> Result<String> {
        let (number, mut vlan, port) = (self.random.below(ADDRESSES), self.vlan(), self.any());
        // Seldom in a VLAN that the port does not carry.
        if let Some(port) = self.now.ports.get(port).filter(|_| number > 0) {
            vlan = port.access;
        }
        let (mac, tag) = (written(station(100 + number)), vlan.to_string());
        let known = self.now.statics.contains_key(&(number, vlan));
        if self.random.below(3) == 0 {
            self.change(&["fdb", "del", &mac, "--vlan", &tag], known)?;
            self.now.statics.remove(&(number, vlan));
            return Ok(format!("fdb del {mac} {vlan}"));
        }
        let works = !known && self.now.carries(port, vlan);
        self.change(&["fdb", "add", &mac, "--port", port, "--vlan", &tag], works)?;
        if works {
            self.now.statics.insert((number, vlan), port);
        }
        Ok(format!("fdb add {mac} {vlan} {port}"))
    }

    fn mirror(&mut self) -> Result<String> {
        if self.now.mirror.take().is_some() {
            self.change(&["mirror", "del", "m"], true)?;
            return Ok("mirror del".to_owned());
        }
        let (from, to) = (self.any(), self.any());
        let there = |name| self.now.ports.contains_key(name);
        let works = from != to && there(from) && there(to);
        if from != to {
            self.change(&["mirror", "add", "m", "--from", from, "--to", to], works)?;
            self.now.mirror = works.then_some((from, to));
        }
        Ok(format!("mirror {from} {to}"))
    }

    /// Restarted or killed: what was told since the file was read is forgotten, and nothing else.
    fn restart(&mut self, signal: Signal) -> Result<String> {
        let before = child(self.keeper).context("no daemon")?;
        if signal == Signal::USR2 {
            self.vswitch.daemon().process().signal(signal)?;
        } else {
            kill_process(before, signal)?;
        }
        let stay = |name: &str| {
            let guest = self.guests.contains_key(name);
            guest && self.file.ports.contains_key(name) && self.now.ports.contains_key(name)
        };
        until("a successor", || {
            let anew = child(self.keeper).is_some_and(|now| now != before);
            let shown = self.vswitch.get("/v1/ports").ok();
            let back = |port: &Value| {
                let name = port["name"].as_str().unwrap_or_default();
                !stay(name) || port["session"]["resumed"] == true
            };
            let all = |shown: &Value| shown.as_array().is_some_and(|all| all.iter().all(back));
            Ok(shown.filter(|shown| anew && all(shown)))
        })?;
        self.now = self.file.clone();
        Ok(format!("{signal:?}"))
    }

    fn step(&mut self) -> Result<String> {
        match self.random.below(20) {
            0..4 => self.reload(),
            4..8 => self.add(),
            8..11 => self.set(),
            11..13 => self.remove(),
            13..15 => self.address(),
            15 | 16 => self.mirror(),
            17 | 18 => self.restart(Signal::USR2),
            _ => self.restart(Signal::KILL),
        }
    }

    /// The switch shows what the model has.
    fn check(&mut self) -> Result<()> {
        let shown = self.vswitch.get("/v1/ports")?;
        let shown = shown.as_array().context("no ports")?;
        let names: BTreeSet<_> = shown.iter().filter_map(|p| p["name"].as_str()).collect();
        ensure!(
            names.iter().eq(self.now.ports.keys()),
            "{names:?} are served"
        );
        for port in shown {
            let name = port["name"].as_str().context("no name")?;
            let wanted = self.now.ports.get(name).context("no such port")?;
            let role = match self.now.mirror {
                Some((_, to)) if to == name => "output",
                _ => "none",
            };
            ensure!(
                port["access"] == wanted.access
                    && port["isolated"] == wanted.isolated
                    && port["guards"]["mac_limit"] == wanted.mac_limit
                    && port["mirror"] == role
                    && port["connected"] == true
                    && port["last_error"].is_null(),
                "{name} should be {wanted:?}, {role}: {port}"
            );
            let guest = self.guests.get_mut(name).context("no guest")?;
            let closed = guest.frontend().raw();
            ensure!(!closed.closes_within(Duration::ZERO)?, "{name} hung up");
        }
        let shown = self.vswitch.get("/v1/fdb")?;
        let shown = shown["entries"].as_array().context("no addresses")?;
        let statics = shown.iter().filter(|entry| entry["static"] == true);
        let statics: BTreeSet<String> = statics
            .map(|e| format!("{} {} {}", e["mac"], e["vlan"], e["port"]))
            .collect();
        let wanted = self.now.statics.iter().map(|((mac, vlan), port)| {
            format!("{:?} {vlan} {port:?}", written(station(100 + mac)))
        });
        let wanted: BTreeSet<String> = wanted.collect();
        ensure!(statics == wanted, "{statics:?} should be {wanted:?}");
        self.talk()
    }

    /// Who gets a frame for `to` that a guest of `from` sends.
    fn receivers(&self, from: &str, to: Option<u64>) -> BTreeSet<&'static str> {
        let sender = self.now.ports[from];
        let target = to.and_then(|mac| self.now.statics.get(&(mac, sender.access)));
        let all = self.now.ports.iter().filter(|(name, port)| {
            **name != from
                && port.access == sender.access
                && !(port.isolated || sender.isolated)
                && target.is_none_or(|only| only == *name)
        });
        all.map(|(name, _)| *name).collect()
    }

    /// A guest says something to all, or to an address; frames for nobody show in a later step.
    fn talk(&mut self) -> Result<()> {
        let Some(from) = self.pick() else {
            return Ok(());
        };
        // What a mirror's ports get is said by other tests.
        let copies = self.now.mirror.map(|(_, to)| to);
        if copies == Some(from) {
            return Ok(());
        }
        let to = (self.random.below(2) == 0).then(|| self.random.below(ADDRESSES));
        self.frames += 1;
        let mut frame = to.map_or([0xff; 6], |mac| station(100 + mac)).to_vec();
        let own = NAMES.iter().position(|name| *name == from);
        frame.extend(station(own.context("a name")? as u64));
        frame.extend([0x88, 0xb5]);
        frame.extend(self.frames.to_be_bytes());
        frame.resize(60, 0);
        let expected = self.receivers(from, to);
        let guest = self.guests.get_mut(from).context("a guest")?;
        guest.send(&frame)?;
        // A successor would deal with it by another configuration.
        guest.flush()?;
        let what = format!("frame {} of {from} to {to:?}", self.frames);
        if let Some(to) = copies {
            self.copied.insert(to, self.frames);
        }
        for (name, guest) in &mut self.guests {
            let copied = self.copied.get(name).copied().unwrap_or(0);
            let is_copy = |frame: &[u8]| {
                let number = frame.get(14..22).unwrap_or_default();
                number
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
                    <= copied
            };
            let wanted = expected.contains(name) && copies != Some(*name);
            let came = loop {
                let came = if wanted {
                    Some(
                        guest
                            .expect()
                            .with_context(|| format!("{what} to {name}"))?,
                    )
                } else {
                    guest.poll()?
                };
                let Some(came) = came else { break None };
                if !is_copy(&came.frame) {
                    break Some(came.frame);
                }
            };
            let right = came.as_ref() == wanted.then_some(&frame);
            ensure!(right, "{what}, or one before: {name} got {came:?}");
        }
        Ok(())
    }
}

#[test]
fn whatever_operators_do_a_vswitch_is_what_it_should_be() -> Result<()> {
    let given = std::env::var("TOWPATH_SEED").ok();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let seed = given.and_then(|s| s.parse().ok()).unwrap_or(now.into());
    let mut world = World::new(seed)?;
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let context = || format!("TOWPATH_SEED={seed}, after {done:#?}");
        let step = world.step().with_context(context)?;
        let checked = world.reconnect().and_then(|()| world.check());
        checked.with_context(|| format!("TOWPATH_SEED={seed}, {step} after {done:#?}"))?;
        done.push(step);
    }
    println!("seed {seed}, {} steps, {} frames", done.len(), world.frames);
    world.vswitch.daemon().stop()
}
