//! Storage in trouble while the daemon dies: what failed stays failed, what is held stays held, and
//! a disk that cannot be opened holds up no other.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use towpath_common::testing::blk::{BlkClient, ClientOptions, Done, OK, Op};
use towpath_tests::daemon::Vblk;
use towpath_tests::mounted::Mounted;
use towpath_tests::nbd::qemu_nbd;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use crate::harness::{PATIENCE, child, until};

const MIB: u64 = 1 << 20;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

/// A disk on a file system that has no room for all of it.
struct Tight {
    vblk: Vblk,
    keeper: u32,
    client: BlkClient,
    filler: PathBuf,
    _mounted: Mounted,
    _scratch: TempDir,
}

impl Tight {
    /// None, with a printed reason, if nothing can be mounted.
    fn new(on_error: &str) -> Result<Option<Tight>> {
        let scratch = tempfile::tempdir()?;
        let Some(mounted) = Mounted::memory(scratch.path(), 2 * MIB)? else {
            return Ok(None);
        };
        let image = mounted.path().join("image");
        File::create(&image)?.set_len(8 * MIB)?;
        let disk = format!(
            "{},socket={{dir}}/disk,name=d,cache=buffered,on-error={on_error}",
            image.display()
        );
        let mut vblk = Vblk::serve(tempfile::tempdir()?, &[&disk], &["--keep"])?;
        let keeper = vblk.daemon().process().child().id();
        let client = BlkClient::connect(&vblk.path("disk"), ClientOptions::default())?;
        let filler = mounted.path().join("filler");
        Ok(Some(Tight {
            vblk,
            keeper,
            client,
            filler,
            _mounted: mounted,
            _scratch: scratch,
        }))
    }

    /// Leave no room.
    fn fill(&self) -> Result<()> {
        let file = File::create(&self.filler)?;
        let mut at = 0;
        while file.write_at(&[1; 4096], at)? == 4096 {
            at += 4096;
            if at >= 4 * MIB {
                break;
            }
        }
        Ok(())
    }

    /// Fill it, whatever the last write says.
    fn tighten(&self) {
        // ENOSPC is what it ends with.
        let filled = self.fill();
        assert!(filled.is_err(), "there is no end to it");
    }

    fn relax(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.filler)?)
    }

    fn shown(&self) -> Result<Value> {
        self.vblk.get("/v1/disks/d")
    }

    /// End the daemon, and wait for the one that follows.
    fn end_by(&mut self, signal: Signal) -> Result<Value> {
        let before = child(self.keeper).context("no daemon")?;
        if signal == Signal::USR2 {
            self.vblk.daemon().process().signal(signal)?;
        } else {
            kill_process(before, signal)?;
        }
        until("a successor", || {
            let anew = child(self.keeper).is_some_and(|now| now != before);
            let shown = self.shown().ok();
            let shown = shown.filter(|s| s["session"]["resumed"] == true);
            Ok(shown.filter(|_| anew))
        })
    }

    fn write(&mut self, at: u64) -> Result<Done> {
        Ok(self.client.request(Op::Out, at / 512, 4096)?)
    }
}

#[test]
fn a_disk_that_failed_is_failed_after_a_kill_until_an_operator_clears_it() -> Result<()> {
    let Some(mut tight) = Tight::new("fail")? else {
        return Ok(());
    };
    ensure!(tight.write(0)?.status == OK);
    tight.tighten();
    ensure!(tight.write(4 * MIB)?.status != OK, "there was no room");
    ensure!(tight.shown()?["failed"] == "all");
    tight.relax()?;
    for signal in [Signal::KILL, Signal::USR2, Signal::KILL] {
        let shown = tight.end_by(signal)?;
        ensure!(shown["failed"] == "all", "{signal:?}: {shown}");
        ensure!(tight.write(0)?.status != OK, "{signal:?}");
    }
    tight.vblk.client(&["disk", "clear", "d"])?;
    ensure!(tight.write(4 * MIB)?.status == OK);
    let shown = tight.end_by(Signal::KILL)?;
    ensure!(shown["failed"].is_null(), "{shown}");
    ensure!(tight.write(0)?.status == OK);
    tight.vblk.daemon().stop()
}

#[test]
fn a_failure_that_is_reported_is_over_when_there_is_room() -> Result<()> {
    let Some(mut tight) = Tight::new("report")? else {
        return Ok(());
    };
    tight.tighten();
    ensure!(tight.write(4 * MIB)?.status != OK, "there was no room");
    tight.relax()?;
    ensure!(tight.write(4 * MIB)?.status == OK);
    tight.vblk.daemon().stop()
}

