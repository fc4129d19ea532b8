//! Where things are: the repository, its cache, cargo's target directory, host programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The repository's top directory.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Every file that git tracks or would track, relative to the repository: no build products, no
/// caches.
///
/// # Errors
/// When git is missing or this is no clone.
pub fn tracked() -> Result<Vec<String>> {
    let output = Command::new("git")
        // The clone may belong to somebody else, as in a container that runs as root.
        .args([
            "-c",
            "safe.directory=*",
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(repository())
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout)?;
    let present = |name: &&str| repository().join(name).is_file();
    Ok(names.lines().filter(present).map(str::to_owned).collect())
}

/// What `tests/packages.sh` fetched: the guest kernel.
#[must_use]
pub fn cache() -> PathBuf {
    let named = std::env::var_os("TOWPATH_CACHE").map(PathBuf::from);
    repository().join(named.unwrap_or_else(|| ".cache".into()))
}

/// The directory of the running program's cargo profile: `target/debug` or `target/release`.
///
/// # Errors
/// When the running program is not where cargo puts programs.
pub fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("no path of the running program")?;
    let dir = exe
        .parent()
        .context("the running program is in no directory")?;
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_path_buf())
}

/// A host program, found where a shell would find it, or in a system directory that a plain
/// user's `PATH` may lack.
///
/// # Errors
/// Names the program and says how to install it.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    for dir in path
        .split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"])
    {
        let candidate = Path::new(dir).join(name);
        if !dir.is_empty() && candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("{name} is not installed; run: make packages")
}
