//! A disk under load while its daemon is killed: every request completes once, with what it says,
//! and everything acknowledged is there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use towpath_common::testing::blk::{BlkClient, BlkQueue, ClientOptions, Done, OK, Op, Shape};
use towpath_tests::daemon::{Vblk, forbidding, program};

use crate::harness::{Killer, PATIENCE, child, kills, resumed};

const SLOTS: usize = 32;
/// Each slot writes and reads its own part of the disk, this many sectors.
const SECTORS: u32 = 8;
const BYTES: usize = SECTORS as usize * 512;

/// What a slot is doing.
#[derive(Clone, Copy, PartialEq)]
enum Doing {
    /// Writing this version.
    Write(u64),
    /// Reading it back.
    Read(u64),
}

fn pattern(slot: usize, version: u64) -> Vec<u8> {
    let word = (version << 16 | slot as u64).to_le_bytes();
    word.iter().copied().cycle().take(BYTES).collect()
}

pub(crate) struct Load {
    queue: BlkQueue,
    memory: towpath_common::testing::GuestMemory,
    doing: Vec<Doing>,
    /// Requests completed, by slot.
    pub(crate) finished: u64,
}

impl Load {
    fn start(&mut self, slot: usize, doing: Doing) -> Result<()> {
        let sector = slot as u64 * u64::from(SECTORS);
        let (op, bytes) = match doing {
            Doing::Write(version) => (Op::Out, pattern(slot, version)),
            // Nothing that was there may pass for what was read.
            Doing::Read(_) => (Op::In, vec![0xee; BYTES]),
        };
        self.memory.write(self.queue.data(slot), &bytes)?;
        self.queue.prepare(slot, op, sector, SECTORS * 512)?;
        self.doing[slot] = doing;
        self.queue.post(slot);
        Ok(())
    }

    /// Take what came back, check it, go on.
    pub(crate) fn turn(&mut self, done: &mut Vec<Done>) -> Result<usize> {
        done.clear();
        self.queue.reap(done)?;
        for completion in done.iter() {
            let slot = completion.slot;
            ensure!(completion.status == OK, "slot {slot}: {completion:?}");
            self.finished += 1;
            let next = match self.doing[slot] {
                Doing::Write(version) => {
                    ensure!(completion.written == 1, "a write wrote {completion:?}");
                    Doing::Read(version)
                }
                Doing::Read(version) => {
                    let mut bytes = vec![0; BYTES];
                    self.memory.read(self.queue.data(slot), &mut bytes)?;
                    let right = bytes == pattern(slot, version);
                    ensure!(
                        right,
                        "slot {slot} lost version {version}: {:?}",
                        &bytes[..8]
                    );
                    Doing::Write(version + 1)
                }
            };
            self.start(slot, next)?;
        }
        self.queue.publish()?;
        Ok(done.len())
    }
}

/// A disk at the socket `disk`, under load.
pub(crate) fn load(vblk: &Vblk) -> Result<(BlkClient, Load)> {
    let options = ClientOptions {
        queue_size: 128,
        shape: Shape {
            slots: u16::try_from(SLOTS)?,
            buffer: u32::try_from(BYTES)?,
            ..Shape::default()
        },
        ..ClientOptions::default()
    };
    let mut client = BlkClient::connect(&vblk.path("disk"), options)?;
    let queue = client.take_queues().remove(0);
    let mut load = Load {
        queue,
        memory: client.memory().clone(),
        doing: vec![Doing::Write(1); SLOTS],
        finished: 0,
    };
    for slot in 0..SLOTS {
        load.start(slot, Doing::Write(1))?;
    }
    load.queue.publish()?;
    Ok((client, load))
}

/// A shell script that can be executed.
fn script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn survives(signal: Signal, count: usize, disk: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    survives_as(&program("vblk")?, dir, signal, count, disk)
}

