//! Which rows are measured, and what the goal of each is.

use serde::Serialize;

/// Who forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// The same rings with a bare copy loop: the machine's own ceiling.
    Copy,
    /// DPDK's vhost library at its best: testpmd between two net_vhost ports, no lookup.
    Testpmd,
    /// Open vSwitch with DPDK, action NORMAL.
    Ovs,
    /// Ours.
    Vswitch,
}

impl Contender {
    /// Every contender, in the order of the report.
    pub const ALL: [Self; 4] = [Self::Copy, Self::Testpmd, Self::Ovs, Self::Vswitch];

    /// Name in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Testpmd => "testpmd",
            Self::Ovs => "ovs",
            Self::Vswitch => "vswitch",
        }
    }
}
