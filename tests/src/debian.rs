//! A guest that is a whole, small Debian with systemd as its first process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::paths;
use crate::vm::{Builder, Vm};

/// What one guest runs: its disk, and the archive with `run`, a shell script, and what it needs.
#[derive(Debug)]
pub struct Debian {
    dir: TempDir,
    image: PathBuf,
}

impl Debian {
    /// Packs `run` and `files` for a guest; they stand in its working directory.
    ///
    /// # Errors
    /// When the image cannot be made, with the remedy, or a file is missing.
    pub fn new(run: &str, files: &[PathBuf]) -> Result<Self> {
        let script = paths::repository().join("tests/debian.sh");
        let status = Command::new(&script)
            .status()
            .context("cannot run tests/debian.sh")?;
        ensure!(
            status.success(),
            "tests/debian.sh failed; its words are above"
        );
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("run"), run)?;
        let mut tar = Command::new("tar");
        tar.arg("-cf")
            .arg(dir.path().join("files.tar"))
            .arg("-C")
            .arg(dir.path())
            .arg("run");
        for file in files {
            let name = file.file_name().unwrap_or(OsStr::new("."));
            tar.arg("-C")
                .arg(file.parent().unwrap_or(Path::new("/")))
                .arg(name);
        }
        ensure!(tar.status()?.success(), "tar failed");
        let image = paths::cache().join("debian/root.img");
        Ok(Self { dir, image })
    }

    /// A guest of it; what it writes to its disk is gone with it.
    #[must_use]
    pub fn guest(&self, name: &str) -> Builder {
        Vm::builder(name).debian(&self.image, &self.dir.path().join("files.tar"))
    }
}
