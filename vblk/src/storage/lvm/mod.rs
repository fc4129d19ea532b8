//! LVM: a logical volume by its name.
//!
//! Through device-mapper (`map = "file"`), a volume of any kind is a block device like others, held
//! exclusively; it has to be active. What is a part of others (a pool, a mirror's image, what a
//! snapshot was taken of under another name) is refused.
//!
//! By its segments (`map = "segments"`), a linear or striped volume is read and written on the
//! physical volumes themselves ([`segments`]), while nothing makes that unsafe.
//!
//! All that is known of LVM comes from its JSON reports ([`report`]).

pub mod helper;
mod report;
mod segments;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskError, Serial, Spec};
use report::{Lv, Vg};
pub use segments::Segments;

/// The name of a logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its volume group.
    pub vg: String,
    /// Its name there.
    pub lv: String,
}

impl Volume {
    /// The volume that `text` names: `vg/lv`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Volume> {
        let (vg, lv) = text.split_once('/')?;
        // What LVM allows in names (lvm(8)); above all, no option.
        let fits = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            let dots = name == "." || name == "..";
            (1..=127).contains(&name.len())
                && name.chars().all(plain)
                && !name.starts_with('-')
                && !dots
        };
        (fits(vg) && fits(lv)).then(|| Volume {
            vg: vg.to_owned(),
            lv: lv.to_owned(),
        })
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.lv)
    }
}

/// Why a volume cannot be served, or no snapshot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// LVM said no, or nothing.
    #[error("lvm {what}: {why}")]
    Command {
        /// The command.
        what: String,
        /// What it said.
        why: String,
    },
    /// There is no such volume.
    #[error("there is no volume {volume}; volumes of {}: {known}", volume.vg)]
    Unknown {
        /// What was asked for.
        volume: Volume,
        /// What there is.
        known: String,
    },
    /// It is not active.
    #[error("{0} is not active; `lvchange --activate y {0}` makes it so")]
    Inactive(Volume),
    /// It is not for guests, or not in this way.
    #[error("{volume}: {why}")]
    Unfit {
        /// The volume.
        volume: Volume,
        /// Why, and what to do.
        why: String,
    },
    /// A device.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No thread.
    #[error("cannot watch {0}: {1}")]
    Watch(Volume, std::io::Error),
}

fn unfit(volume: &Volume, why: impl Into<String>) -> LvmError {
    LvmError::Unfit {
        volume: volume.clone(),
        why: why.into(),
    }
}

/// Refuse what is no guest's: a part of another volume, or one that is being taken apart.
fn check(volume: &Volume, vg: &Vg, lv: &Lv) -> Result<(), LvmError> {
    if !lv.plays("public") {
        let why = format!("it is a part of another volume ({})", lv.lv_role);
        return Err(unfit(volume, why));
    }
    if lv.is("pool") {
        return Err(unfit(volume, "it is a pool; name a volume in it"));
    }
    if !lv.lv_merging.is_empty() {
        return Err(unfit(
            volume,
            "a snapshot is being merged into it; wait for that",
        ));
    }
    if vg.vg_attr.contains('p') || lv.lv_attr.get(8..9) == Some("p") {
        return Err(unfit(volume, "a physical volume of it is missing"));
    }
    if lv.lv_suspended == "suspended" {
        return Err(unfit(
            volume,
            "it is suspended; `dmsetup resume` lets it go on",
        ));
    }
    Ok(())
}

/// True if this kernel has a device-mapper, so that a volume can be active.
fn has_device_mapper() -> bool {
    Path::new("/sys/class/misc/device-mapper").exists()
}

/// Open `volume` as device-mapper has it.
///
/// # Errors
/// [`LvmError`].
pub fn open(volume: &Volume, spec: &Spec) -> Result<Disk, LvmError> {
    let report = report::fetch(&volume.vg)?;
    let (vg, lv) = report.find(volume)?;
    check(volume, vg, lv)?;
    if lv.lv_active != "active" {
        return Err(LvmError::Inactive(volume.clone()));
    }
    Ok(open_active(lv, spec)?)
}

fn open_active(lv: &Lv, spec: &Spec) -> Result<Disk, DiskError> {
    Disk::open(&Spec {
        path: lv.lv_dm_path.clone().into(),
        ..spec.clone()
    })
}

/// Open `volume` by its segments.
///
/// # Errors
/// [`LvmError`].
pub fn open_segments(volume: &Volume, spec: &Spec, serial: Serial) -> Result<Disk, LvmError> {
    Segments::disk(volume, spec, serial)
}

/// Take a snapshot of `volume` called `name` in its group, which must be at rest. A thin volume's
/// takes what changes from the pool; another's can hold changes of a fifth of the volume.
///
/// # Errors
/// [`LvmError`].
pub fn snapshot(volume: &Volume, name: &Volume) -> Result<(), LvmError> {
    if name.vg != volume.vg {
        let why = format!("a snapshot of it is in its group: lvm:{}/NAME", volume.vg);
        return Err(unfit(volume, why));
    }
    let report = report::fetch(&volume.vg)?;
    let (vg, lv) = report.find(volume)?;
    check(volume, vg, lv)?;
    let thin = lv.is("thin");
    let of = volume.to_string();
    let mut words = vec!["lvcreate", "--quiet", "--snapshot", "--name", &name.lv];
    if thin {
        words.extend(["--setactivationskip", "n"]);
    } else {
        words.extend(["--extents", "20%ORIGIN"]);
    }
    words.push(&of);
    report::run(&words).map(drop)
}

#[cfg(test)]
mod tests;
