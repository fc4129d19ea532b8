//! What a disk offers its driver: feature bits and the configuration space (virtio 1.3, 5.2.3 and
//! 5.2.4).

use towpath_common::chain::MAX_SEGMENTS;

use crate::disk::Disk;
use crate::request::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, SECTOR};

/// seg_max: data segments in one request, besides header and status.
pub const F_SEG_MAX: u64 = 1 << 2;
/// The disk is read-only.
pub const F_RO: u64 = 1 << 5;
/// blk_size: the logical block size.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// FLUSH.
pub const F_FLUSH: u64 = 1 << 9;
/// Physical block size and best I/O size.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// The driver may turn the write cache off and on.
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// More than one queue.
pub const F_MQ: u64 = 1 << 12;
/// DISCARD.
pub const F_DISCARD: u64 = 1 << 13;
/// WRITE_ZEROES.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data segments in one request: with header and status they fill a queue of 128, what front-ends
/// make by default; a chain may not be longer than its queue (virtio 1.3, 2.7.5.3.1).
pub const SEG_MAX: u32 = 126;

const _: () = assert!(
    (SEG_MAX as usize) + 2 <= MAX_SEGMENTS,
    "a chain holds seg_max segments"
);

/// Bytes of struct virtio_blk_config up to the last field of virtio 1.3.
pub const CONFIG_LEN: usize = 96;

/// Where PCI front-ends see the configuration space; some ask for it with that offset added
/// (VHOST_USER_CONFIG_OFFSET of the `vhost` crate; Cloud Hypervisor does).
const PCI_OFFSET: u32 = 0x100;

/// Most bytes read at once, and the end of what can be asked for (vhost-user, "Virtio device config
/// space": 256 bytes).
pub const CONFIG_MAX: usize = 256;

