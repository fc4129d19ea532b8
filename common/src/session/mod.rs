//! A vhost-user connection, back-end side: one front-end, one device, one small thread.
//!
//! The thread may block and allocate: a half-sent message, a reply nobody reads or a slow drain
//! stall this connection and nothing else. Messages are parsed by the `vhost` crate
//! (`handler`), but for the few it lacks (`divert`); what they mean is here.
//!
//! A vring is *started* by SET_VRING_KICK and stopped by GET_VRING_BASE, and *enabled* by
//! SET_VRING_ENABLE (vhost-user, "Ring states"). While it is started and complete its [`Ring`]
//! belongs to the device's worker, handed over by [`Device::attach`] and taken back, drained, by
//! [`Device::detach`]. Every change of what a ring stands on (memory, addresses, features, log,
//! in-flight table) is: detach, change, attach again. So memory is never unmapped under a burst,
//! and the worker needs no lock and never sees half a change.

mod adopt;
mod deaf;
mod divert;
mod endpoint;
mod error;
mod handler;
mod kept;
mod notifier;
mod resume;
mod serve;
mod state;
mod vring;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

pub use adopt::adopt;
pub use endpoint::{Endpoint, Listening, Mode};
pub use error::SessionError;
pub use kept::Keeping;
pub use notifier::Notifier;
pub use serve::Server;
pub use state::{Session, Status};
pub use vring::Addresses;

use crate::keep::{Cell, Settings};
use crate::mem::Mem;
use crate::ring::Ring;

/// VHOST_F_LOG_ALL: the device logs its writes to guest memory.
pub const F_LOG_ALL: u64 = 1 << 26;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// VHOST_USER_PROTOCOL_F_RARP: the front-end may ask to announce a guest that has moved here.
pub const P_RARP: u64 = Protocol::RARP.bits();
/// VHOST_USER_PROTOCOL_F_NET_MTU: the front-end says which MTU the guest is told.
pub const P_NET_MTU: u64 = Protocol::MTU.bits();

/// A ring on its way to a worker, with the file descriptors that belong to it.
#[derive(Debug)]
pub struct Attach {
    /// The ring, ready to be polled.
    pub ring: Ring,
    /// Readable when the driver kicked; none: the device polls.
    pub kick: Option<OwnedFd>,
    /// Signalled to notify the driver, by a [`crate::bell::Bell`]: write(2) may wait for ever.
    /// None: the driver polls.
    pub call: Option<OwnedFd>,
    /// Signalled when the ring breaks, by a bell as well.
    pub err: Option<OwnedFd>,
    /// Whether the device may process the ring; a disabled one keeps what it has (and a network
    /// device drains and discards its transmit ring).
    pub enabled: bool,
    /// Ends the session from the worker's side.
    pub alarm: Arc<Alarm>,
    /// Where the device may note what it has begun, if the session is kept for a successor.
    pub cell: Option<Cell>,
}

/// A change to a ring that needs no drain.
#[derive(Debug)]
pub enum Update {
    /// SET_VRING_CALL.
    Call(Option<OwnedFd>),
    /// SET_VRING_ERR.
    Err(Option<OwnedFd>),
    /// SET_VRING_ENABLE.
    Enabled(bool),
}

/// The device cannot take a ring: its worker is gone, or it is being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device's worker does not take rings any more")]
pub struct DeviceGone;

