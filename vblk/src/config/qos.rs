//! What limits a disk or a group of disks, as written: rates by second, and how much of what an
//! idle time saved may come at once.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::{ByteSize, Name, ValueError};
use towpath_common::ranged;

ranged! {
    /// Requests a second, or a number of requests at once.
    Iops(u32), "iops", 1..=100_000_000
}

/// Bytes a second, or a number of bytes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth(ByteSize);

impl Bandwidth {
    /// The least: one page.
    pub const MIN: u64 = 4096;

    /// Of a size that is large enough.
    pub(super) const fn of(size: ByteSize) -> Self {
        Self(size)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let size: ByteSize = text.parse()?;
        if size.bytes() < Self::MIN {
            return Err(ValueError::form(
                "bandwidth",
                text,
                "write at least 4K, bytes a second",
            ));
        }
        Ok(Self(size))
    }
}

impl FromStr for Bandwidth {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.to_owned().try_into()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.to_string()
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The limits of a disk or group; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Requests a second, of any type.
    pub iops: Option<Iops>,
    /// Requests at once after an idle time; by default what comes in 100 ms, and never less than
    /// in 10 ms.
    pub iops_burst: Option<Iops>,
    /// Bytes of data read and written a second.
    pub bandwidth: Option<Bandwidth>,
    /// Bytes at once after an idle time, as with `iops_burst`.
    pub bandwidth_burst: Option<Bandwidth>,
}

impl Limit {
    /// What is wrong with it, if anything.
    pub fn mistake(&self) -> Option<&'static str> {
        if self.iops_burst.is_some() && self.iops.is_none() {
            Some("iops_burst without iops limits nothing; set iops, too")
        } else if self.bandwidth_burst.is_some() && self.bandwidth.is_none() {
            Some("bandwidth_burst without bandwidth limits nothing; set bandwidth, too")
        } else {
            None
        }
    }
}

/// Disks that share limits, beside their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What disks name in `group`.
    pub name: Name,
    /// What they share.
    #[serde(flatten)]
    pub limit: Limit,
}

/// The table `[[group]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupTable {
    pub(super) name: Name,
    iops: Option<Iops>,
    iops_burst: Option<Iops>,
    bandwidth: Option<Bandwidth>,
    bandwidth_burst: Option<Bandwidth>,
}

impl GroupTable {
    pub(super) fn limit(&self) -> Limit {
        Limit {
            iops: self.iops,
            iops_burst: self.iops_burst,
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
        }
    }

    pub(super) fn complete(self) -> Group {
        Group {
            limit: self.limit(),
            name: self.name,
        }
    }
}
