//! File systems that a test has for itself: mounted on the host, unmounted when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// A mounted file system.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// One of `bytes` in a file in `dir`, made by `mkfs` and its options; none, with a printed
    /// reason, where that cannot be mounted.
    pub fn image(dir: &Path, bytes: u64, mkfs: &[&str]) -> Result<Option<Mounted>> {
        let (file, place) = (dir.join("filesystem"), dir.join("mounted"));
        fs::File::create(&file)?.set_len(bytes)?;
        fs::create_dir(&place)?;
        let (program, options) = mkfs.split_first().unwrap_or((&"mkfs", &[]));
        let made = Command::new(program).args(options).arg(&file).output();
        ensure!(
            made.as_ref().is_ok_and(|o| o.status.success()),
            "{program}: {made:?}"
        );
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&file).arg(&place);
        Ok(Mounted::by(&mut mount, place))
    }

    /// One of `bytes` in memory, at a new directory in `dir`.
    pub fn memory(dir: &Path, bytes: u64) -> Result<Option<Mounted>> {
        let place = dir.join("memory");
        fs::create_dir(&place)?;
        let mut mount = Command::new("mount");
        let size = format!("size={bytes}");
        mount
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&place);
        Ok(Mounted::by(&mut mount, place))
    }

    fn by(mount: &mut Command, place: PathBuf) -> Option<Mounted> {
        match mount.output() {
            Ok(output) if output.status.success() => Some(Mounted(place)),
            other => {
                println!("skipped: nothing can be mounted here: {other:?}");
                None
            }
        }
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever has a file open there still keeps the rest of it from going, but not this.
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(status.is_ok_and(|s| s.success()) || std::thread::panicking());
    }
}
