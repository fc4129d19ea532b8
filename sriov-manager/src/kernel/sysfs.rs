//! The real kernel's files, below a root directory that is `/` outside tests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::writer::Writer;
use super::{Kernel, WriteError};

/// Files of the running kernel. Writes go through a [`Writer`].
#[derive(Debug)]
pub struct Sysfs {
    root: PathBuf,
    writer: Mutex<Writer>,
}

impl Sysfs {
    /// The files below `root`.
    pub fn new(root: impl Into<PathBuf>, writer: Writer) -> Self {
        let (root, writer) = (root.into(), Mutex::new(writer));
        Self { root, writer }
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Kernel for Sysfs {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(self.place(path))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), WriteError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write(&self.place(path), text)
    }

    fn link(&self, path: &Path) -> io::Result<PathBuf> {
        let place = self.place(path);
        // What /proc/PID/fd/N names may be no file at all ("anon_inode:…").
        let target = match fs::canonicalize(&place) {
            Ok(target) => target,
            Err(_) => fs::read_link(&place)?,
        };
        let root = fs::canonicalize(&self.root)?;
        let target = target.strip_prefix(&root).unwrap_or(&target);
        Ok(Path::new("/").join(target))
    }

    fn pause(&self, time: Duration) {
        thread::sleep(time);
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.place(path))? {
            // A name that is no text is no name of the kernel's.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_those_of_the_machine_whatever_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("sys/devices/x")).unwrap();
        fs::create_dir_all(root.join("sys/bus")).unwrap();
        fs::write(root.join("sys/devices/x/class"), "0x020000\n").unwrap();
        symlink("../devices/x", root.join("sys/bus/x")).unwrap();
        let sysfs = Sysfs::new(root, Writer::new("/bin/false".into()));
        let link = sysfs.link(Path::new("/sys/bus/x")).unwrap();
        assert_eq!(link, Path::new("/sys/devices/x"));
        let class = Path::new("/sys/bus/x/class");
        assert_eq!(super::super::number(&sysfs, class), Some(0x02_0000));
        assert_eq!(sysfs.list(Path::new("/sys/bus/x")).unwrap(), ["class"]);
        assert!(sysfs.read(Path::new("/sys/bus/y")).is_err());
    }
}