fn survives_as(
    program: &Path,
    dir: TempDir,
    signal: Signal,
    count: usize,
    disk: &str,
) -> Result<()> {
    let image = std::fs::File::create(dir.path().join("image"))?;
    image.set_len(1 << 20)?;
    let mut vblk = Vblk::serve_as(program, dir, &[disk], &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let (mut client, mut load) = load(&vblk)?;
    let mut killer = Killer::new(keeper, signal, count);
    let mut done = Vec::new();
    while killer.turn()? {
        if load.turn(&mut done)? > 0 {
            killer.served();
        }
    }
    let shown = resumed(&vblk, "/v1/disks/image", || load.turn(&mut done).map(drop))?;
    ensure!(shown["connected"] == true, "{shown}");
    killer.report(&format!("{disk} {signal:?} ({} requests)", load.finished));
    ensure!(
        !client.frontend().raw().closes_within(Duration::ZERO)?,
        "the connection was closed"
    );
    // The conversation goes on as well.
    ensure!(client.capacity()? == (1 << 20) / 512, "another disk");
    vblk.daemon().stop()
}

#[test]
fn a_killed_vblk_completes_every_request_once() -> Result<()> {
    survives(Signal::KILL, kills(40), "{dir}/image,socket={dir}/disk")
}

/// Threads hold the image's lock until they are done, as io_uring's requests do.
#[test]
fn so_does_one_on_a_host_that_forbids_io_uring() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = forbidding("io_uring", &program("vblk")?, dir.path())?;
    let disk = "{dir}/image,socket={dir}/disk";
    survives_as(&program, dir, Signal::KILL, kills(20), disk)
}

#[test]
fn a_vblk_that_crashes_does_too() -> Result<()> {
    // Once more could be held against the session.
    let disk = "{dir}/image,socket={dir}/disk,cache=buffered";
    survives(Signal::ABORT, 2, disk)
}

/// A crash is blamed on the session at work, and on no other: this daemon aborts in each of its
/// lives while it is at work on a queue.
#[test]
fn a_disk_that_crashes_its_daemon_is_quarantined_and_the_others_live() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["bad", "good"] {
        std::fs::File::create(dir.path().join(name))?.set_len(1 << 20)?;
    }
    let disks = [
        "{dir}/bad,socket={dir}/disk",
        "{dir}/good,socket={dir}/other",
    ];
    let crashing = dir.path().join("vblk");
    let vblk = program("vblk")?;
    let text = format!(
        "TOWPATH_VBLK_DIE=working:200 exec {} \"$@\"",
        vblk.display()
    );
    script(&crashing, &text)?;
    let mut vblk = Vblk::serve_as(&crashing, dir, &disks, &["--keep"])?;
    let mut other = BlkClient::connect(&vblk.path("other"), ClientOptions::default())?;
    other.write(0, &[7; 512])?;
    let (mut client, mut load) = load(&vblk)?;
    let mut done = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut looked = Instant::now();
    loop {
        ensure!(Instant::now() < deadline, "never quarantined");
        load.turn(&mut done)?;
        if looked.elapsed() < Duration::from_millis(20) {
            continue;
        }
        looked = Instant::now();
        let shown = vblk.get("/v1/disks/bad");
        if shown.is_ok_and(|shown| shown["session"]["quarantined"] == true) {
            break;
        }
    }
    let mut bytes = [0; 512];
    other.read(0, &mut bytes)?;
    ensure!(bytes == [7; 512], "the other disk lost what was written");
    let shown = resumed(&vblk, "/v1/disks/good", || Ok(()))?;
    ensure!(shown["session"]["quarantined"] == false, "{shown}");
    let closed = client.frontend().raw().closes_within(Duration::ZERO)?;
    ensure!(!closed, "the connection was closed, and not held");
    ensure!(load.turn(&mut done)? == 0, "it is served in quarantine");
    vblk.client(&["disk", "release", "bad"])?;
    // As many as it is served in one life at least.
    let before = load.finished;
    while load.finished < before + 100 {
        ensure!(Instant::now() < deadline, "not served after its release");
        load.turn(&mut done)?;
    }
    vblk.daemon().stop()
}

#[test]
fn so_does_one_that_is_stopped_and_started() -> Result<()> {
    survives(Signal::USR2, kills(20), "{dir}/image,socket={dir}/disk")
}

/// The keeper starts what it finds at the path of its program, which was replaced.
#[test]
fn an_upgrade_goes_on_with_the_same_connection() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::File::create(dir.path().join("image"))?.set_len(1 << 20)?;
    let (installed, upgraded) = (dir.path().join("vblk"), dir.path().join("upgraded"));
    std::fs::copy(program("vblk")?, &installed)?;
    let disk = "{dir}/image,socket={dir}/disk";
    let mut vblk = Vblk::serve_as(&installed, dir, &[disk], &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let (mut client, mut load) = load(&vblk)?;
    let before = child(keeper);
    let text = format!(
        "echo $$ >{}\nexec {} \"$@\"",
        upgraded.display(),
        program("vblk")?.display()
    );
    // As a package manager does it: under another name first.
    let fresh = vblk.path("vblk.new");
    script(&fresh, &text)?;
    std::fs::rename(&fresh, &installed)?;
    vblk.daemon().process().signal(Signal::USR2)?;
    let mut done = Vec::new();
    resumed(&vblk, "/v1/disks/image", || load.turn(&mut done).map(drop))?;
    let after = std::fs::read_to_string(&upgraded)?;
    let now = child(keeper).map(|pid| pid.as_raw_nonzero().to_string());
    ensure!(
        Some(after.trim()) == now.as_deref() && before != child(keeper),
        "{before:?} was followed by {now:?}, not by {after}"
    );
    let closed = client.frontend().raw().closes_within(Duration::ZERO)?;
    ensure!(!closed, "the connection was closed");
    vblk.daemon().stop()
}

