//! The archive the kernel unpacks as its first file system ("newc", see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Archives may be concatenated, which is how one base and a small archive a scenario become an
//! initramfs. Only directories and regular files are needed; the kernel brings `/dev/console`.

/// An archive being written. Inode numbers count up from 1 and mean nothing else.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

impl Cpio {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; parents must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, content);
    }

    /// Adds an executable file.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The archive, closed.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let (ino, size, namesize) = (self.entries, content.len(), name.len() + 1);
        // magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
        // namesize check
        self.bytes.extend_from_slice(
            format!(
                "070701{ino:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}\
                 {0:08x}{0:08x}{0:08x}{0:08x}{namesize:08x}{0:08x}",
                0, 1
            )
            .as_bytes(),
        );
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets and sizes as the format's table gives them: a header is 110 bytes.
    #[test]
    fn entries_follow_the_format() {
        let mut cpio = Cpio::new();
        cpio.file("/a", b"xyz");
        let bytes = cpio.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081a4", "mode");
        assert_eq!(&bytes[54..62], b"00000003", "file size");
        assert_eq!(&bytes[94..102], b"00000002", "name size");
        assert_eq!(&bytes[110..116], b"a\0xyz\0");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
