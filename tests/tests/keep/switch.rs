//! A switch under load while it is killed: nobody gets a frame twice, at most a burst is lost a
//! kill, nothing is forgotten, and no counter goes back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use towpath_common::testing::net::{Header, NetClient, NetOptions, NetPair};
use towpath_tests::daemon::Vswitch;

use crate::harness::{Killer, PATIENCE, child, kills, resumed, until};

/// Frames that may be under way: less than the receiver has buffers for.
const WINDOW: u64 = 128;
/// Frames that a kill may lose: a burst of the switch.
const BURST: u64 = 64;
/// Without a frame for this long, those under way were lost.
const SILENCE: Duration = Duration::from_millis(1500);

fn mac(station: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, station]
}

fn frame(from: u8, to: u8, number: u64) -> Vec<u8> {
    let mut frame = [mac(to), mac(from)].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(64, 0);
    frame
}

fn number(frame: &[u8]) -> u64 {
    frame[14..22]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// One sender, one receiver, and what they know.
struct Stream {
    sender: NetPair,
    receiver: NetPair,
    /// The next number to send, and the last one received.
    next: u64,
    last: u64,
    received: u64,
    /// Nothing new is sent.
    ending: bool,
    /// All before this one is received or lost.
    settled: u64,
    heard: Instant,
}

impl Stream {
    /// Send what may be sent, receive what is there; how many came.
    fn turn(&mut self) -> Result<u64> {
        let mut queued = false;
        while !self.ending && self.next - self.settled < WINDOW {
            if !self
                .sender
                .queue(Header::default(), &frame(1, 2, self.next))?
            {
                break;
            }
            self.next += 1;
            queued = true;
        }
        if queued {
            self.sender.publish()?;
        }
        self.sender.take_back()?;
        let before = self.received;
        while let Some(received) = self.receiver.poll()? {
            let bytes = &received.frame;
            if bytes[12..14] != [0x88, 0xb5] || bytes[..6] != mac(2) {
                continue;
            }
            let number = number(bytes);
            ensure!(
                number > self.last,
                "frame {number} came after {}",
                self.last
            );
            self.last = number;
            self.settled = number;
            self.received += 1;
        }
        if self.received > before {
            self.heard = Instant::now();
        } else if self.heard.elapsed() > SILENCE {
            // What is under way is lost; a kill came between the last frame and this.
            self.settled = self.next - 1;
            self.heard = Instant::now();
        }
        Ok(self.received - before)
    }
}

fn connect(vswitch: &Vswitch, port: &str) -> Result<NetClient> {
    Ok(NetClient::connect(
        &vswitch.path(port),
        NetOptions::default(),
    )?)
}

/// Frames that the switch counts at port `name` from its guest.
fn counted(vswitch: &Vswitch, name: &str) -> Option<u64> {
    let port = vswitch.get(&format!("/v1/ports/{name}")).ok()?;
    port["stats"]["queues"][0]["rx"]["packets"].as_u64()
}

/// `lost`: frames that may be lost each time.
fn survives(signal: Signal, count: usize, lost: u64) -> Result<()> {
    let most = lost * count as u64;
    let dir = tempfile::tempdir()?;
    let ports = ["a,socket={dir}/a", "b,socket={dir}/b", "c,socket={dir}/c"];
    let mut vswitch = Vswitch::serve(dir, &ports, &["--keep"])?;
    let keeper = vswitch.daemon().process().child().id();
    let (mut a, mut b, mut c) = (
        connect(&vswitch, "a")?,
        connect(&vswitch, "b")?,
        connect(&vswitch, "c")?,
    );
    // Everybody is known, and that is written down.
    for (station, guest) in [(1, &mut a), (2, &mut b), (3, &mut c)] {
        guest.send(&frame(station, 0xff, 0))?;
    }
    std::thread::sleep(Duration::from_millis(2500));
    while c.poll()?.is_some() {}
    let mut stream = Stream {
        sender: a.take_pairs().remove(0),
        receiver: b.take_pairs().remove(0),
        next: 1,
        last: 0,
        received: 0,
        ending: false,
        settled: 0,
        heard: Instant::now(),
    };
    let mut killer = Killer::new(keeper, signal, count);
    let (mut shown, mut looked) = (0, Instant::now());
    while killer.turn()? {
        if stream.turn()? > 0 {
            killer.served();
        }
        ensure!(c.poll()?.is_none(), "a frame for b was flooded to c");
        if looked.elapsed() > Duration::from_millis(700) {
            looked = Instant::now();
            if let Some(now) = counted(&vswitch, "a") {
                ensure!(now >= shown, "the counter went from {shown} to {now}");
                shown = now;
            }
        }
    }
    for name in ["a", "b", "c"] {
        resumed(&vswitch, &format!("/v1/ports/{name}"), || {
            stream.turn().map(drop)
        })?;
    }
    // The last ones arrive.
    stream.ending = true;
    let (deadline, end) = (Instant::now() + PATIENCE, stream.next);
    while stream.last + 1 < end && Instant::now() < deadline && stream.heard.elapsed() < SILENCE / 2
    {
        stream.turn()?;
    }
    let lost = stream.next - 1 - stream.received;
    killer.report(&format!(
        "switch {signal:?} ({} frames, {lost} lost)",
        stream.received
    ));
    ensure!(lost <= most, "{lost} frames lost in {count} kills");
    // Each look before may have come while the API was away.
    let now = until("counters", || Ok(counted(&vswitch, "a")))?;
    ensure!(
        now > 0 && now >= shown,
        "the counter went from {shown} to {now}"
    );
    for (name, guest) in [("a", &mut a), ("b", &mut b), ("c", &mut c)] {
        let closed = guest.frontend().raw().closes_within(Duration::ZERO)?;
        ensure!(!closed, "the connection of {name} was closed");
    }
    vswitch.daemon().stop()
}

#[test]
fn a_killed_vswitch_forgets_nothing_and_doubles_nothing() -> Result<()> {
    survives(Signal::KILL, kills(40), BURST)
}

/// Aborts the daemon while `flood` keeps port `bad` at work, until that is quarantined; how often,
/// and how the port is shown then.
fn crash_until_held(
    vswitch: &Vswitch,
    keeper: u32,
    mut flood: impl FnMut() -> Result<bool>,
) -> Result<(usize, Value)> {
    let mut crashes = 0;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A crash between two bursts is nobody's fault.
        let (mut served, mut looked) = (0, Instant::now());
        while served < 50 {
            ensure!(
                Instant::now() < deadline,
                "never quarantined, after {crashes} crashes"
            );
            served += u32::from(flood()?);
            if looked.elapsed() > Duration::from_millis(20) {
                looked = Instant::now();
                let bad = vswitch.get("/v1/ports/bad").ok();
                if let Some(held) = bad.filter(|shown| shown["session"]["quarantined"] == true) {
                    return Ok((crashes, held));
                }
            }
        }
        if let Some(pid) = child(keeper) {
            // It may be ending already.
            let _ = kill_process(pid, Signal::ABORT);
            crashes += 1;
        }
    }
}