/// Offsets in struct virtio_blk_config (virtio 1.3, 5.2.4).
mod field {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const MIN_IO_SIZE: usize = 26;
    pub(super) const WRITEBACK: usize = 32;
    pub(super) const NUM_QUEUES: usize = 34;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// The features `disk` offers with `queues` queues: those of a block device and `ring`, what the
/// rings and the transport can do.
#[must_use]
pub fn offered(disk: &Disk, queues: u16, ring: u64) -> u64 {
    let when = |yes: bool, bit: u64| if yes { bit } else { 0 };
    let writable = !disk.read_only();
    ring | F_SEG_MAX
        | F_BLK_SIZE
        | F_FLUSH
        | F_TOPOLOGY
        | when(queues > 1, F_MQ)
        | when(disk.read_only(), F_RO)
        | when(writable, F_CONFIG_WCE)
        | when(disk.discard_unit().is_some(), F_DISCARD)
        | when(writable, F_WRITE_ZEROES)
}

/// Must every write be durable before it completes (virtio 1.3, 5.2.5.2 and 5.2.6.2)?
///
/// `negotiated` is what the driver accepted and `wce` the writeback field as it stands. A driver
/// that has no FLUSH cannot ask for durability, so it always gets it; one that has, has a write
/// cache unless it turned it off.
#[must_use]
pub fn write_through(negotiated: u64, wce: bool) -> bool {
    let flush = negotiated & F_FLUSH != 0;
    let off = negotiated & F_CONFIG_WCE != 0 && !wce;
    !flush || off
}

/// A disk's configuration space.
#[derive(Debug, Clone)]
pub struct Config {
    bytes: [u8; CONFIG_LEN],
    wce_writable: bool,
}

impl Config {
    /// The configuration space of `disk` with `queues` queues. The write cache is on.
    #[must_use]
    pub fn new(disk: &Disk, queues: u16) -> Config {
        let mut config = Config {
            bytes: [0; CONFIG_LEN],
            wce_writable: !disk.read_only(),
        };
        config.set_capacity(disk.size());
        config.put(field::SEG_MAX, &SEG_MAX.to_le_bytes());
        config.put(field::BLK_SIZE, &disk.block().bytes().to_le_bytes());
        // Both are powers of two, and the physical block is not the smaller one.
        let ratio = (disk.physical().bytes() / disk.block().bytes()).max(1);
        let exponent = u8::try_from(ratio.ilog2()).unwrap_or(0);
        config.put(field::PHYSICAL_BLOCK_EXP, &[exponent]);
        let best = u16::try_from(ratio).unwrap_or(1);
        config.put(field::MIN_IO_SIZE, &best.to_le_bytes());
        config.put(field::WRITEBACK, &[u8::from(!disk.read_only())]);
        config.put(field::NUM_QUEUES, &queues.to_le_bytes());
        let ranges = u32::try_from(MAX_RANGES).unwrap_or(1).to_le_bytes();
        if let Some(unit) = disk.discard_unit() {
            let sectors = u32::try_from(u64::from(unit) / SECTOR).unwrap_or(1);
            config.put(
                field::MAX_DISCARD_SECTORS,
                &MAX_DISCARD_SECTORS.to_le_bytes(),
            );
            config.put(field::MAX_DISCARD_SEG, &ranges);
            config.put(field::DISCARD_SECTOR_ALIGNMENT, &sectors.to_le_bytes());
        }
        if !disk.read_only() {
            config.put(
                field::MAX_WRITE_ZEROES_SECTORS,
                &MAX_ZERO_SECTORS.to_le_bytes(),
            );
            config.put(field::MAX_WRITE_ZEROES_SEG, &ranges);
            config.put(field::WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let room = self.bytes.get_mut(at..).unwrap_or_default();
        room.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
    }

    /// The size it shows, in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let sectors = self.bytes.get(field::CAPACITY..field::CAPACITY + 8);
        let sectors = sectors.and_then(|bytes| bytes.try_into().ok());
        sectors.map_or(0, u64::from_le_bytes).saturating_mul(SECTOR)
    }

    /// Show another size, in bytes.
    pub fn set_capacity(&mut self, size: u64) {
        self.put(field::CAPACITY, &(size / SECTOR).to_le_bytes());
    }

    /// The writeback field: true if the write cache is on.
    #[must_use]
    pub fn wce(&self) -> bool {
        self.bytes.get(field::WRITEBACK) == Some(&1)
    }

    /// Turn the write cache on or off, as a reset or a driver without CONFIG_WCE does.
    pub fn set_wce(&mut self, on: bool) {
        self.put(field::WRITEBACK, &[u8::from(on)]);
    }

    /// `len` bytes at `offset`; what follows the last field reads as zero. None if that is not
    /// inside the 256 bytes that vhost-user has for it.
    #[must_use]
    pub fn read(&self, offset: u32, len: u32) -> Option<Vec<u8>> {
        let start = usize::try_from(offset % PCI_OFFSET).ok()?;
        let len = usize::try_from(len).ok()?;
        if offset >= 2 * PCI_OFFSET || start.checked_add(len)? > CONFIG_MAX {
            return None;
        }
        let mut all = [0; CONFIG_MAX];
        all.get_mut(..CONFIG_LEN)?.copy_from_slice(&self.bytes);
        all.get(start..start + len).map(<[u8]>::to_vec)
    }

    /// The driver writes `bytes` at `offset`. Only the writeback field can be written, with 0 or 1,
    /// and only where CONFIG_WCE is offered; false if it is anything else.
    #[must_use]
    pub fn write(&mut self, offset: u32, bytes: &[u8]) -> bool {
        let at = usize::try_from(offset % PCI_OFFSET);
        let ([on @ (0 | 1)], Ok(field::WRITEBACK), true) = (bytes, at, self.wce_writable) else {
            return false;
        };
        if offset >= 2 * PCI_OFFSET {
            return false;
        }
        self.set_wce(*on == 1);
        true
    }
}

#[cfg(test)]
mod tests;
