//! vblk on hosts that forbid io_uring: it serves files by threads, says so, and says what it cannot
//! do there.

use std::fs::{File, read};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_tests::daemon::{Vblk, forbidding, program};

use super::create_image;

const BYTES: u64 = 4 << 20;

/// vblk where `what` is forbidden, with `disks` in a directory with two images.
fn serve(what: &str, disks: &[&str], more: &[&str]) -> Result<Vblk> {
    let dir = tempfile::tempdir()?;
    let program = forbidding(what, &program("vblk")?, dir.path())?;
    images(&dir)?;
    Vblk::serve_as(&program, dir, disks, more)
}

fn images(dir: &TempDir) -> Result<()> {
    for name in ["a", "b"] {
        create_image(&dir.path().join(name), BYTES)?;
    }
    Ok(())
}

fn works(vblk: &Vblk, socket: &str, image: &str) -> Result<()> {
    let mut client = BlkClient::connect(&vblk.path(socket), ClientOptions::default())?;
    let bytes: Vec<u8> = (0..16384u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    client.write(64, &bytes)?;
    client.flush()?;
    let mut back = vec![0; bytes.len()];
    client.read(64, &mut back)?;
    ensure!(back == bytes, "read something else");
    let mut there = vec![0; bytes.len()];
    File::open(vblk.path(image))?.read_exact_at(&mut there, 64 * 512)?;
    ensure!(there == bytes, "the file holds something else");
    Ok(())
}

#[test]
fn threads_serve_disks_and_the_log_and_the_api_say_so() -> Result<()> {
    let disks = [
        "{dir}/a,socket={dir}/one",
        "{dir}/b,socket={dir}/two,cache=buffered",
    ];
    let mut vblk = serve("io_uring", &disks, &[])?;
    for (socket, image) in [("one", "a"), ("two", "b")] {
        works(&vblk, socket, image)?;
    }
    let status = vblk.get("/v1/status")?;
    ensure!(status["workers"][0]["engine"] == "threads", "{status}");
    let said = vblk.said();
    ensure!(said.contains("io_uring cannot be used here"), "{said}");
    vblk.daemon().stop()?;
    let bytes = read(vblk.path("a"))?;
    ensure!(bytes.len() as u64 == BYTES, "the image changed its size");
    Ok(())
}

#[test]
fn stripes_are_served_as_well_and_mirrors_refused_with_the_remedy() -> Result<()> {
    let vblk = serve(
        "io_uring",
        &["stripe:16K:{dir}/a|{dir}/b,socket={dir}/one"],
        &[],
    )?;
    let mut client = BlkClient::connect(&vblk.path("one"), ClientOptions::default())?;
    // Two chunks and some of the next two.
    let bytes: Vec<u8> = (0..48u32 << 10).map(|n| n.to_le_bytes()[1]).collect();
    client.write(0, &bytes)?;
    client.flush()?;
    let mut back = vec![0; bytes.len()];
    client.read(0, &mut back)?;
    ensure!(back == bytes, "read something else");
    let mut there = vec![0; 16 << 10];
    File::open(vblk.path("b"))?.read_exact_at(&mut there, 0)?;
    ensure!(
        there == bytes[16 << 10..32 << 10],
        "the second file holds something else"
    );
    drop((client, vblk));

    let dir = tempfile::tempdir()?;
    images(&dir)?;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let mirror = format!("mirror:{}|{}", a.display(), b.display());
    let vblk = program("vblk")?;
    let made = std::process::Command::new(&vblk)
        .args(["mirror", "create", &mirror, "--assume-clean"])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let program = forbidding("io_uring", &vblk, dir.path())?;
    let disk = format!("{mirror},socket={{dir}}/one");
    let refused = Vblk::serve_as(&program, dir, &[&disk], &[]);
    let refused = format!("{:#}", refused.err().context("a mirror was served")?);
    ensure!(
        refused.contains("NBD and mirrors need io_uring"),
        "{refused}"
    );
    Ok(())
}

#[test]
fn who_insists_on_io_uring_is_told_what_forbids_it() -> Result<()> {
    let refused = serve(
        "io_uring",
        &["{dir}/a,socket={dir}/one"],
        &["--engine", "io_uring"],
    );
    let refused = format!("{:#}", refused.err().context("io_uring is forbidden")?);
    ensure!(refused.contains("kernel.io_uring_disabled=0"), "{refused}");
    Ok(())
}

#[test]
fn threads_can_be_chosen() -> Result<()> {
    let dir = tempfile::tempdir()?;
    images(&dir)?;
    let disks = ["{dir}/a,socket={dir}/one"];
    let vblk = Vblk::serve(dir, &disks, &["--engine", "threads"])?;
    works(&vblk, "one", "a")?;
    let status = vblk.get("/v1/status")?;
    ensure!(status["workers"][0]["engine"] == "threads", "{status}");
    Ok(())
}

/// Without AIO nobody can be notified safely: the daemon does not start, and says what to allow.
#[test]
fn without_aio_either_there_is_no_daemon() -> Result<()> {
    let refused = serve("both", &["{dir}/a,socket={dir}/one"], &[]);
    let refused = format!("{:#}", refused.err().context("AIO is forbidden")?);
    let why = "this host forbids io_uring, and AIO as well";
    ensure!(refused.contains(why), "{refused}");
    Ok(())
}
