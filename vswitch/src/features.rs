//! What a port offers its driver: feature bits and the configuration space (virtio 1.3, 5.1.3 and
//! 5.1.4).
//!
//! A guest that migrates must find on the other host what it negotiated, so what is offered depends
//! on the port's configuration only and never on this host or this version: a bit may be added, but
//! none goes (the tests below hold the number).
//!
//! Not offered, each for a reason:
//! - UFO (GUEST, HOST): obsolete, and Linux no longer sends it.
//! - `RING_PACKED`, RSS, `HASH_REPORT`, tunnel offloads, notification coalescing: not implemented.
//! - `CTRL_GUEST_OFFLOADS`: front-ends that serve the control queue themselves (QEMU, Cloud
//!   Hypervisor) do not pass its commands on, so a guest that turned an offload off would go on
//!   getting unsegmented frames.
//! - `CTRL_RX`, `CTRL_VLAN`, `CTRL_MAC_ADDR`: filters and addresses are the switch's own. What
//!   serves the control queue in our place offers them itself.

use towpath_common::ring::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_VERSION_1};
use towpath_common::session::{F_LOG_ALL, F_PROTOCOL_FEATURES};

use crate::mac::Mac;
use crate::net::Offloads;

// Feature bits (virtio 1.3, 5.1.3).

/// The driver may leave checksums to us.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames with partial checksums.
pub const GUEST_CSUM: u64 = 1 << 1;
/// Offloads can be changed through the control queue. Not offered.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The configuration space holds the MTU.
pub const MTU: u64 = 1 << 3;
/// The configuration space holds the MAC address.
pub const MAC: u64 = 1 << 5;
/// The driver takes unsegmented TCP over IPv4.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes unsegmented TCP over IPv6.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes unsegmented TCP with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// The driver may send unsegmented TCP over IPv4.
pub const HOST_TSO4: u64 = 1 << 11;
/// The driver may send unsegmented TCP over IPv6.
pub const HOST_TSO6: u64 = 1 << 12;
/// The driver may send unsegmented TCP with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// A frame may be spread over several receive buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The configuration space holds the link's status.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// Receive modes through the control queue. Not offered.
pub const CTRL_RX: u64 = 1 << 18;
/// VLAN filters through the control queue. Not offered.
pub const CTRL_VLAN: u64 = 1 << 19;
/// More receive modes through the control queue. Not offered.
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
/// The driver announces itself when asked.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// Several queue pairs.
pub const MQ: u64 = 1 << 22;
/// The MAC address through the control queue. Not offered.
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver takes unsegmented UDP over IPv4.
pub const GUEST_USO4: u64 = 1 << 54;
/// The driver takes unsegmented UDP over IPv6.
pub const GUEST_USO6: u64 = 1 << 55;
/// The driver may send unsegmented UDP.
pub const HOST_USO: u64 = 1 << 56;

