//! A guest in this process, for tests and as a load generator (feature `testing`).
//!
//! From the bottom up: [`memory`] (memfds shared with the back-end), [`driver`] and [`split`] (the
//! driver's side of a virtqueue), [`wire`] and [`frontend`] (vhost-user as a VMM speaks it, or as
//! an attacker does), [`blk`] (virtio-blk requests), [`net`] (virtio-net frames).
//! Nothing of this shares code with the back-end except the mapping of memory: it is a second,
//! independent reading of both specifications. On the other side of the socket, [`echo`] is the
//! smallest device; [`bed`] puts both ends together. [`direct`] has no socket at all. Apart from
//! all that, [`api`] asks a control socket.

pub mod api;
pub mod bed;
pub mod blk;
pub mod direct;
pub mod document;
pub mod driver;
pub mod echo;
pub mod frontend;
pub mod memory;
pub mod net;
pub mod split;
pub mod wire;

pub use driver::{Completion, Driver, Form, Segment, Token};
pub use frontend::{Frontend, Wanted};
pub use memory::{GuestMemory, GuestRegion};
pub use split::SplitDriver;
pub use wire::{Error, Listener, RawFrontend, Result};

/// Feature bits (virtio 1.3, sections 5.1.3, 5.2.3 and 6; vhost-user, "Feature negotiation").
pub mod feature {
    /// virtio-blk: `size_max` is valid.
    pub const BLK_SIZE_MAX: u64 = 1 << 1;
    /// virtio-blk: `seg_max` is valid.
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    /// virtio-blk: the disk is read-only.
    pub const BLK_RO: u64 = 1 << 5;
    /// virtio-blk: `blk_size` is valid.
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    /// virtio-blk: FLUSH works.
    pub const BLK_FLUSH: u64 = 1 << 9;
    /// virtio-blk: topology fields are valid.
    pub const BLK_TOPOLOGY: u64 = 1 << 10;
    /// virtio-blk: the guest may switch the write cache.
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    /// virtio-blk: several queues.
    pub const BLK_MQ: u64 = 1 << 12;
    /// virtio-blk: DISCARD works.
    pub const BLK_DISCARD: u64 = 1 << 13;
    /// virtio-blk: `WRITE_ZEROES` works.
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    /// vhost: every write to guest memory is logged.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Descriptors in tables of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notification suppression by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user: protocol features exist.
    pub const PROTOCOL: u64 = 1 << 30;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// The packed virtqueue.
    pub const PACKED: u64 = 1 << 34;
    /// Chains come back in the order they were offered.
    pub const IN_ORDER: u64 = 1 << 35;
    /// A queue can be reset alone.
    pub const RING_RESET: u64 = 1 << 40;
    /// What every modern virtio-blk driver asks for, besides the ring's own features.
    pub const MODERN: u64 = VERSION_1
        | BLK_SIZE_MAX
        | BLK_SEG_MAX
        | BLK_RO
        | BLK_BLK_SIZE
        | BLK_FLUSH
        | BLK_TOPOLOGY
        | BLK_CONFIG_WCE
        | BLK_MQ
        | BLK_DISCARD
        | BLK_WRITE_ZEROES;
    /// virtio-net: the device completes partial checksums.
    pub const NET_CSUM: u64 = 1;
    /// virtio-net: the driver takes partial checksums.
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    /// virtio-net: the driver may change what it takes while it runs.
    pub const NET_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// virtio-net: `mtu` is valid.
    pub const NET_MTU: u64 = 1 << 3;
    /// virtio-net: `mac` is valid.
    pub const NET_MAC: u64 = 1 << 5;
    /// virtio-net: the driver takes unsegmented TCP over IPv4.
    pub const NET_GUEST_TSO4: u64 = 1 << 7;
    /// virtio-net: the driver takes unsegmented TCP over IPv6.
    pub const NET_GUEST_TSO6: u64 = 1 << 8;
    /// virtio-net: the driver takes unsegmented TCP with ECN.
    pub const NET_GUEST_ECN: u64 = 1 << 9;
    /// virtio-net: the device takes unsegmented TCP over IPv4.
    pub const NET_HOST_TSO4: u64 = 1 << 11;
    /// virtio-net: the device takes unsegmented TCP over IPv6.
    pub const NET_HOST_TSO6: u64 = 1 << 12;
    /// virtio-net: the device takes unsegmented TCP with ECN.
    pub const NET_HOST_ECN: u64 = 1 << 13;
    /// virtio-net: a frame may be spread over several receive buffers.
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    /// virtio-net: `status` is valid.
    pub const NET_STATUS: u64 = 1 << 16;
    /// virtio-net: there is a control queue.
    pub const NET_CTRL_VQ: u64 = 1 << 17;
    /// virtio-net: the device may ask the driver to announce itself.
    pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    /// virtio-net: several queue pairs.
    pub const NET_MQ: u64 = 1 << 22;
    /// virtio-net: the driver takes unsegmented UDP over IPv4.
    pub const NET_GUEST_USO4: u64 = 1 << 54;
    /// virtio-net: the driver takes unsegmented UDP over IPv6.
    pub const NET_GUEST_USO6: u64 = 1 << 55;
    /// virtio-net: the device takes unsegmented UDP.
    pub const NET_HOST_USO: u64 = 1 << 56;
    /// Everything about checksums and segmentation, in both directions.
    pub const NET_OFFLOADS: u64 = NET_CSUM
        | NET_GUEST_CSUM
        | NET_GUEST_TSO4
        | NET_GUEST_TSO6
        | NET_GUEST_ECN
        | NET_HOST_TSO4
        | NET_HOST_TSO6
        | NET_HOST_ECN
        | NET_GUEST_USO4
        | NET_GUEST_USO6
        | NET_HOST_USO;
    /// What every modern virtio-net driver asks for, besides offloads and the ring's own features.
    pub const NET_MODERN: u64 = VERSION_1
        | NET_MTU
        | NET_MAC
        | NET_MRG_RXBUF
        | NET_STATUS
        | NET_CTRL_VQ
        | NET_GUEST_ANNOUNCE
        | NET_MQ;
}
