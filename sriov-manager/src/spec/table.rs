//! The file as written: tables, before what ties them together is checked.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use towpath_common::config::{Name, SocketPath, ValueError};
use towpath_common::control::Access;
use towpath_common::logging::LogFilter;

use super::{Drift, Interval, Match, Pool, Seconds};
use crate::attribute::Key;
use crate::values::{
    Driver, EswitchMode, GroupType, Guid, LinkState, Mac, MsixCount, Qos, Rate, StationMac,
    VfCount, VfIndex, ViCount, Vlan, VlanProtocol, VqCount,
};

/// Everything.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) daemon: DaemonTable,
    #[serde(default)]
    pub(super) control: Access,
    #[serde(default)]
    pub(super) iommu: IommuTable,
    #[serde(default, rename = "pool")]
    pub(super) pools: Vec<Spanned<Pool>>,
    #[serde(default, rename = "pf")]
    pub(super) pfs: Vec<Spanned<PfTable>>,
}

/// `[daemon]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DaemonTable {
    pub(super) control: Option<Spanned<SocketPath>>,
    pub(super) leases: Option<Spanned<SocketPath>>,
    pub(super) state: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) drift: Drift,
    pub(super) drift_interval: Option<Interval>,
    pub(super) write_deadline: Option<Seconds>,
    pub(super) log: Option<LogFilter>,
}

/// `[iommu]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IommuTable {
    pub(super) group_type: Option<GroupType>,
}

/// `[[pf]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PfTable {
    #[serde(rename = "match")]
    pub(super) matching: Spanned<Match>,
    pub(super) vfs: VfCount,
    pub(super) autoprobe: Option<bool>,
    pub(super) eswitch: Option<EswitchMode>,
    #[serde(default)]
    pub(super) required: BTreeSet<Key>,
    #[serde(default)]
    pub(super) vf: Vec<Spanned<VfTable>>,
}

/// `[[pf.vf]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VfTable {
    pub(super) index: Option<VfIndex>,
    pub(super) range: Option<Range>,
    pub(super) mac: Option<Spanned<MacChoice>>,
    pub(super) vlan: Option<Vlan>,
    pub(super) qos: Option<Spanned<Qos>>,
    pub(super) vlan_protocol: Option<Spanned<VlanProtocol>>,
    pub(super) min_rate: Option<Spanned<Rate>>,
    pub(super) max_rate: Option<Rate>,
    pub(super) spoof_check: Option<bool>,
    pub(super) trust: Option<bool>,
    pub(super) link_state: Option<LinkState>,
    pub(super) rss_query: Option<bool>,
    pub(super) node_guid: Option<Guid>,
    pub(super) port_guid: Option<Guid>,
    pub(super) msix: Option<MsixCount>,
    pub(super) vq: Option<Spanned<VqCount>>,
    pub(super) vi: Option<Spanned<ViCount>>,
    pub(super) driver: Option<Spanned<Driver>>,
    pub(super) pool: Option<Spanned<Name>>,
}

/// A MAC address, or how to get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum MacChoice {
    Derived,
    Fixed(Mac),
}

impl TryFrom<String> for MacChoice {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        match text.as_str() {
            "derived" => Ok(Self::Derived),
            _ => text.parse().map(|mac: StationMac| Self::Fixed(mac.get())),
        }
    }
}

/// Indexes from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Range {
    pub(super) first: VfIndex,
    pub(super) last: VfIndex,
}

impl TryFrom<String> for Range {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        let (first, last) = (first.parse::<VfIndex>()?, last.parse::<VfIndex>()?);
        if first > last {
            let rule = "write the first and the last index, such as 0-3";
            return Err(ValueError::form("range", text, rule));
        }
        Ok(Self { first, last })
    }
}
