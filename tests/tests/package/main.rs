//! The Debian package on a Debian that systemd runs: install, serve, reload, restart, kill, a
//! tenant's own process, an upgrade that the configuration forbids, roll back, upgrade, watchdog,
//! remove. Front-ends that are attached throughout notice nothing but a pause.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_tests::debian::Debian;
use towpath_tests::{cargo, paths};

/// Some ten times what it takes on an idle machine without KVM.
const PATIENCE: Duration = Duration::from_secs(1800);

const RUN: &str = include_str!("run.sh");

/// The package of the programs as they are, under this version.
fn package(version: &str, dir: &Path) -> Result<PathBuf> {
    let output = Command::new(paths::repository().join("systemd/package.sh"))
        .args(["--dev", "--version", version])
        .current_dir(paths::repository())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "systemd/package.sh: {said}");
    let name = format!("towpath_{version}_amd64.deb");
    let made = paths::repository().join("target/debian").join(&name);
    let kept = dir.join(&name);
    std::fs::rename(&made, &kept).with_context(|| format!("no {}", made.display()))?;
    Ok(kept)
}

#[test]
fn a_host_is_operated_with_systemd() -> Result<()> {
    for daemon in ["vblk", "vswitch", "sriov-manager"] {
        cargo::program(daemon, daemon)?;
    }
    let dir = tempfile::tempdir()?;
    let packages = [package("1.0.0", dir.path())?, package("1.1.0", dir.path())?];
    let mut files = packages.to_vec();
    files.push(cargo::program("towpath-tests", "tenant")?);
    let debian = Debian::new(RUN, &files)?;
    let mut guest = debian.guest("host").memory(&[1024]).cpus(2).boot()?;
    let printed = guest.finish(PATIENCE)?;
    println!("{}", printed.join("\n"));
    Ok(())
}
