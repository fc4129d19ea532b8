//! Which rows are measured, and what the goal of each is.

use serde::Serialize;

use super::frame::LARGEST;
use super::shape::Shape;
use super::switch::Membership;
use crate::plan::{Entrant, Entry, Goal};

/// VLANs of the rows that have some.
const VLAN: u16 = 10;
const OTHER_VLAN: u16 = 20;

/// Bytes of a frame's checksum: counted in the sizes of Ethernet frames, absent in memory.
pub const CHECKSUM: usize = 4;

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

impl Entrant for Contender {
    const ALL: &'static [Self] = &[Self::Copy, Self::Testpmd, Self::Ovs, Self::Vswitch];
    const OURS: Self = Self::Vswitch;

    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Testpmd => "testpmd",
            Self::Ovs => "ovs",
            Self::Vswitch => "vswitch",
        }
    }
}

/// What the ports are to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vlans {
    /// Nothing is configured.
    None,
    /// Every port is an access port of one VLAN.
    Access,
    /// The first is an access port, the second a trunk.
    Trunk,
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `size/pattern`, what `--only` matches.
    name: String,
    /// Bytes of a frame without tag, with its checksum, which guests do not send.
    pub size: usize,
    /// Frames are TCP for the receiver to segment.
    pub segmented: bool,
    /// Ports; each sends to every other in turn.
    pub ports: u16,
    /// Ports that send: all, or the first.
    pub both: bool,
    /// MAC addresses behind each port; patterns name the sum.
    pub stations: u32,
    /// What the ports are members of.
    pub vlans: Vlans,
}

impl Row {
    fn new(pattern: &str, size: usize) -> Self {
        Self {
            name: format!("{size}/{pattern}"),
            size,
            segmented: false,
            ports: 2,
            both: true,
            stations: 1,
            vlans: Vlans::None,
        }
    }

    /// The generator's ports, with rings of so many entries.
    #[must_use]
    pub fn shape(&self, ring: u16) -> Shape {
        let checksum = if self.segmented { 0 } else { CHECKSUM };
        let mut shape = Shape::plain(self.ports, ring, self.size - checksum);
        shape.segmented = self.segmented;
        shape.stations = self.stations;
        if self.vlans == Vlans::Trunk {
            shape.tags[1] = Some(VLAN);
        }
        shape
    }

    /// What the switch is told of each port.
    #[must_use]
    pub fn members(&self) -> Vec<Membership> {
        let member = |port| match self.vlans {
            Vlans::None => Membership::None,
            Vlans::Trunk if port > 0 => Membership::Trunk(VLAN, OTHER_VLAN),
            Vlans::Access | Vlans::Trunk => Membership::Access(VLAN),
        };
        (0..self.ports).map(member).collect()
    }

    /// Ports that send.
    #[must_use]
    pub fn senders(&self) -> usize {
        if self.both { self.ports.into() } else { 1 }
    }

    /// Two ports with one address each and nothing else: what needs no switch at all.
    fn is_plain(&self) -> bool {
        self.ports == 2 && self.stations == 1
    }
}

impl Entry for Row {
    type Who = Contender;
    const UNIT: &'static str = "frames";

    fn name(&self) -> &str {
        &self.name
    }

    /// The ones without a lookup have two ports and change no frame; Open vSwitch is left out
    /// where the table is far beyond what it is made for.
    fn contenders(&self) -> &[Contender] {
        if self.ports > 2 || self.vlans == Vlans::Trunk {
            &[Contender::Ovs, Contender::Vswitch]
        } else if self.stations > 20_000 {
            &[Contender::Copy, Contender::Testpmd, Contender::Vswitch]
        } else {
            Contender::ALL
        }
    }

    /// The goals of the issue that asked for vswitch.
    fn goals(&self) -> Vec<Goal<Contender>> {
        let times = |to, least| Goal::Ratio { to, least };
        let mut goals = match (self.stations, self.ports, self.vlans) {
            (_, _, Vlans::Trunk) | (500..=20_000, ..) | (_, 8, _) => {
                vec![times(Contender::Ovs, 3.0)]
            }
            (20_001.., ..) => vec![Goal::Share {
                of: "64/both",
                least: 0.75,
            }],
            _ if self.segmented => vec![times(Contender::Ovs, 3.0)],
            _ if self.size >= 1500 && self.ports == 2 => {
                vec![times(Contender::Ovs, 1.6), times(Contender::Testpmd, 1.6)]
            }
            _ if self.size == 64 && self.is_plain() => {
                vec![times(Contender::Ovs, 2.0), times(Contender::Testpmd, 1.3)]
            }
            _ => vec![times(Contender::Ovs, 1.0)],
        };
        if self.is_plain() && self.vlans == Vlans::None {
            goals.push(times(Contender::Copy, 0.7));
        }
        goals
    }
}

/// Every row, in the order of the report.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for size in [64, 512, 1518] {
        let one = Row {
            both: false,
            ..Row::new("one", size)
        };
        rows.extend([one, Row::new("both", size)]);
    }
    for (pattern, both) in [("one", false), ("both", true)] {
        rows.push(Row {
            name: format!("gso/{pattern}"),
            segmented: true,
            both,
            ..Row::new(pattern, LARGEST)
        });
    }
    for (pattern, stations) in [("1k", 500), ("16k", 8000), ("100k", 50_000)] {
        rows.push(Row {
            stations,
            ..Row::new(pattern, 64)
        });
    }
    for (pattern, vlans) in [("access", Vlans::Access), ("trunk", Vlans::Trunk)] {
        rows.push(Row {
            vlans,
            ..Row::new(pattern, 64)
        });
    }
    for (pattern, size, ports) in [("mesh4", 64, 4), ("mesh8", 64, 8), ("mesh8", 1518, 8)] {
        rows.push(Row {
            ports,
            ..Row::new(pattern, size)
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_distinct_names_and_a_goal_each() {
        let rows = rows();
        let mut names: Vec<&str> = rows.iter().map(Entry::name).collect();
        for name in ["64/one", "1518/both", "gso/both", "64/100k", "64/trunk"] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(rows.iter().all(|row| !row.goals().is_empty()));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_trunk_row_tags_what_its_trunk_sends() {
        let rows = rows();
        let row = rows.iter().find(|row| row.name == "64/trunk").unwrap();
        assert_eq!(row.shape(256).tags, [None, Some(VLAN)]);
        let trunk = Membership::Trunk(VLAN, OTHER_VLAN);
        assert_eq!(row.members(), [Membership::Access(VLAN), trunk]);
    }
}
