//! What sysfs says of a block device, by its number. What it does not say of a partition, it says
//! of the partition's disk.

use std::path::PathBuf;

fn places(device: u64, name: &str) -> [PathBuf; 2] {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let base = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    [base.join(name), base.join("..").join(name)]
}

/// The number in the file `name`.
pub(crate) fn number(device: u64, name: &str) -> Option<u64> {
    let mut texts = places(device, name).into_iter();
    let text = texts.find_map(|place| std::fs::read_to_string(place).ok())?;
    text.trim().parse().ok()
}

/// True if the device is a file to the kernel, or a part of one that is.
pub(super) fn is_loop(device: u64) -> bool {
    places(device, "loop").iter().any(|place| place.is_dir())
}
