//! Something else lies where a socket was: the machine that had connected there goes on across
//! restarts, and others can connect again once it is gone.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_common::testing::net::{NetClient, NetOptions};
use towpath_tests::daemon::{Vblk, Vswitch};

use crate::disk;
use crate::harness::{child, resumed, until};

/// Kills the daemon below `keeper`; gives it no time to be followed unseen.
fn killed(keeper: u32) -> Result<()> {
    let before = child(keeper).context("no daemon")?;
    kill_process(before, Signal::KILL)?;
    until("a successor", || {
        Ok(child(keeper).filter(|now| *now != before).map(drop))
    })
}

fn occupied(socket: &Path) -> Result<()> {
    std::fs::remove_file(socket)?;
    Ok(std::fs::create_dir(socket)?)
}

fn is_deaf(shown: &Value) -> bool {
    let why = shown["last_error"].as_str().unwrap_or_default();
    why.contains("no front-end can connect") && why.contains("is not a socket")
}

#[test]
fn a_disk_whose_socket_cannot_be_had_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::File::create(dir.path().join("image"))?.set_len(1 << 20)?;
    let disk = "{dir}/image,socket={dir}/disk";
    let mut vblk = Vblk::serve(dir, &[disk], &["--keep"])?;
    let keeper = vblk.daemon().process().child().id();
    let (mut client, mut load) = disk::load(&vblk)?;
    occupied(&vblk.path("disk"))?;
    let mut done = Vec::new();
    // What it was told last is done with.
    until("answers", || {
        load.turn(&mut done)?;
        Ok((load.finished > 100).then_some(()))
    })?;
    // Nor can the second one, which follows one that had none.
    for _ in 0..2 {
        killed(keeper)?;
        let shown = resumed(&vblk, "/v1/disks/image", || load.turn(&mut done).map(drop))?;
        ensure!(is_deaf(&shown), "{shown}");
        let before = load.finished;
        until("answers", || {
            load.turn(&mut done)?;
            Ok((load.finished > before + 100).then_some(()))
        })?;
    }
    ensure!(!client.frontend().raw().closes_within(Duration::ZERO)?);
    std::fs::remove_dir(vblk.path("disk"))?;
    until("the socket", || {
        Ok(vblk.get("/v1/disks/image")?["last_error"]
            .is_null()
            .then_some(()))
    })?;
    let said = vblk.said();
    ensure!(said.contains("front-ends can connect again"), "{said}");
    drop((client, load));
    let mut again = BlkClient::connect(&vblk.path("disk"), ClientOptions::default())?;
    ensure!(again.capacity()? == (1 << 20) / 512, "another disk");
    drop(again);
    vblk.daemon().stop()
}

#[test]
fn so_does_a_port() -> Result<()> {
    let ports = ["a,socket={dir}/a", "b,socket={dir}/b"];
    let mut vswitch = Vswitch::serve(tempfile::tempdir()?, &ports, &["--keep"])?;
    let keeper = vswitch.daemon().process().child().id();
    let connect = |port| NetClient::connect(&vswitch.path(port), NetOptions::default());
    let (mut a, mut b) = (connect("a")?, connect("b")?);
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5];
    frame.resize(64, 9);
    a.send(&frame)?;
    ensure!(b.expect()?.frame == frame, "another frame");
    occupied(&vswitch.path("a"))?;
    for number in 0..2 {
        killed(keeper)?;
        let shown = resumed(&vswitch, "/v1/ports/a", || Ok(()))?;
        ensure!(is_deaf(&shown), "{shown}");
        resumed(&vswitch, "/v1/ports/b", || Ok(()))?;
        frame.truncate(14);
        frame.resize(64, number);
        a.send(&frame)?;
        ensure!(b.expect()?.frame == frame, "another frame");
    }
    std::fs::remove_dir(vswitch.path("a"))?;
    until("the socket", || {
        Ok(vswitch.get("/v1/ports/a")?["last_error"]
            .is_null()
            .then_some(()))
    })?;
    drop(a);
    let mut a = connect("a")?;
    a.send(&frame)?;
    ensure!(b.expect()?.frame == frame, "another frame");
    vswitch.daemon().stop()
}
