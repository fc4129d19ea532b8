//! NBD by the real daemon: several connections, one of which is cut under load over and over; a
//! server that is there and says nothing any more.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use towpath_tests::daemon::Vblk;
use towpath_tests::nbd::{Relay, qemu_nbd};
use towpath_tests::process::Process;

use crate::hung::until_stuck;
use crate::kills::{Guest, IMAGE_BYTES};
use crate::{PATIENCE, create_image};

/// Connections asked for.
const CONNECTIONS: usize = 4;
/// How often one of them is cut.
const CUTS: usize = 24;

/// A server of `dir/far` at `dir/far.sock`; None without qemu-nbd.
fn serve(dir: &Path) -> Result<Option<Process>> {
    create_image(&dir.join("far"), IMAGE_BYTES)?;
    match qemu_nbd(&dir.join("far.sock"), &dir.join("far")) {
        Ok(server) => Ok(Some(server)),
        Err(error) => {
            println!("skipped: {error:#}");
            Ok(None)
        }
    }
}

/// Work until `wanted` more records were acknowledged, or something else is true.
fn work(guest: &mut Guest, wanted: u64, mut enough: impl FnMut() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let wanted = guest.written().iter().sum::<u64>() + wanted;
    while guest.written().iter().sum::<u64>() < wanted || !enough() {
        guest.post()?;
        if guest.reap()? == 0 {
            std::thread::yield_now();
        }
        ensure!(Instant::now() < until, "it is held up");
    }
    Ok(())
}

#[test]
fn connections_are_cut_one_by_one_under_load_and_nothing_is_lost_or_doubled() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(server) = serve(dir.path())? else {
        return Ok(());
    };
    let relay = Relay::start(&dir.path().join("relay.sock"), &dir.path().join("far.sock"))?;
    let disk = format!(
        "nbd:unix:{{dir}}/relay.sock,socket={{dir}}/disk,queues=1,name=d,connections={CONNECTIONS}"
    );
    let mut vblk = Vblk::serve(dir, &[&disk], &[])?;
    let mut guest = Guest::connect(&vblk)?;
    let all_there = || relay.open().len() == CONNECTIONS;
    work(&mut guest, 200, all_there)?;
    for round in 0..CUTS {
        let open = relay.open();
        let busy = |before: &[(usize, u64)]| {
            let sent = relay.open();
            let grew = |(n, was): &(usize, u64)| sent.iter().any(|(m, is)| m == n && is > was);
            before.iter().all(grew)
        };
        // Each is used, the one opened last as well.
        work(&mut guest, 50, || busy(&open))?;
        guest.post()?;
        relay.cut(open.get(round % open.len()).context("all are gone")?.0);
        // Made anew, while the guest goes on.
        work(&mut guest, 50, all_there)?;
    }
    guest.settle()?;
    let shown = vblk.get("/v1/disks/d")?;
    ensure!(shown["trouble"].is_null(), "{shown}");
    let losses = vblk.metric("towpath_vblk_storage_losses_total", "disk=\"d\"")?;
    ensure!(losses == CUTS as f64, "{losses} connections were lost");
    guest.check(&File::open(vblk.path("far"))?)?;
    drop(guest);
    vblk.daemon().stop()?;
    drop(server);
    Ok(())
}

#[test]
fn an_nbd_server_that_falls_silent_holds_up_its_own_disk_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(server) = serve(dir.path())? else {
        return Ok(());
    };
    create_image(&dir.path().join("image"), IMAGE_BYTES)?;
    let here = dir.path().display().to_string();
    let good =
        format!("[[disk]]\nname = \"d\"\npath = \"{here}/image\"\nsocket = \"{here}/disk\"\n");
    let bad = |name: &str| {
        format!(
            "[[disk]]\nname = \"{name}\"\npath = \"nbd:unix:{here}/far.sock\"\n\
             socket = \"{here}/{name}\"\nconnections = 2\n"
        )
    };
    let file = dir.path().join("vblk.toml");
    fs::write(&file, format!("{good}{}", bad("hangs")))?;
    let mut vblk = Vblk::serve(dir, &[], &["--config", "{dir}/vblk.toml"])?;
    let mut guest = Guest::connect(&vblk)?;
    for round in 0..2 {
        let mut stuck = Guest::connect_to(&vblk, "hangs")?;
        work(&mut stuck, 200, || true)?;
        server.signal(Signal::STOP)?;
        let done = until_stuck(&mut stuck)?;
        ensure!(done > 0, "it never worked");
        // One worker serves both, and so it is when the silent one is taken away, or all end.
        work(&mut guest, 2_000, || true)?;
        if round > 0 {
            guest.settle()?;
            vblk.daemon().stop()?;
            break;
        }
        fs::write(&file, &good)?;
        let removed = std::thread::scope(|scope| {
            let asking = scope.spawn(|| vblk.client(&["reload"]));
            work(&mut guest, 2_000, || asking.is_finished())?;
            let joined = asking.join();
            joined.map_err(|_| anyhow::anyhow!("the client panicked"))?
        })?;
        println!("{}", removed.trim());
        let shown = vblk.client(&["disk", "list"])?;
        ensure!(!shown.contains("hangs"), "{shown}");
        // It answers again, and is served again.
        server.signal(Signal::CONT)?;
        fs::write(&file, format!("{good}{}", bad("hangs")))?;
        vblk.client(&["reload"])?;
    }
    server.signal(Signal::CONT)?;
    guest.check(&File::open(vblk.path("image"))?)
}