/// What a session needs of a device. Called on the session's thread only, which may block.
///
/// Callers promise: `queue < max_queues()`; a queue is attached at most once until it is detached;
/// `memory` is called while no queue is attached. Implementors promise: after `detach` returns, no
/// thread touches the ring or guest memory for that queue any more, and everything that was in
/// flight has been put and published.
pub trait Device: Send + Sync + 'static {
    /// Name for logs and the API.
    fn name(&self) -> &str;

    /// Virtio feature bits offered, without VHOST_USER_F_PROTOCOL_FEATURES and VHOST_F_LOG_ALL,
    /// which the session adds. Must not shrink over the device's life: front-ends remember.
    fn features(&self) -> u64;

    /// Protocol features that only some kinds of device have, [`P_RARP`] and [`P_NET_MTU`]: offered
    /// beside those of every session. As [`Device::features`], they must not shrink.
    fn protocol_features(&self) -> u64 {
        0
    }

    /// Whether rings keep a table of what is in flight although the front-end gave none, so that a
    /// successor of this process finishes it. A device that leaves nothing in flight when it is
    /// done with a burst needs none: the used index alone says where to go on.
    fn keeps_in_flight(&self) -> bool {
        true
    }

    /// Whether what is popped from this queue goes to queues of other devices of the process (a
    /// switch's frames). After a restart it is attached when those are.
    fn sends_to_others(&self, queue: u16) -> bool {
        let _ = queue;
        false
    }

    /// What it is to its driver, beside its name: a session of a predecessor goes on only if that
    /// is the same. Contents for a disk, for example.
    fn identity(&self) -> String {
        String::new()
    }

    /// Largest number of virtqueues, those that the driver may leave unused (a control queue)
    /// among them. It answers GET_QUEUE_NUM.
    fn max_queues(&self) -> u16;

    /// Copy configuration space at `offset` to `buf`; false if that is not all inside it.
    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool;

    /// Write configuration space; false if a byte there is not writable by the driver.
    fn write_config(&self, offset: u32, data: &[u8]) -> bool;

    /// The driver accepted these features.
    fn negotiated(&self, features: u64);

    /// The driver begins anew: what it said through its queues, of which none is attached, is to be
    /// forgotten. New features say the same.
    fn reset(&self) {}

    /// The guest's memory map is now `mem`.
    fn memory(&self, mem: &Arc<Mem>);

    /// Take a ring and start polling it.
    ///
    /// # Errors
    /// [`DeviceGone`].
    fn attach(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone>;

    /// Stop polling a ring, let what is in flight finish, and give it back. `None` if the worker
    /// died with it.
    fn detach(&self, queue: u16) -> Option<Ring>;

    /// As [`Device::detach`], for a successor of this process: what the device holds back may stay
    /// in flight, in the table, and is the successor's to do. Only called if
    /// [`Device::keeps_in_flight`] has a table made, or the front-end did.
    fn leave(&self, queue: u16) -> Option<Ring> {
        self.detach(queue)
    }

    /// Change a ring that is attached.
    fn update(&self, queue: u16, update: Update);

    /// SEND_RARP: the guest with this address has just arrived here and cannot say so itself
    /// (it has no GUEST_ANNOUNCE); tell the network. Only with [`P_RARP`].
    fn announce(&self, mac: [u8; 6]) {
        let _ = mac;
    }

    /// NET_SET_MTU: the guest is told that its MTU is `mtu` bytes; false if that does not do. Only
    /// with [`P_NET_MTU`], and perhaps before any feature is negotiated.
    fn set_mtu(&self, mtu: u16) -> bool {
        let _ = mtu;
        true
    }

    /// What was said to it that a successor of this process must know.
    fn settings(&self) -> Settings {
        Settings::default()
    }

    /// It was said to a predecessor, by the same front-end and driver. Features are negotiated, no
    /// queue is attached. True if the driver should look at the configuration space again.
    fn restore(&self, settings: &Settings) -> bool {
        let _ = settings;
        false
    }

    /// The front-end is gone and all rings are detached.
    fn disconnected(&self);
}

/// Lets a worker end a session (its memory was truncated) without waiting for it.
#[derive(Debug)]
pub struct Alarm {
    stream: std::os::unix::net::UnixStream,
}

impl Alarm {
    /// An alarm that hangs up `stream`.
    #[must_use]
    pub fn new(stream: std::os::unix::net::UnixStream) -> Alarm {
        Alarm { stream }
    }

    /// Hang up: the session's thread sees the end of its connection and cleans up.
    pub fn raise(&self) {
        // An error means that the connection is gone already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests;