/// A crash is blamed on the port at work, and on no other: the daemon is aborted while the guest of
/// one sends as fast as it can, to a guest that only listens.
#[test]
fn a_port_that_crashes_its_daemon_is_quarantined_and_the_others_live() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ports = [
        "bad,socket={dir}/bad",
        "good,socket={dir}/good",
        "other,socket={dir}/other",
    ];
    let mut vswitch = Vswitch::serve(dir, &ports, &["--keep"])?;
    let keeper = vswitch.daemon().process().child().id();
    let (mut bad, mut good, mut other) = (
        connect(&vswitch, "bad")?,
        connect(&vswitch, "good")?,
        connect(&vswitch, "other")?,
    );
    let mut sender = bad.take_pairs().remove(0);
    let mut flood = |good: &mut NetClient| -> Result<bool> {
        let mut sent = false;
        while sender.queue(Header::default(), &frame(1, 2, 0))? {
            sent = true;
        }
        sender.publish()?;
        sender.take_back()?;
        while good.poll()?.is_some() {}
        Ok(sent)
    };
    let (crashes, held) = crash_until_held(&vswitch, keeper, || flood(&mut good))?;
    println!("quarantined after {crashes} crashes");
    ensure!(crashes >= 3, "after {crashes} crashes");
    let why = held["last_error"].as_str().unwrap_or_default();
    ensure!(why.contains("crashed 3 times over this session"), "{held}");
    // The others are served, and nobody hung up.
    for name in ["good", "other"] {
        let shown = resumed(&vswitch, &format!("/v1/ports/{name}"), || Ok(()))?;
        ensure!(shown["session"]["quarantined"] == false, "{shown}");
    }
    while good.poll()?.is_some() {}
    other.send(&frame(3, 2, 77))?;
    let received = good.expect()?.frame;
    ensure!(number(&received) == 77, "something else came");
    for guest in [&mut bad, &mut good, &mut other] {
        let closed = guest.frontend().raw().closes_within(Duration::ZERO)?;
        ensure!(!closed, "a connection was closed");
    }
    ensure!(
        !flood(&mut good)? || !flood(&mut good)?,
        "it is served in quarantine"
    );
    vswitch.client(&["port", "release", "bad"])?;
    until("its frames", || Ok(flood(&mut good)?.then_some(())))?;
    resumed(&vswitch, "/v1/ports/bad", || flood(&mut good).map(drop))?;
    vswitch.daemon().stop()
}

#[test]
fn one_that_is_stopped_and_started_loses_nothing() -> Result<()> {
    survives(Signal::USR2, kills(20), 0)
}
