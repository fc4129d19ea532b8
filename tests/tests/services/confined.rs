//! What a daemon has given up: seen from outside, and by what it refuses.

use std::fs;

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_tests::daemon::{Vblk, Vswitch};

use super::create_image;

/// The value of `key` in a process's status.
fn status(pid: u32, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    Ok(line.context("no such line")?.trim().to_owned())
}

#[test]
fn every_thread_of_a_daemon_is_under_its_filter() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("a"), 1 << 20)?;
    let mut vblk = Vblk::serve(dir, &["{dir}/a,socket={dir}/one"], &[])?;
    let mut client = BlkClient::connect(&vblk.path("one"), ClientOptions::default())?;
    client.write(0, &[7; 4096])?;
    let mut vswitch = Vswitch::serve(tempfile::tempdir()?, &["p,socket={dir}/p"], &[])?;
    for pid in [
        vblk.daemon().process().child().id(),
        vswitch.daemon().process().child().id(),
    ] {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task: u32 = task?.file_name().to_string_lossy().parse()?;
            ensure!(status(task, "Seccomp:")? == "2", "thread {task} of {pid}");
            ensure!(
                status(task, "NoNewPrivs:")? == "1",
                "thread {task} of {pid}"
            );
        }
    }
    Ok(())
}

#[test]
fn without_a_filter_the_log_says_so() -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_image(&dir.path().join("a"), 1 << 20)?;
    let disks = ["{dir}/a,socket={dir}/one"];
    let mut vblk = Vblk::serve(dir, &disks, &["--seccomp", "off"])?;
    let pid = vblk.daemon().process().child().id();
    ensure!(status(pid, "Seccomp:")? == "0", "there is a filter");
    let said = vblk.said();
    ensure!(said.contains("system calls are not limited"), "{said}");
    Ok(())
}

#[test]
fn a_directory_out_of_reach_is_refused_with_the_remedy_and_reached_after_a_restart() -> Result<()> {
    let (dir, far) = (tempfile::tempdir()?, tempfile::tempdir()?);
    create_image(&dir.path().join("a"), 1 << 20)?;
    create_image(&far.path().join("b"), 1 << 20)?;
    let (here, there) = (dir.path().display(), far.path().display());
    let config = |paths: &str, more: &str| {
        format!(
            "[landlock]\npaths = [{paths}]\n\
             [[disk]]\nname = \"a\"\npath = \"{here}/a\"\nsocket = \"{here}/one\"\n{more}"
        )
    };
    let disk = format!("[[disk]]\nname = \"b\"\npath = \"{there}/b\"\nsocket = \"{here}/two\"\n");
    let file = dir.path().join("vblk.toml");
    fs::write(&file, config("\"/nowhere\"", ""))?;
    let (narrow, wide) = (
        config("\"/nowhere\"", &disk),
        config(&format!("\"{there}\""), &disk),
    );
    let mut vblk = Vblk::serve(dir, &[], &["--config", "{dir}/vblk.toml"])?;
    let mut client = BlkClient::connect(&vblk.path("one"), ClientOptions::default())?;
    client.write(0, &[7; 4096])?;
    if vblk.said().contains("no Landlock") {
        println!("skipped: this kernel has no Landlock");
        return Ok(());
    }
    fs::write(&file, narrow)?;
    let refused = vblk.client(&["reload"]);
    let refused = format!("{:#}", refused.err().context("it was reached")?);
    ensure!(refused.contains("add a directory to `paths`"), "{refused}");
    client.read(0, &mut [0; 4096])?;
    fs::write(&file, wide)?;
    vblk.daemon().stop()?;
    vblk.start_again()?;
    let mut client = BlkClient::connect(&vblk.path("two"), ClientOptions::default())?;
    client.write(0, &[7; 4096])?;
    Ok(())
}