/// Names of virtio features by bit, as in the specification without their prefix (virtio 1.3, 5.1.3
/// and 6; vhost-user for the last two).
const VIRTIO: [(u64, &str); 30] = [
    (CSUM, "CSUM"),
    (GUEST_CSUM, "GUEST_CSUM"),
    (CTRL_GUEST_OFFLOADS, "CTRL_GUEST_OFFLOADS"),
    (MTU, "MTU"),
    (MAC, "MAC"),
    (GUEST_TSO4, "GUEST_TSO4"),
    (GUEST_TSO6, "GUEST_TSO6"),
    (GUEST_ECN, "GUEST_ECN"),
    (HOST_TSO4, "HOST_TSO4"),
    (HOST_TSO6, "HOST_TSO6"),
    (HOST_ECN, "HOST_ECN"),
    (MRG_RXBUF, "MRG_RXBUF"),
    (STATUS, "STATUS"),
    (CTRL_VQ, "CTRL_VQ"),
    (CTRL_RX, "CTRL_RX"),
    (CTRL_VLAN, "CTRL_VLAN"),
    (CTRL_RX_EXTRA, "CTRL_RX_EXTRA"),
    (GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (MQ, "MQ"),
    (CTRL_MAC_ADDR, "CTRL_MAC_ADDR"),
    (F_INDIRECT_DESC, "INDIRECT_DESC"),
    (F_EVENT_IDX, "EVENT_IDX"),
    (F_VERSION_1, "VERSION_1"),
    (F_IN_ORDER, "IN_ORDER"),
    (1 << 36, "ORDER_PLATFORM"),
    (GUEST_USO4, "GUEST_USO4"),
    (GUEST_USO6, "GUEST_USO6"),
    (HOST_USO, "HOST_USO"),
    (F_LOG_ALL, "LOG_ALL"),
    (F_PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
];

/// The names of those of `bits` that have one.
#[must_use]
pub fn names(bits: u64) -> Vec<String> {
    let set = VIRTIO.iter().filter(|(bit, _)| bits & bit != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

/// What of a port's configuration its driver sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// Queue pairs, 1 to 32768 (virtio 1.3, 5.1.4.1).
    pub pairs: u16,
    /// The guest's address; none: the front-end or the driver chooses one.
    pub mac: Option<Mac>,
    /// MTU in bytes, 68 to 65535 (virtio 1.3, 5.1.4.1).
    pub mtu: u16,
    /// Whether checksums and segmentation are offered.
    pub offloads: bool,
}

/// The features that `card` offers.
#[must_use]
pub fn offered(card: &Card) -> u64 {
    const RING: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_IN_ORDER;
    const SEND: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
    const TAKE: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
    let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
    RING | when(card.offloads, SEND | TAKE)
        | MRG_RXBUF
        | CTRL_VQ
        | STATUS
        | GUEST_ANNOUNCE
        | MTU
        | when(card.pairs > 1, MQ)
        | when(card.mac.is_some(), MAC)
}

/// What a driver that negotiated `features` takes as it is.
///
/// A bit whose requirement was not negotiated (virtio 1.3, 5.1.3.1: segmentation needs checksums,
/// ECN needs TCP segmentation) counts as not negotiated: a front-end cannot be told by vhost-user
/// that it forgot one, and to do more than was asked for is always right.
#[must_use]
pub fn accepts(features: u64) -> Offloads {
    // One type of frame for both families (GSO_UDP_L4), so one bit without the other is none.
    let uso = features & (GUEST_USO4 | GUEST_USO6) == GUEST_USO4 | GUEST_USO6;
    offloads(
        features & GUEST_CSUM != 0,
        features & GUEST_TSO4 != 0,
        features & GUEST_TSO6 != 0,
        features & GUEST_ECN != 0,
        uso,
    )
}

/// What a driver that negotiated `features` may send. As for [`accepts`], what lacks its
/// requirement is not negotiated, and frames that use it are refused.
#[must_use]
pub fn may_send(features: u64) -> Offloads {
    offloads(
        features & CSUM != 0,
        features & HOST_TSO4 != 0,
        features & HOST_TSO6 != 0,
        features & HOST_ECN != 0,
        features & HOST_USO != 0,
    )
}

fn offloads(csum: bool, tso4: bool, tso6: bool, ecn: bool, uso: bool) -> Offloads {
    let when = |yes: bool, offload| if yes { offload } else { Offloads::NONE };
    if !csum {
        return Offloads::NONE;
    }
    Offloads::CSUM
        .with(when(tso4, Offloads::TSO4))
        .with(when(tso6, Offloads::TSO6))
        .with(when(ecn && (tso4 || tso6), Offloads::ECN))
        .with(when(uso, Offloads::USO))
}

/// Bytes of struct `virtio_net_config` up to the last field that is offered.
pub const CONFIG_LEN: usize = 12;

/// The end of what can be asked for (vhost-user, "Virtio device config space": 256 bytes).
pub const CONFIG_MAX: usize = 256;

/// Smallest MTU that a device may name, in bytes (virtio 1.3, 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// The link is up (virtio 1.3, 5.1.4: `VIRTIO_NET_S_LINK_UP`).
const LINK_UP: u16 = 1;
/// The driver is asked to announce itself (`VIRTIO_NET_S_ANNOUNCE`).
const ANNOUNCE: u16 = 2;

/// A port's configuration space (virtio 1.3, 5.1.4). Nothing in it can be written: a driver with
/// `VERSION_1` sets its address through the control queue, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetConfig {
    card: Card,
    status: u16,
}

impl NetConfig {
    /// The configuration space of `card`, with its link up.
    #[must_use]
    pub fn new(card: Card) -> NetConfig {
        let status = LINK_UP;
        NetConfig { card, status }
    }

    /// What it was made of, with the MTU as it is now.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    fn set_status(&mut self, bit: u16, on: bool) {
        self.status = if on {
            self.status | bit
        } else {
            self.status & !bit
        };
    }

    /// Show the link up or down.
    pub fn set_link(&mut self, up: bool) {
        self.set_status(LINK_UP, up);
    }

    /// Ask the driver to announce itself, or note that it acknowledged.
    pub fn set_announce(&mut self, wanted: bool) {
        self.set_status(ANNOUNCE, wanted);
    }

    /// Show another MTU, in bytes; false, and no change, if it is below what virtio allows.
    #[must_use]
    pub fn set_mtu(&mut self, mtu: u16) -> bool {
        let good = mtu >= MIN_MTU;
        if good {
            self.card.mtu = mtu;
        }
        good
    }

    fn bytes(&self) -> [u8; CONFIG_LEN] {
        let [a, b, c, d, e, f] = self.card.mac.unwrap_or_default().0;
        let words = [self.status, self.card.pairs, self.card.mtu].map(u16::to_le_bytes);
        let [[s, t], [p, q], [m, n]] = words;
        [a, b, c, d, e, f, s, t, p, q, m, n]
    }

    /// Copy what stands at `offset` to `buf`; what follows the last field reads as zero. False if
    /// that is not all inside the 256 bytes that vhost-user has for it.
    #[must_use]
    pub fn read(&self, offset: u32, buf: &mut [u8]) -> bool {
        let end = usize::try_from(offset).map(|o| o.saturating_add(buf.len()));
        if end.is_ok_and(|end| end <= CONFIG_MAX) {
            let rest = usize::try_from(offset).unwrap_or(CONFIG_MAX);
            let bytes = self.bytes().into_iter().chain(std::iter::repeat(0));
            let asked = bytes.skip(rest);
            buf.iter_mut().zip(asked).for_each(|(to, from)| *to = from);
            true
        } else {
            false
        }
    }
}

#[cfg(test)]
mod tests;
