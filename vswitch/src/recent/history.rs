//! What the records of all workers say about an address: how often, why not, and when last.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Egress, Record};
use crate::capture::anchor::Anchor;
use crate::mac::Mac;
use crate::table::PortNo;
use crate::vlan::Vid;

/// Frames shown one by one.
pub const SHOWN: usize = 16;

/// Which records are meant; all conditions must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// From or to this address.
    pub mac: Option<Mac>,
    /// In this VLAN; frames that never got one count too.
    pub vlan: Option<Vid>,
    /// From or to this port.
    pub port: Option<PortNo>,
}

impl Wanted {
    fn takes(&self, record: &Record) -> bool {
        let is_end = |mac| record.source() == Some(mac) || record.destination() == Some(mac);
        let passes = |port| record.ingress == port || record.egress() == Egress::Port(port);
        self.mac.is_none_or(is_end)
            && self
                .vlan
                .is_none_or(|vid| record.vid.is_none_or(|v| v == vid))
            && self.port.is_none_or(passes)
    }
}

/// What happened to recent frames.
///
/// Of forwarded frames a sample is remembered, the first of a burst; of dropped ones the first
/// few. The numbers say what happens, not how often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// Forwarded frames remembered.
    pub forwarded: u64,
    /// Dropped frames remembered, by reason.
    pub discarded: BTreeMap<String, u64>,
    /// Seconds since the last frame from the address.
    pub last_from_seconds: Option<f64>,
    /// Seconds since the last frame to the address.
    pub last_to_seconds: Option<f64>,
    /// The last of them, the latest last.
    pub frames: Vec<Seen>,
}

/// One frame that was remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Seen {
    /// Seconds ago.
    pub seconds: f64,
    /// The port it came from.
    pub ingress: String,
    /// The port it went to or was dropped at; `flood` for all of the VLAN; none if it never got
    /// that far.
    pub egress: Option<String>,
    /// Its VLAN, if it got one.
    pub vlan: Option<Vid>,
    /// Where it came from.
    pub source: Option<Mac>,
    /// Where it went.
    pub destination: Option<Mac>,
    /// Length in bytes.
    pub len: u32,
    /// Why it was dropped, if it was.
    pub discard: Option<String>,
}

impl History {
    /// What `records` of all workers, in any order, say about what is wanted. `name` tells what a
    /// port is called.
    #[must_use]
    pub fn new(
        records: &[Record],
        wanted: &Wanted,
        anchor: &Anchor,
        name: impl Fn(PortNo) -> String,
    ) -> History {
        let mut found: Vec<&Record> = records.iter().filter(|r| wanted.takes(r)).collect();
        found.sort_by_key(|record| record.time);
        let ago = |record: &Record| {
            let length = anchor.rate.duration(anchor.cycles.since(record.time));
            Duration::as_secs_f64(&length)
        };
        let mut history = History::default();
        for record in &found {
            match record.discard {
                None => history.forwarded += 1,
                Some(reason) => {
                    let count = history.discarded.entry(reason.name().to_owned());
                    *count.or_default() += 1;
                }
            }
            if wanted.mac.is_some() && record.source() == wanted.mac {
                history.last_from_seconds = Some(ago(record));
            }
            if wanted.mac.is_some() && record.destination() == wanted.mac {
                history.last_to_seconds = Some(ago(record));
            }
        }
        let last = found.len().saturating_sub(SHOWN);
        history.frames = found[last..]
            .iter()
            .map(|record| Seen {
                seconds: ago(record),
                ingress: name(record.ingress),
                egress: match record.egress() {
                    Egress::Nowhere => None,
                    Egress::Port(port) => Some(name(port)),
                    Egress::Flood => Some("flood".to_owned()),
                },
                vlan: record.vid,
                source: record.source(),
                destination: record.destination(),
                len: record.len,
                discard: record.discard.map(|reason| reason.name().to_owned()),
            })
            .collect();
        history
    }
}

#[cfg(test)]
mod tests {
    use towpath_common::clock::{Cycles, Rate};

    use super::super::Note;
    use super::*;
    use crate::discard::Discard;

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);

    fn record(time: u64, from: Mac, to: Mac, vlan: u16, discard: Option<Discard>) -> Record {
        let head = [to.0, from.0].concat();
        Record::new(&Note {
            now: Cycles(time),
            ingress: PortNo(u16::from(from.0[5])),
            egress: if discard.is_some() {
                Egress::Nowhere
            } else {
                Egress::Port(PortNo(u16::from(to.0[5])))
            },
            vid: Vid::new(vlan),
            len: 60,
            discard,
            head: &head,
        })
    }

    fn history(records: &[Record], wanted: Wanted) -> History {
        let anchor = Anchor {
            cycles: Cycles(10_000_000_000),
            wall: Duration::ZERO,
            rate: Rate::NANOSECONDS,
        };
        History::new(records, &wanted, &anchor, |port| format!("p{}", port.0))
    }

    #[test]
    fn frames_of_all_workers_are_told_in_order() {
        let guard = Some(Discard::SourceGuard);
        let records = [
            record(9_000_000_000, A, B, 10, None),
            record(8_000_000_000, B, A, 10, None),
            record(9_500_000_000, A, B, 0, guard),
            record(9_900_000_000, B, Mac::BROADCAST, 10, None),
        ];
        let wanted = Wanted {
            mac: Some(A),
            ..Wanted::default()
        };
        let history = history(&records, wanted);
        assert_eq!(history.forwarded, 2);
        assert_eq!(history.discarded, [("source_guard".to_owned(), 1)].into());
        assert_eq!(history.last_from_seconds, Some(0.5));
        assert_eq!(history.last_to_seconds, Some(2.0));
        let seconds: Vec<_> = history.frames.iter().map(|f| f.seconds).collect();
        assert_eq!(seconds, [2.0, 1.0, 0.5]);
        let dropped = &history.frames[2];
        assert_eq!(dropped.discard.as_deref(), Some("source_guard"));
        assert_eq!((&dropped.ingress[..], &dropped.egress), ("p10", &None));
        assert_eq!(history.frames[1].egress.as_deref(), Some("p11"));
    }

    #[test]
    fn vlan_and_port_narrow_it_down() {
        let records = [
            record(1, A, B, 10, None),
            record(2, A, B, 20, None),
            record(3, A, B, 0, Some(Discard::BadTag)),
            record(4, B, A, 20, None),
        ];
        let vlan = Wanted {
            vlan: Vid::new(20),
            ..Wanted::default()
        };
        assert_eq!(history(&records, vlan).frames.len(), 3);
        let port = Wanted {
            port: Some(PortNo(0xb)),
            ..vlan
        };
        assert_eq!(history(&records, port).frames.len(), 2);
        assert_eq!(history(&records, port).last_from_seconds, None);
    }

    #[test]
    fn only_the_last_are_shown() {
        let records: Vec<_> = (0..100).map(|t| record(t, A, B, 10, None)).collect();
        let history = history(&records, Wanted::default());
        assert_eq!((history.forwarded, history.frames.len()), (100, SHOWN));
    }
}
