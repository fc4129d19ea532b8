//! What the operator wants: `/etc/towpath/sriov-manager.toml` as a validated [`Spec`].
//!
//! [`Spec::load`] is the only way in. What it returns contradicts neither itself nor the ranges of
//! its values; every refusal says where. Whether the host can have it is the plan's to say.

mod check;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_common::config::{ConfigError, Document, Name, Place, SocketPath};
use towpath_common::control::Access;
use towpath_common::control::access::{self, Principal};
use towpath_common::logging::LogFilter;
use towpath_common::ranged;

use crate::address::PciAddr;
use crate::attribute::{Attributes, Key};
use crate::nvme::Resources;
use crate::values::{
    Driver, EswitchMode, GroupType, MsixCount, PciId, StationMac, VfCount, VfIndex,
};

/// Read unless the command line names another.
pub const DEFAULT_FILE: &str = "/etc/towpath/sriov-manager.toml";
/// Where the daemon listens and the client subcommands connect, unless told otherwise.
pub const DEFAULT_CONTROL: &str = "/run/towpath/sriov-manager.sock";
/// Where leases are asked for.
pub const DEFAULT_LEASES: &str = "/run/towpath/sriov-manager-lease.sock";
/// Where the journal, the lock and the leases are kept.
pub const DEFAULT_STATE: &str = "/var/lib/towpath/sriov-manager";
/// Most PFs: more than any host has slots and ports.
pub const MAX_PFS: usize = 256;
/// Most pools.
pub const MAX_POOLS: usize = 256;

ranged! {
    /// Seconds between two looks for drift; 0: only when the kernel reports an event.
    Interval(u32), "drift_interval", 0..=86_400
}

ranged! {
    /// Seconds that one write may take before its PF is called wedged.
    Seconds(u32), "write_deadline", 1..=3_600
}

/// What is done about a setting that somebody else changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Drift {
    /// It is reported.
    #[default]
    Report,
    /// It is set again, unless a VF in use would be touched.
    Repair,
}

/// Everything that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spec {
    /// What concerns the process.
    pub daemon: Settings,
    /// How DMA of free VFs is translated; `None`: as the kernel likes.
    pub group_type: Option<GroupType>,
    /// Who may lease what.
    pub pools: Vec<Pool>,
    /// PFs, in the order of the file.
    pub pfs: Vec<PfSpec>,
}

/// What concerns the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The control socket.
    pub control: SocketPath,
    /// Who is answered on it: the table `[control]`.
    #[serde(skip_serializing_if = "Access::is_open")]
    pub access: Access,
    /// The socket for leases.
    pub leases: SocketPath,
    /// Where the journal, the lock and the leases are kept.
    pub state: PathBuf,
    /// What is done about drift.
    pub drift: Drift,
    /// How often it is looked for.
    pub drift_interval: Interval,
    /// How long a write may take.
    pub write_deadline: Seconds,
    /// Which lines to log; without it `RUST_LOG` decides, then "info".
    pub log: Option<LogFilter>,
}

impl Settings {
    /// [`Settings::write_deadline`] as a time.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(u64::from(self.write_deadline.get()))
    }
}

/// Who may lease the VFs that name this pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Users and groups, besides root.
    #[serde(default, deserialize_with = "access::some")]
    pub allow: Vec<Principal>,
}

/// What one PF is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PfSpec {
    /// Where this is written.
    #[serde(skip)]
    pub place: Place,
    /// Which PF.
    #[serde(rename = "match")]
    pub matching: Match,
    /// How many VFs.
    pub vfs: VfCount,
    /// Whether VFs that are made by others get a driver at once; `None`: as it is.
    pub autoprobe: Option<bool>,
    /// How the embedded switch is run; `None`: as it is.
    pub eswitch: Option<EswitchMode>,
    /// Attributes without which its VFs are of no use; see also [`Key::is_identity`].
    pub required: BTreeSet<Key>,
    /// What is wanted of single VFs, by index.
    pub vf: Vec<VfSpec>,
}

/// How a PF is recognised. Everything that is given must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// Its PCI address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddr>,
    /// The address its interface was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<StationMac>,
    /// Its vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<PciId>,
    /// Its device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PciId>,
    /// Its driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The name of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What is wanted of one VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VfSpec {
    /// Which.
    pub index: VfIndex,
    /// What its PF's driver is told.
    pub attributes: Attributes,
    /// Whether its MAC address is derived from the host, the PF and the index.
    pub derived_mac: bool,
    /// MSI-X vectors.
    pub msix: Option<MsixCount>,
    /// What it gets of its NVMe controller's flexible resources.
    pub resources: Option<Resources>,
    /// Its driver.
    pub driver: Option<Driver>,
    /// The pool it is leased from.
    pub pool: Option<Name>,
}

impl Spec {
    /// Reads and validates `file`; changes nothing.
    ///
    /// # Errors
    /// [`ConfigError`], with the place.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Document::read(file)?)
    }

    /// Validates what was read.
    ///
    /// # Errors
    /// As [`Spec::load`].
    pub fn parse(document: &Document) -> Result<Self, ConfigError> {
        let file: table::File = document.parse()?;
        check::check(document, file)
    }

    /// The pool `name`.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name.as_str() == name)
    }
}

#[cfg(test)]
pub(crate) mod tests;
