//! `vblk create`: an empty raw image.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use towpath_common::config::ByteSize;

/// A guest addresses sectors (virtio 1.3, 5.2.4): an image is a whole number of them.
const SECTOR_BYTES: u64 = 512;
/// A guest's data is for the owner, and for the group that runs VMs.
const IMAGE_MODE: u32 = 0o660;

/// Why there is no new image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The size is no disk size.
    #[error("size {size} is not a positive multiple of 512 bytes")]
    Size {
        /// What was asked for.
        size: ByteSize,
    },
    /// The file is there already.
    #[error("{} exists already: choose another path, or remove it first", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot create {} of {size}: {source}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        size: ByteSize,
        /// What the system said.
        source: io::Error,
    },
}

/// Creates a sparse image of `size` at `path`, and nothing on an error.
///
/// # Errors
/// [`ImageError`]; an existing file is never touched.
pub fn create(path: &Path, size: ByteSize) -> Result<(), ImageError> {
    if size.bytes() == 0 || !size.bytes().is_multiple_of(SECTOR_BYTES) {
        return Err(ImageError::Size { size });
    }
    let system = |source| ImageError::System {
        path: path.to_owned(),
        size,
        source,
    };
    let mut options = OpenOptions::new();
    let file = match options
        .write(true)
        .create_new(true)
        .mode(IMAGE_MODE)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(ImageError::Exists {
                path: path.to_owned(),
            });
        }
        outcome => outcome.map_err(system)?,
    };
    file.set_len(size.bytes()).map_err(|error| {
        let _the_first_error_counts = fs::remove_file(path);
        system(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_sparse_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        let size: ByteSize = "1M".parse().unwrap();
        create(&path, size).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            create(&path, size),
            Err(ImageError::Exists { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_size_that_is_none_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        for bytes in [0, 513] {
            let outcome = create(&path, ByteSize::from_bytes(bytes));
            assert!(matches!(outcome, Err(ImageError::Size { .. })));
        }
        let outcome = create(&path, ByteSize::from_bytes(1 << 63));
        assert!(matches!(outcome, Err(ImageError::System { .. })));
        assert!(!path.exists());
    }
}
