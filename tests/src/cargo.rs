//! Programs of this workspace, built when asked for.
//!
//! Cargo tells a test the path of its own package's programs only, and builds no other's. So the
//! harness calls cargo itself, with the profile and the target directory of the running test: the
//! program under test is always the one the sources describe, and a second call costs nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::paths;

static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);

/// Builds program `name` of `package` (once a process) and returns its path.
///
/// # Errors
/// When cargo cannot be run or the build fails; cargo's own words are part of the error.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let built = built.get_or_insert_default();
    if let Some(path) = built.get(name) {
        return Ok(path.clone());
    }
    let dir = paths::profile_dir()?;
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => bail!("{} is not a cargo profile directory", dir.display()),
    };
    let target = dir
        .parent()
        .context("a cargo profile directory has a parent")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .current_dir(paths::repository())
        .args([
            "build",
            "--quiet",
            "--package",
            package,
            "--bin",
            name,
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target)
        .output()
        .with_context(|| format!("cannot run {}", cargo.display()))?;
    ensure!(
        output.status.success(),
        "cargo build --package {package} --bin {name} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = dir.join(name);
    built.insert(name.to_owned(), path.clone());
    Ok(path)
}
