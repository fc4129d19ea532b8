//! What a daemon has given up: seen from outside, and by what it refuses.

use std::fs;

use anyhow::{Context, Result, ensure};
use towpath_common::testing::blk::{BlkClient, ClientOptions};
use towpath_common::testing::net::{NetClient, NetOptions};
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

/// What a confined switch serves, changes and keeps within its directories goes on as ever.
#[test]
fn a_confined_vswitch_serves_ports_within_reach_and_refuses_others_with_the_remedy() -> Result<()> {
    let (dir, far) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let more = tempfile::tempdir()?;
    let (here, there, more) = (
        dir.path().display(),
        far.path().display(),
        more.path().display(),
    );
    let config = |paths: &str| {
        format!(
            "[landlock]\npaths = [{paths}]\n\
             [[port]]\nname = \"a\"\nsocket = \"{here}/a\"\n"
        )
    };
    let file = dir.path().join("vswitch.toml");
    fs::write(&file, config(&format!("\"{more}\"")))?;
    let wide = config(&format!("\"{more}\", \"{there}\""));
    let (near, named, out) = (
        format!("b,socket={here}/b"),
        format!("c,socket={more}/c"),
        format!("d,socket={there}/d"),
    );
    let mut vswitch = Vswitch::serve(dir, &[], &["--config", "{dir}/vswitch.toml"])?;
    if vswitch.said().contains("no Landlock") {
        println!("skipped: this kernel has no Landlock");
        return Ok(());
    }
    let mut client = NetClient::connect(&vswitch.path("a"), NetOptions::default())?;
    // Beside what it serves, and kept in its file; in a directory that is named.
    vswitch.client(&["port", "add", &near, "--persist"])?;
    vswitch.client(&["port", "add", &named])?;
    let refused = vswitch.client(&["port", "add", &out]);
    let refused = format!("{:#}", refused.err().context("it was reached")?);
    ensure!(refused.contains("add a directory to `paths`"), "{refused}");
    // Somebody who has taken it over gets no further, and what is refused disturbed nobody.
    let said = vswitch.client(&["reload"])?;
    ensure!(said.contains("-port c"), "{said}");
    ensure!(fs::read_to_string(&file)?.contains("/b\""), "not kept");
    let mut other = NetClient::connect(&vswitch.path("b"), NetOptions::default())?;
    let frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    let frame = [frame, vec![0x88, 0xb5], vec![7; 50]].concat();
    client.send(&frame)?;
    ensure!(other.expect()?.frame == frame, "another frame came");
    // A wider reach takes a restart, and is announced as such.
    fs::write(&file, wide)?;
    let said = vswitch.client(&["reload"])?;
    ensure!(
        said.contains("landlock paths") && said.contains("after a restart"),
        "{said}"
    );
    vswitch.daemon().stop()?;
    vswitch.start_again()?;
    vswitch.client(&["port", "add", &out])?;
    vswitch.daemon().stop()
}
