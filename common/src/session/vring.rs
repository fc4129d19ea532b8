//! One vring as the front-end has described it so far.

use std::os::fd::OwnedFd;

use crate::mem::DirtyLog;
use crate::ring::inflight::InflightTable;
use crate::ring::{RingError, Setup};

/// SET_VRING_ADDR: front-end addresses, and the guest address of the used ring for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Addresses {
    /// Descriptor table.
    pub desc: u64,
    /// Avail ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Guest physical address of the used ring, if writes to it are to be logged.
    pub log: Option<u64>,
}

/// What SET_VRING_* messages have said about one vring, in any order.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: Option<u16>,
    /// SET_VRING_BASE, or where the ring stood when it was last detached.
    pub(super) base: Option<u16>,
    pub(super) addresses: Option<Addresses>,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    /// SET_VRING_KICK came, GET_VRING_BASE did not.
    pub(super) started: bool,
    /// SET_VRING_ENABLE; counts once VHOST_USER_F_PROTOCOL_FEATURES is negotiated.
    pub(super) enabled: bool,
    /// A worker has the ring.
    pub(super) attached: bool,
    /// In-flight table of our own, where the front-end brought none.
    pub(super) own_inflight: Option<InflightTable>,
}

impl Vring {
    /// True once everything a ring needs has been said.
    pub(super) fn is_complete(&self) -> bool {
        self.started && self.size.is_some() && self.addresses.is_some()
    }

    /// What [`crate::ring::Ring::new`] wants, for vring `index`; `own`: with a table of our own if
    /// the front-end gave none.
    ///
    /// # Errors
    /// [`RingError::BadPart`] if no in-flight table can be made.
    pub(super) fn setup(
        &mut self,
        index: u16,
        features: u64,
        log: Option<&DirtyLog>,
        inflight: Option<&InflightTable>,
        own: bool,
    ) -> Result<Option<Setup>, RingError> {
        let (Some(size), Some(at), true) = (self.size, self.addresses, self.started) else {
            return Ok(None);
        };
        let table = match inflight.and_then(|t| t.queue(index)) {
            Some(queue) => Some(queue),
            None if own => Some(self.own_table(size)?),
            None => None,
        };
        Ok(Some(Setup {
            size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            base: self.base,
            features,
            log: log.cloned(),
            log_addr: at.log,
            inflight: table,
        }))
    }

    fn own_table(&mut self, size: u16) -> Result<crate::ring::inflight::InflightQueue, RingError> {
        let bad = |source| RingError::BadPart {
            part: "in-flight table of the",
            source,
        };
        let table = match self.own_inflight.take() {
            Some(table) if table.size == size => table,
            _ => InflightTable::create(1, size).map_err(bad)?,
        };
        let queue = table.queue(0).ok_or(RingError::BadSize(size.into()));
        self.own_inflight = Some(table);
        queue
    }
}