/// What is installed cannot start, as after an upgrade with a configuration that it refuses.
#[test]
fn an_upgrade_that_cannot_start_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::File::create(dir.path().join("image"))?.set_len(1 << 20)?;
    let installed = dir.path().join("vblk");
    std::fs::copy(program("vblk")?, &installed)?;
    let disk = "{dir}/image,socket={dir}/disk";
    let mut vblk = Vblk::serve_as(&installed, dir, &[disk], &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let (mut client, mut load) = load(&vblk)?;
    let before = child(keeper);
    let broken = vblk.path("vblk.broken");
    script(&broken, "exit 3")?;
    std::fs::rename(&broken, &installed)?;
    vblk.daemon().process().signal(Signal::USR2)?;
    let deadline = Instant::now() + PATIENCE;
    let mut done = Vec::new();
    while !vblk.said().contains("the running one goes on") {
        ensure!(Instant::now() < deadline, "it does not say what happened");
        load.turn(&mut done)?;
    }
    ensure!(before.is_some() && child(keeper) == before, "it was ended");
    let served = load.finished;
    while load.finished < served + 100 {
        ensure!(Instant::now() < deadline, "it does not serve any more");
        load.turn(&mut done)?;
    }
    let mended = vblk.path("vblk.mended");
    std::fs::copy(program("vblk")?, &mended)?;
    std::fs::rename(&mended, &installed)?;
    vblk.daemon().process().signal(Signal::USR2)?;
    resumed(&vblk, "/v1/disks/image", || load.turn(&mut done).map(drop))?;
    ensure!(
        child(keeper) != before,
        "it was not followed by the mended one"
    );
    ensure!(
        !client.frontend().raw().closes_within(Duration::ZERO)?,
        "closed"
    );
    vblk.daemon().stop()
}

/// A daemon that has served for a moment has a follower at its side, which knows what the
/// configuration was before somebody broke it.
#[test]
fn a_kill_finds_a_follower_and_a_broken_file_does_not_stop_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::File::create(dir.path().join("image"))?.set_len(1 << 20)?;
    let config = dir.path().join("vblk.toml");
    std::fs::write(&config, "[daemon]\n")?;
    let disk = "{dir}/image,socket={dir}/disk";
    let option = ["--keep", "--config", &config.display().to_string()];
    let mut vblk = Vblk::serve(dir, &[disk], &option)?;
    let keeper = vblk.daemon().process().child().id();
    let (mut client, mut load) = load(&vblk)?;
    let mut done = Vec::new();
    let path = format!("/proc/{keeper}/task/{keeper}/children");
    let mut children = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while children.len() < 2 {
        ensure!(Instant::now() < deadline, "no follower: {children:?}");
        load.turn(&mut done)?;
        let text = std::fs::read_to_string(&path)?;
        children = text.split_whitespace().map(str::to_owned).collect();
    }
    // Started, it has yet to read the file; it waits where it reads its socket.
    let waits = format!("/proc/{}/wchan", children[1]);
    while !std::fs::read_to_string(&waits)?.contains("unix_stream") {
        ensure!(Instant::now() < deadline, "it does not wait");
        load.turn(&mut done)?;
    }
    std::fs::write(&config, "nonsense")?;
    let killed = child(keeper);
    kill_process(killed.context("no daemon")?, Signal::KILL)?;
    resumed(&vblk, "/v1/disks/image", || load.turn(&mut done).map(drop))?;
    let now = child(keeper).map(|pid| pid.as_raw_nonzero().to_string());
    ensure!(
        now.as_ref() == Some(&children[1]),
        "{now:?} of {children:?}"
    );
    ensure!(
        vblk.said().contains("the configuration is broken"),
        "{}",
        vblk.said()
    );
    ensure!(
        !client.frontend().raw().closes_within(Duration::ZERO)?,
        "closed"
    );
    vblk.daemon().stop()
}
