//! A bridge on paper: what 802.1Q and the README say becomes of a frame. Nothing here calls the
//! switch; frames are taken apart and put together byte by byte.
//!
//! A frame is dropped for the first reason that holds, in this order:
//!
//! | at the sender | at each receiver |
//! |---|---|
//! | `ring_disabled` | `port_down` |
//! | `runt`, `giant` | `too_big_for_receiver` |
//! | `bad_tag` | `vlan_not_allowed`: a known station's port that left the VLAN |
//! | `tagged_on_access`, `vlan_not_allowed`, `untagged_on_trunk` | `nested_tag` |
//! | `bad_source` | `receiver_full`: fewer buffers than it takes, or than it may take |
//! | `source_guard`, `bpdu_guard`, `link_local` | `receiver_small`: it takes more than it may |
//! | `source_guard` (a static entry elsewhere), `mac_limit` | |
//! | now its source is learned: `hairpin`, `isolated`, `no_member` | |

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(super) type Address = [u8; 6];
type Why = &'static str;

/// Length of a virtio-net header, which takes room in receive buffers.
const HEADER: usize = 12;
/// Buffers that one frame may take, if they are merged.
const MERGED: usize = 64;
/// Segments of buffers that are looked at before the last.
const SEGMENTS: usize = 256;

/// The VLANs of a port.
#[derive(Debug, Clone)]
pub(super) enum Vlans {
    Access(u16),
    Trunk {
        allowed: BTreeSet<u16>,
        native: Option<u16>,
    },
}

impl Vlans {
    /// Whether frames of `vid` leave tagged; none if they do not leave here (802.1Q, 8.8.10: the
    /// member set and the untagged set).
    fn tagged(&self, vid: u16) -> Option<bool> {
        match self {
            Vlans::Access(own) => (*own == vid).then_some(false),
            Vlans::Trunk { native, .. } if *native == Some(vid) => Some(false),
            Vlans::Trunk { allowed, .. } => allowed.contains(&vid).then_some(true),
        }
    }
}

/// Where a port's frames go: so many buffers of so many bytes.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) slots: usize,
    pub(super) size: usize,
    pub(super) mergeable: bool,
    /// Segments of each.
    pub(super) pieces: usize,
    /// Buffers on offer now.
    pub(super) free: usize,
}

impl Room {
    /// Take the buffers for a frame of `len` bytes; gives how many.
    fn take(&mut self, len: usize) -> Result<usize, Why> {
        let need = len.div_ceil(self.size);
        let most = if self.mergeable {
            MERGED.min(SEGMENTS / self.pieces + 1)
        } else {
            1
        };
        if self.free < need.min(most) {
            return Err("receiver_full");
        }
        if need > most {
            return Err("receiver_small");
        }
        self.free -= need;
        Ok(need)
    }
}

/// A frame that must have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) bytes: Vec<u8>,
    pub(super) buffers: usize,
}

/// Frames and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum(pub(super) u64, pub(super) u64);

impl Sum {
    fn add(&mut self, bytes: usize) {
        *self = Sum(self.0 + 1, self.1 + bytes as u64);
    }
}

/// A port, and what was counted there.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) vlans: Vlans,
    pub(super) uplink: bool,
    pub(super) isolated: bool,
    /// Longest frame, without a tag.
    pub(super) longest: usize,
    /// Addresses it may send from; none: all.
    pub(super) sources: Vec<Address>,
    pub(super) bpdu_guard: bool,
    pub(super) mac_limit: Option<usize>,
    pub(super) room: Room,
    /// Its receive queues are enabled.
    pub(super) receives: bool,
    /// Its transmit queues are enabled.
    pub(super) transmits: bool,
    /// What arrived since this was last emptied.
    pub(super) arrivals: Vec<Arrival>,
    pub(super) rx: Sum,
    pub(super) tx: Sum,
    /// By VLAN: received and not dropped there, and delivered; bytes as received.
    pub(super) by_vlan: BTreeMap<u16, [Sum; 2]>,
    pub(super) dropped: BTreeMap<Why, u64>,
}

impl Port {
    fn drop(&mut self, why: Why) {
        *self.dropped.entry(why).or_default() += 1;
    }
}

/// Where a station is.
#[derive(Debug, Clone, Copy)]
struct Known {
    port: usize,
    fixed: bool,
}

/// What a frame is after the ingress rules.
struct Heard {
    vid: u16,
    /// Priority and drop eligibility, in the upper four bits.
    priority: u16,
    nested: bool,
    /// Addresses, and what follows the tag.
    addresses: [u8; 12],
    rest: Vec<u8>,
    /// Bytes as received.
    len: usize,
}

/// The bridge.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) ports: Vec<Port>,
    stations: HashMap<(u16, Address), Known>,
    /// Frames dropped at their sender, and deliveries of all others, whatever became of them.
    pub(super) decisions: u64,
}

impl Oracle {
    /// An operator says where a station is.
    pub(super) fn fix(&mut self, vid: u16, address: Address, port: usize) {
        let known = Known { port, fixed: true };
        self.stations.insert((vid, address), known);
    }

    /// An operator makes it forget what it learned.
    pub(super) fn flush(&mut self) {
        self.stations.retain(|_, known| known.fixed);
    }

    /// A frame comes in at `from`.
    pub(super) fn receive(&mut self, from: usize, frame: &[u8]) {
        let port = &mut self.ports[from];
        if port.transmits {
            // A runt has no length to speak of.
            port.rx.add(if frame.len() < 14 { 0 } else { frame.len() });
        }
        match self.decide(from, frame) {
            Err(why) => {
                self.decisions += 1;
                self.ports[from].drop(why);
            }
            Ok((heard, receivers)) => {
                self.decisions += receivers.len() as u64;
                let carried = self.ports[from].by_vlan.entry(heard.vid).or_default();
                carried[0].add(heard.len);
                for to in receivers {
                    if let Err(why) = self.deliver(to, &heard) {
                        self.ports[to].drop(why);
                    }
                }
            }
        }
    }

