//! Which frames a capture wants: one comparison a frame, on what the switch knows of it anyway.

use arrayvec::ArrayVec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::clock::Cycles;

use crate::discard::Discard;
use crate::mac::Mac;
use crate::table::PortNo;
use crate::vlan::Vid;

/// Ports that a filter can name; more are asked for by naming none.
pub const PORTS: usize = 16;

/// Which way a frame passes a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Received from the port, into the switch.
    Rx,
    /// Sent to the port, out of the switch.
    Tx,
}

/// A frame at a port, as a worker sees it.
///
/// Every frame is seen once on its way in, with the reason if it goes no further; and once on the
/// way out of each port that it was meant for, with the reason if it was lost there.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// When its burst was taken.
    pub now: Cycles,
    /// The port.
    pub port: PortNo,
    /// Which way it passes the port.
    pub direction: Direction,
    /// Its VLAN, if it came as far as having one.
    pub vid: Option<Vid>,
    /// Source address.
    pub source: Mac,
    /// Destination address.
    pub destination: Mac,
    /// Why it was dropped, if it was.
    pub discard: Option<Discard>,
    /// Length in bytes from the destination address on.
    pub len: u32,
}

/// Which of them a capture wants: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// At these ports; at any port if empty.
    pub ports: ArrayVec<PortNo, PORTS>,
    /// Only this way. Without it: both ways where ports are named; else on the way in, and on the
    /// way out if dropped there, so that no frame is seen twice.
    pub direction: Option<Direction>,
    /// In this VLAN.
    pub vlan: Option<Vid>,
    /// From or to this address.
    pub mac: Option<Mac>,
    /// Only if dropped.
    pub discards: bool,
}

impl Filter {
    /// Whether the frame is wanted.
    #[inline]
    #[must_use]
    pub fn wants(&self, sight: &Sight) -> bool {
        let dropped = sight.discard.is_some();
        let way = match self.direction {
            Some(direction) => direction == sight.direction,
            None => !self.ports.is_empty() || dropped || sight.direction == Direction::Rx,
        };
        way && (dropped || !self.discards)
            && self.vlan.is_none_or(|vid| sight.vid == Some(vid))
            && self
                .mac
                .is_none_or(|mac| mac == sight.source || mac == sight.destination)
            && (self.ports.is_empty() || self.ports.contains(&sight.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Sight {
        Sight {
            now: Cycles::ZERO,
            port: PortNo(3),
            direction: Direction::Rx,
            vid: Vid::new(10),
            source: Mac([2, 0, 0, 0, 0, 1]),
            destination: Mac([2, 0, 0, 0, 0, 2]),
            discard: None,
            len: 64,
        }
    }

    fn out() -> Sight {
        Sight {
            direction: Direction::Tx,
            ..sight()
        }
    }

    fn lost() -> Sight {
        Sight {
            discard: Some(Discard::ReceiverFull),
            ..out()
        }
    }

    #[test]
    fn without_a_port_every_frame_is_seen_once() {
        let all = Filter::default();
        assert!(all.wants(&sight()) && all.wants(&lost()));
        assert!(!all.wants(&out()), "it was seen on the way in");
    }

    #[test]
    fn a_port_is_seen_both_ways_or_as_asked() {
        let mut filter = Filter::default();
        filter.ports.push(PortNo(3));
        assert!(filter.wants(&sight()) && filter.wants(&out()) && filter.wants(&lost()));
        filter.direction = Some(Direction::Rx);
        assert!(filter.wants(&sight()) && !filter.wants(&out()) && !filter.wants(&lost()));
        filter.direction = Some(Direction::Tx);
        assert!(!filter.wants(&sight()) && filter.wants(&out()) && filter.wants(&lost()));
        let other = Sight {
            port: PortNo(4),
            ..out()
        };
        assert!(!filter.wants(&other));
    }

    #[test]
    fn every_condition_must_be_met() {
        let filter = Filter {
            vlan: Vid::new(10),
            mac: Some(sight().destination),
            ..Filter::default()
        };
        assert!(filter.wants(&sight()));
        let back = Sight {
            source: sight().destination,
            destination: sight().source,
            ..sight()
        };
        assert!(filter.wants(&back), "an address is wanted on both ends");
        let not = [
            Sight {
                vid: Vid::new(11),
                ..sight()
            },
            Sight {
                vid: None,
                ..sight()
            },
            Sight {
                destination: sight().source,
                ..sight()
            },
        ];
        assert!(not.iter().all(|sight| !filter.wants(sight)));
        let drops = Filter {
            discards: true,
            ..filter
        };
        assert!(!drops.wants(&sight()) && drops.wants(&lost()));
    }
}