#[test]
fn what_is_held_is_held_by_a_successor_and_done_when_there_is_room() -> Result<()> {
    let Some(mut tight) = Tight::new("hold")? else {
        return Ok(());
    };
    tight.tighten();
    let queue = &mut tight.client.queues()[0];
    queue.prepare(0, Op::Out, 4 * MIB / 512, 4096)?;
    queue.post(0);
    queue.publish()?;
    let held = |tight: &Tight| {
        until("a held request", || {
            Ok((tight.shown()?["held"] == 1).then_some(()))
        })
    };
    held(&tight)?;
    let mut done = Vec::new();
    for signal in [Signal::USR2, Signal::KILL, Signal::USR2] {
        tight.end_by(signal)?;
        held(&tight)?;
        let early = tight.client.queues()[0].reap(&mut done)?;
        ensure!(early == 0, "{signal:?}: the guest was told {done:?}");
    }
    tight.relax()?;
    until("an end", || {
        Ok((tight.client.queues()[0].reap(&mut done)? > 0).then_some(()))
    })?;
    ensure!(done.len() == 1 && done[0].status == OK, "{done:?}");
    ensure!(tight.shown()?["held"] == 0);
    tight.vblk.daemon().stop()
}

#[test]
fn a_disk_whose_server_is_away_holds_up_no_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [near, far, socket] = ["near", "far", "nbd"].map(|name| dir.path().join(name));
    for image in [&near, &far] {
        File::create(image)?.set_len(MIB)?;
    }
    let server = qemu_nbd(&socket, &far)?;
    let disks = [
        "{dir}/near,socket={dir}/near.sock,name=near".to_owned(),
        format!(
            "nbd:unix:{},socket={{dir}}/far.sock,name=far",
            socket.display()
        ),
    ];
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let mut vblk = Vblk::serve(dir, &disks, &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let connect = |name: &str| BlkClient::connect(&vblk.path(name), ClientOptions::default());
    let (mut close, mut distant) = (connect("near.sock")?, connect("far.sock")?);
    close.write(0, &[1; 512])?;
    distant.write(0, &[2; 512])?;
    drop(server);
    let before = child(keeper).context("no daemon")?;
    kill_process(before, Signal::KILL)?;
    let mut bytes = [0; 512];
    close.read(0, &mut bytes)?;
    ensure!(bytes == [1; 512], "the near disk lost what was written");
    let shown = until("the far disk", || Ok(vblk.get("/v1/disks/far").ok()))?;
    let trouble = shown["trouble"].as_str().unwrap_or_default();
    ensure!(trouble.starts_with("not served yet: "), "{shown}");
    let metric = vblk.metric("towpath_vblk_storage_trouble", "disk=\"far\"")?;
    ensure!(metric > 0.5, "the metric says {metric}");
    // Another one while it is away, and a change of the others.
    let second = child(keeper).context("no daemon")?;
    kill_process(second, Signal::KILL)?;
    close.write(0, &[3; 512])?;
    let server = qemu_nbd(&socket, &far)?;
    until("the far disk", || {
        let shown = vblk.get("/v1/disks/far").ok();
        Ok(shown.filter(|shown| shown["session"]["resumed"] == true))
    })?;
    distant.read(0, &mut bytes)?;
    ensure!(bytes == [2; 512], "the far disk lost what was written");
    // Nobody knows what the server had not written when it ended.
    ensure!(distant.flush().is_err(), "FLUSH promises what is not known");
    vblk.client(&["disk", "clear", "far"])?;
    distant.flush()?;
    for client in [&mut close, &mut distant] {
        let closed = client.frontend().raw().closes_within(Duration::ZERO)?;
        ensure!(!closed, "a connection was closed");
    }
    vblk.daemon().stop()?;
    drop(server);
    Ok(())
}

/// As after a kill between the change of a file and the word about it.
#[test]
fn a_size_that_is_not_what_the_guest_was_told_is_told_by_a_successor() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    File::create(&image)?.set_len(4 * MIB)?;
    let disk = "{dir}/image,socket={dir}/disk,queues=1,name=d";
    let mut vblk = Vblk::serve(dir, &[disk], &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let mut options = ClientOptions::default();
    options.wanted.protocol |= Protocol::BACKEND_REQ;
    let mut client = BlkClient::connect(&vblk.path("disk"), options)?;
    let channel = client.frontend().backend_channel(PATIENCE)?;
    ensure!(client.capacity()? == 4 * MIB / 512);
    File::options().write(true).open(&image)?.set_len(8 * MIB)?;
    kill_process(child(keeper).context("no daemon")?, Signal::KILL)?;
    ensure!(channel.recv()?.request == CONFIG_CHANGE);
    ensure!(client.capacity()? == 8 * MIB / 512);
    client.write(8 * MIB / 512 - 8, &[7; 4096])?;
    vblk.daemon().stop()
}