    /// Everything up to the egress rules: the frame, and who gets it.
    fn decide(&mut self, from: usize, frame: &[u8]) -> Result<(Heard, Vec<usize>), Why> {
        let port = &self.ports[from];
        if !port.transmits {
            return Err("ring_disabled");
        }
        let heard = classify(port, frame)?;
        let (to, source) = heard.addresses.split_at(6);
        let (to, source): (Address, Address) = (to.try_into().unwrap(), source.try_into().unwrap());
        if source[0] & 1 == 1 || source == [0; 6] {
            return Err("bad_source");
        }
        if !port.sources.is_empty() && !port.sources.contains(&source) {
            return Err("source_guard");
        }
        let reserved = to[..5] == [0x01, 0x80, 0xc2, 0, 0] && to[5] < 16;
        let bpdu = (reserved && to[5] == 0) || to == [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd];
        if port.bpdu_guard && bpdu {
            return Err("bpdu_guard");
        }
        if reserved {
            return Err("link_local");
        }
        self.learn(heard.vid, source, from)?;
        let known = self.stations.get(&(heard.vid, to)).map(|known| known.port);
        let receivers = match known.filter(|_| to[0] & 1 == 0) {
            Some(port) if port == from => return Err("hairpin"),
            Some(port) if !self.may_talk(from, port) => return Err("isolated"),
            Some(port) => vec![port],
            None => self.flood(heard.vid, from),
        };
        if receivers.is_empty() {
            return Err("no_member");
        }
        Ok((heard, receivers))
    }

    fn learn(&mut self, vid: u16, source: Address, from: usize) -> Result<(), Why> {
        let limit = self.ports[from].mac_limit.unwrap_or(usize::MAX);
        let dynamic = self.stations.values().filter(|known| !known.fixed);
        let learned = dynamic.filter(|known| known.port == from).count();
        match self.stations.get(&(vid, source)) {
            Some(known) if known.port == from => Ok(()),
            Some(known) if known.fixed => Err("source_guard"),
            _ if learned >= limit => Err("mac_limit"),
            _ => {
                let here = Known {
                    port: from,
                    fixed: false,
                };
                self.stations.insert((vid, source), here);
                Ok(())
            }
        }
    }

    /// An isolated port talks to uplinks only.
    fn may_talk(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.ports[a], &self.ports[b]);
        (!a.isolated || b.uplink) && (!b.isolated || a.uplink)
    }

    fn flood(&self, vid: u16, from: usize) -> Vec<usize> {
        let member = |to: &usize| self.ports[*to].vlans.tagged(vid).is_some();
        let all = (0..self.ports.len()).filter(member);
        all.filter(|to| *to != from && self.may_talk(from, *to))
            .collect()
    }

    fn deliver(&mut self, to: usize, heard: &Heard) -> Result<(), Why> {
        let port = &mut self.ports[to];
        if !port.receives {
            return Err("port_down");
        }
        if heard.addresses.len() + heard.rest.len() > port.longest {
            return Err("too_big_for_receiver");
        }
        let tagged = port.vlans.tagged(heard.vid).ok_or("vlan_not_allowed")?;
        if heard.nested && !tagged {
            return Err("nested_tag");
        }
        let mut bytes = heard.addresses.to_vec();
        if tagged {
            bytes.extend([0x81, 0x00]);
            bytes.extend((heard.priority | heard.vid).to_be_bytes());
        }
        bytes.extend(&heard.rest);
        let buffers = port.room.take(HEADER + bytes.len())?;
        port.tx.add(bytes.len());
        port.by_vlan.entry(heard.vid).or_default()[1].add(heard.len);
        port.arrivals.push(Arrival { bytes, buffers });
        Ok(())
    }
}

/// The ingress rules (802.1Q, 6.9.1 and 8.6.2).
fn classify(port: &Port, frame: &[u8]) -> Result<Heard, Why> {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let is_tag = |tpid: u16| tpid == 0x8100 || tpid == 0x88a8;
    if frame.len() < 14 {
        return Err("runt");
    }
    let had_tag = is_tag(word(12)) && frame.len() >= 18;
    let tag = if had_tag { 4 } else { 0 };
    if frame.len() - tag > port.longest {
        return Err("giant");
    }
    let nested = is_tag(word(12 + tag));
    let (tpid, tci) = if had_tag {
        (word(12), word(14))
    } else {
        (0x8100, 0)
    };
    let mut vid = tci & 0xfff;
    // A service tag, the reserved id, a tag cut short, or one hidden by a priority tag.
    if tpid != 0x8100 || vid == 0xfff || (vid == 0 && nested) {
        return Err("bad_tag");
    }
    match &port.vlans {
        Vlans::Access(own) if vid == 0 => vid = *own,
        Vlans::Access(_) => return Err("tagged_on_access"),
        Vlans::Trunk { native, .. } if vid == 0 => vid = native.ok_or("untagged_on_trunk")?,
        vlans if vlans.tagged(vid).is_none() => return Err("vlan_not_allowed"),
        Vlans::Trunk { .. } => {}
    }
    Ok(Heard {
        vid,
        priority: tci & 0xf000,
        nested,
        addresses: frame[..12].try_into().unwrap(),
        rest: frame[12 + tag..].to_vec(),
        len: frame.len(),
    })
}
