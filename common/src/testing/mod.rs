//! A guest in this process, for tests and as a load generator (feature `testing`).
//!
//! From the bottom up: [`memory`] (memfds shared with the back-end), [`driver`] and [`split`] (the
//! driver's side of a virtqueue), [`wire`] and [`frontend`] (vhost-user as a VMM speaks it, or as
//! an attacker does), [`blk`] (virtio-blk requests). Nothing of this shares code with the back-end
//! except the mapping of memory: it is a second, independent reading of both specifications. On the
//! other side of the socket, [`echo`] is the smallest device; [`bed`] puts both ends together.

pub mod bed;
pub mod blk;
pub mod driver;
pub mod echo;
pub mod frontend;
pub mod memory;
pub mod split;
pub mod wire;

pub use driver::{Completion, Driver, Form, Segment, Token};
pub use frontend::{Frontend, Wanted};
pub use memory::{GuestMemory, GuestRegion};
pub use split::SplitDriver;
pub use wire::{Error, Listener, RawFrontend, Result};

/// Feature bits (virtio 1.3, sections 5.2.3 and 6; vhost-user, "Feature negotiation").
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
}
