//! A mirror of a running daemon, by orders and with a disk behind an NBD server: taken out, brought
//! back, lost, found again. The guest writes throughout and sees no error.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_tests::daemon::Vblk;
use towpath_tests::nbd::qemu_nbd;

use crate::kills::{Guest, IMAGE_BYTES};
use crate::{PATIENCE, create_image};

/// Make the record of `mirror`, whose disks are equal, and serve it.
fn serve(dir: tempfile::TempDir, mirror: &str, more: &str) -> Result<Vblk> {
    let mut command = Command::new(towpath_tests::cargo::program("vblk", "vblk")?);
    command.args(["mirror", "create", mirror, "--assume-clean", "--record"]);
    let made = command.arg(dir.path().join("record")).output()?;
    ensure!(made.status.success(), "{made:?}");
    let disk = "socket={dir}/disk,queues=1,name=m,record={dir}/record";
    let disk = format!("{mirror},{disk}{more}");
    Vblk::serve(dir, &[&disk], &[])
}

fn work(guest: &mut Guest, records: u64) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let wanted = guest.written().iter().sum::<u64>() + records;
    while guest.written().iter().sum::<u64>() < wanted {
        guest.post()?;
        if guest.reap()? == 0 {
            std::thread::yield_now();
        }
        ensure!(Instant::now() < until, "the mirror stands still");
    }
    Ok(())
}

/// Work until `vblk mirror show` says `what` of the second disk.
fn until(guest: &mut Guest, vblk: &Vblk, what: &str) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        work(guest, 50)?;
        let shown = vblk.client(&["mirror", "show", "m"])?;
        if shown
            .lines()
            .any(|l| l.starts_with('2') && l.contains(what))
        {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the second disk is not {what}: {shown}"
        );
    }
}

/// Bring the second disk back; its failure has to be written down first, which takes a moment.
fn add(vblk: &Vblk, more: &[&str]) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let order = [&["mirror", "add", "m", "2"], more].concat();
    while let Err(error) = vblk.client(&order) {
        let wait = format!("{error:#}").contains("try again") && Instant::now() < until;
        ensure!(wait, "{error:#}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

fn equal(one: &Path, other: &Path) -> Result<bool> {
    Ok(fs::read(one)? == fs::read(other)?)
}

#[test]
fn a_disk_is_taken_out_and_brought_back_by_orders() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    create_image(&one, IMAGE_BYTES)?;
    create_image(&two, IMAGE_BYTES)?;
    let mirror = format!("mirror:{}|{}", one.display(), two.display());
    let mut vblk = serve(dir, &mirror, "")?;
    let mut guest = Guest::connect(&vblk)?;
    until(&mut guest, &vblk, "current")?;

    vblk.client(&["mirror", "fail", "m", "2"])?;
    until(&mut guest, &vblk, "taken out")?;
    work(&mut guest, 500)?;
    guest.settle()?;
    ensure!(!equal(&one, &two)?, "a disk that was taken out is written");
    let last = vblk.client(&["mirror", "fail", "m", "1"]);
    ensure!(last.is_err(), "the last disk is taken out: {last:?}");

    add(&vblk, &[])?;
    until(&mut guest, &vblk, "current")?;
    guest.settle()?;
    ensure!(equal(&one, &two)?, "a disk that caught up differs");

    vblk.client(&["mirror", "fail", "m", "2"])?;
    until(&mut guest, &vblk, "taken out")?;
    add(&vblk, &["--full"])?;
    until(&mut guest, &vblk, "current")?;

    // A daemon that starts opens all its disks: what missed something catches up.
    vblk.client(&["mirror", "fail", "m", "2"])?;
    until(&mut guest, &vblk, "taken out")?;
    work(&mut guest, 100)?;
    guest.settle()?;
    vblk.daemon().stop()?;
    ensure!(!equal(&one, &two)?, "a disk that was taken out is written");
    vblk.start_again()?;
    guest.reconnect(&vblk)?;
    until(&mut guest, &vblk, "current")?;
    guest.settle()?;
    ensure!(
        equal(&one, &two)?,
        "a disk that was out over a restart differs"
    );
    guest.check(&fs::File::open(&two)?)?;
    vblk.daemon().stop()
}

#[test]
fn after_an_end_nothing_is_copied_and_after_a_crash_what_is_marked() -> Result<()> {
    // In memory, where the kernel can tell that a file is what it was on every machine.
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    create_image(&one, IMAGE_BYTES)?;
    create_image(&two, IMAGE_BYTES)?;
    let mirror = format!("mirror:{}|{}", one.display(), two.display());
    // So slow that what is to be copied is seen.
    let mut vblk = serve(dir, &mirror, ",resync-rate=1M")?;
    let mut guest = Guest::connect(&vblk)?;
    let shown = |vblk: &Vblk| -> Result<(u64, u64)> {
        let mirror = vblk.get("/v1/disks/m")?["mirror"].take();
        let behind = mirror["disks"][1]["behind_bytes"].as_u64();
        let copied = mirror["copied_bytes"].as_u64().context("bytes copied")?;
        let marked = mirror["marked_bytes"].as_u64().context("bytes marked")?;
        Ok((behind.context("bytes behind")? + copied, marked))
    };
    work(&mut guest, 500)?;
    guest.settle()?;
    vblk.daemon().stop()?;
    vblk.start_again()?;
    let (copied, marked) = shown(&vblk)?;
    ensure!(copied == 0 && marked > 0, "{copied} of {marked} are copied");
    ensure!(equal(&one, &two)?, "the disks were left unequal");

    guest.reconnect(&vblk)?;
    work(&mut guest, 500)?;
    vblk.daemon().kill()?;
    vblk.start_again()?;
    let (copied, marked) = shown(&vblk)?;
    ensure!(copied > 0, "nothing of {marked} is copied after a crash");
    guest.reconnect(&vblk)?;
    work(&mut guest, 100)?;
    guest.settle()?;
    guest.check(&fs::File::open(&one)?)?;
    vblk.daemon().stop()
}

#[test]
fn a_disk_behind_a_server_is_lost_with_it_and_comes_back_by_itself() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [near, far] = ["near", "far"].map(|name| dir.path().join(name));
    create_image(&near, IMAGE_BYTES)?;
    create_image(&far, IMAGE_BYTES)?;
    let socket = dir.path().join("nbd");
    let gone = qemu_nbd(&socket, &far)?;
    let mirror = format!("mirror:{}|nbd:unix:{}", near.display(), socket.display());
    let mut vblk = serve(dir, &mirror, ",mirror-timeout=1")?;
    let mut guest = Guest::connect(&vblk)?;
    until(&mut guest, &vblk, "current")?;

    drop(gone);
    until(&mut guest, &vblk, "FAILED")?;
    work(&mut guest, 500)?;
    let back = qemu_nbd(&socket, &far)?;
    until(&mut guest, &vblk, "current")?;
    guest.settle()?;
    vblk.daemon().stop()?;
    drop(back);
    ensure!(equal(&near, &far)?, "a disk that came back differs");
    guest.check(&fs::File::open(&far)?)
}

