//! The kernel as this program sees it: files that are read and written, links, directories; and,
//! by netlink, interfaces and what a PF's driver is told of its VFs.
//!
//! Callers name paths as they are on the machine. They may assume that a read and a list never
//! block, and must keep to attributes for which that is so: `sriov_numvfs` and
//! `sriov_vf_total_msix` are not among them (they wait for whoever writes the former, without end),
//! so nobody reads them; VFs are counted by their links.
//! Every write may block for ever, so implementors give up after a deadline and say so. After
//! [`WriteError::Wedged`] nothing is known about what the write did.

mod sysfs;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::attribute::{Attribute, Attributes};
use crate::netlink::Netlink;
use crate::nvme::{Admin, Family, Order};
use crate::values::{EswitchMode, Mac, VfIndex};

pub use sysfs::Sysfs;
pub use writer::{DEADLINE, Writer, obey};

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The kernel said no.
    #[error("{}", refusal(*errno, said))]
    Refused {
        /// What it said.
        errno: i32,
        /// And in words, where it has some.
        said: String,
    },
    /// It did not return in time. The writer is a process that cannot be killed.
    #[error("the kernel does not return from the write; process {writer} is stuck in it")]
    Wedged {
        /// The process.
        writer: u32,
    },
}

fn refusal(errno: i32, said: &str) -> String {
    let system = io::Error::from_raw_os_error(errno);
    if said.is_empty() {
        system.to_string()
    } else {
        format!("{system}: {said}")
    }
}

impl WriteError {
    /// The kernel said no, in a number only.
    pub fn refused(errno: i32) -> Self {
        let said = String::new();
        Self::Refused { errno, said }
    }

    /// Whether the driver lacks what was asked of it.
    pub fn is_unsupported(&self) -> bool {
        let codes = [Errno::OPNOTSUPP, Errno::PROTONOSUPPORT].map(|code| code.raw_os_error());
        matches!(self, Self::Refused { errno, .. } if codes.contains(errno))
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&io::Error> for WriteError {
    fn from(error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        Self::refused(errno)
    }
}

/// Files of the kernel.
pub trait Kernel: Send + Sync {
    /// The whole content of a file.
    ///
    /// # Errors
    /// What the kernel says.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Writes to an attribute, once.
    ///
    /// # Errors
    /// [`WriteError`].
    fn write(&self, path: &Path, text: &str) -> Result<(), WriteError>;

    /// Where a link leads, all links resolved, as a path on the machine.
    ///
    /// # Errors
    /// What the kernel says.
    fn link(&self, path: &Path) -> io::Result<PathBuf>;

    /// The names in a directory, in order.
    ///
    /// # Errors
    /// What the kernel says.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Lets some time pass, in which the machine may change.
    fn pause(&self, time: Duration);
}

/// Interfaces, by netlink.
pub trait Network: Send + Sync {
    /// All interfaces of this network namespace; or the one of that name, without what other
    /// questions would tell of it: its addresses and counters.
    ///
    /// # Errors
    /// What the kernel says.
    fn links(&self, only: Option<&str>) -> io::Result<Vec<Link>>;

    /// Interfaces that carry a default route, by index.
    ///
    /// # Errors
    /// What the kernel says.
    fn default_routes(&self) -> io::Result<Vec<u32>>;

    /// Tells the PF with interface `link` something about one of its VFs.
    ///
    /// # Errors
    /// [`WriteError`].
    fn set_vf(&self, link: u32, vf: VfIndex, attribute: &Attribute) -> Result<(), WriteError>;

    /// How the embedded switch of a PF is run; `None` if it has none that can be asked.
    ///
    /// # Errors
    /// What the kernel says.
    fn eswitch(&self, pf: PciAddr) -> io::Result<Option<EswitchMode>>;

    /// Changes how it is run.
    ///
    /// # Errors
    /// [`WriteError`].
    fn set_eswitch(&self, pf: PciAddr, mode: EswitchMode) -> Result<(), WriteError>;
}

/// NVMe controllers, by the character devices of PFs.
pub trait Controllers: Send + Sync {
    /// What the primary controller at `controller` has to deal out, and to whom.
    ///
    /// # Errors
    /// What the kernel or the controller says.
    fn family(&self, controller: &Path) -> io::Result<Family>;

    /// Tells it something about controller `id` of its family.
    ///
    /// # Errors
    /// [`WriteError`].
    fn order(&self, controller: &Path, id: u16, order: Order) -> Result<(), WriteError>;
}

/// All of it.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Its files.
    pub kernel: &'a dyn Kernel,
    /// Its interfaces.
    pub network: &'a dyn Network,
    /// Its NVMe controllers.
    pub controllers: &'a dyn Controllers,
}

impl<'a> Machine<'a> {
    /// The running kernel, with these files.
    pub fn running(kernel: &'a dyn Kernel) -> Self {
        Self {
            kernel,
            network: &Netlink,
            controllers: &Admin,
        }
    }
}

impl std::fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name, which may change at any time.
    pub name: String,
    /// Its address now.
    pub mac: Option<Mac>,
    /// The address it was made with, where the driver says.
    pub permanent: Option<Mac>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it has an IP address other than a link-local one.
    pub addressed: bool,
    /// The bond or bridge it belongs to.
    pub master: Option<u32>,
    /// What it stands on, such as the interface of a VLAN.
    pub lower: Option<u32>,
    /// What its driver says of its VFs.
    pub vfs: Vec<VfReport>,
}

/// What a PF's driver says of one VF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VfReport {
    /// Which.
    pub index: u16,
    /// Its attributes.
    pub attributes: Attributes,
    /// What it has done.
    pub counters: Option<VfCounters>,
}

/// What a VF has done, as the PF's driver counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VfCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames received and dropped.
    pub rx_dropped: u64,
    /// Frames dropped instead of sent.
    pub tx_dropped: u64,
}

/// The text of a small file, trimmed; `None` when it is not there, cannot be read, or is no text.
pub fn text(kernel: &dyn Kernel, path: &Path) -> Option<String> {
    let bytes = kernel.read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// The number in a small file, decimal or with `0x`.
pub fn number(kernel: &dyn Kernel, path: &Path) -> Option<u64> {
    let text = text(kernel, path)?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The last part of where a link leads: the name of a driver, or the number of a group.
pub fn link_name(kernel: &dyn Kernel, path: &Path) -> Option<String> {
    let target = kernel.link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