/// The bytes of a file, from `at` on.
fn tail(path: &Path, at: usize) -> Result<Vec<u8>> {
    Ok(fs::read(path)?.split_off(at))
}

/// `vblk disk resize m` with `more`, once every disk of the mirror has all.
fn resize(vblk: &Vblk, more: &[&str]) -> Result<()> {
    let words = [&["disk", "resize", "m"], more].concat();
    let until = Instant::now() + PATIENCE;
    while let Err(error) = vblk.client(&words) {
        ensure!(error.to_string().contains("catches up"), "{error}");
        ensure!(Instant::now() < until, "it is not copied");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_mirror_grows_and_shrinks_while_it_is_served_and_stays_so() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir()?;
    let files = ["a", "b"].map(|name| dir.path().join(name));
    for file in &files {
        create_image(file, 4 * MIB)?;
    }
    let here = dir.path().display().to_string();
    let mut vblk = serve(dir, &format!("mirror:{here}/a|{here}/b"), ",shrink")?;
    let mut client = BlkClient::connect(&vblk.path("disk"), ClientOptions::default())?;
    ensure!(client.capacity()? == 4 * MIB / 512);
    client.write(4 * MIB / 512 - 8, &[3; 4096])?;

    // Files that are extended here hold the same: nothing is copied.
    resize(&vblk, &["8M"])?;
    ensure!(client.capacity()? == 8 * MIB / 512);
    client.write(8 * MIB / 512 - 8, &[4; 4096])?;
    let lengths = || {
        files
            .each_ref()
            .map(|f| fs::metadata(f).map_or(0, |m| m.len()))
    };
    ensure!(lengths() == [8 * MIB; 2], "{:?}", lengths());
    ensure!(fs::read(&files[0])? == fs::read(&files[1])?);

    // Of what somebody else has put there nobody knows: the first one is believed.
    for (file, byte) in files.iter().zip([5, 6]) {
        let mut file = fs::File::options().append(true).open(file)?;
        file.write_all(&vec![byte; 8 << 20])?;
    }
    resize(&vblk, &[])?;
    ensure!(client.capacity()? == 16 * MIB / 512);
    for at in (8..16).cycle().take(64) {
        let mut back = [0; 4096];
        client.read(at * MIB / 512, &mut back)?;
        ensure!(back == [5; 4096], "{at}: {}", back[0]);
    }
    client.write(12 * MIB / 512, &[7; 4096])?;
    resize(&vblk, &["16M"])?;
    ensure!(tail(&files[1], 8 << 20)? == tail(&files[0], 8 << 20)?);

    // The record knows, whoever serves it next.
    drop(client);
    vblk.daemon().kill()?;
    vblk.start_again()?;
    let mut client = BlkClient::connect(&vblk.path("disk"), ClientOptions::default())?;
    ensure!(client.capacity()? == 16 * MIB / 512);
    client.write(16 * MIB / 512 - 8, &[8; 4096])?;
    resize(&vblk, &["16M"])?;
    let refused = vblk.client(&["disk", "resize", "m", "8M"]).unwrap_err();
    ensure!(refused.to_string().contains("--shrink"), "{refused}");
    resize(&vblk, &["8M", "--shrink"])?;
    ensure!(client.capacity()? == 8 * MIB / 512);
    ensure!(lengths() == [8 * MIB; 2], "{:?}", lengths());
    let mut back = [0; 4096];
    client.read(8 * MIB / 512 - 8, &mut back)?;
    ensure!(back == [4; 4096]);
    ensure!(client.write(8 * MIB / 512, &[1; 4096]).is_err());
    drop(client);
    vblk.daemon().stop()?;
    ensure!(fs::read(&files[0])? == fs::read(&files[1])?);
    Ok(())
}
