//! Why a message is refused: each error names the value that was wrong.

use thiserror::Error;

use super::DeviceGone;
use crate::mem::MemError;
use crate::ring::RingError;

/// Why a message was refused. The session ends, unless the front-end asked for a reply: then it
/// is told and may go on.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A vring index the device does not have.
    #[error("vring {index} does not exist; the device has {queues}")]
    BadVring {
        /// Index in the message.
        index: u32,
        /// Vrings the device has.
        queues: u16,
    },
    /// Feature bits that were not offered.
    #[error("features {0:#x} were not offered")]
    NotOffered(u64),
    /// A message that needs a stopped vring.
    #[error("vring {0} is running; stop it first (GET_VRING_BASE)")]
    Running(u16),
    /// Not an index of a 16-bit ring.
    #[error("vring base {0} is not below 65536")]
    BadBase(u32),
    /// Kick, call and error fds must be eventfds: nothing else can be signalled without waiting.
    #[error("vring {index}: the {what} fd is not an eventfd")]
    NotEventFd {
        /// Vring index.
        index: u16,
        /// kick, call or err.
        what: &'static str,
    },
    /// The memory map was refused.
    #[error(transparent)]
    Mem(#[from] MemError),
    /// The vring was refused.
    #[error("vring {index}: {source}")]
    Ring {
        /// Vring index.
        index: u16,
        /// Why.
        source: RingError,
    },
    /// The device's worker is gone.
    #[error(transparent)]
    Gone(#[from] DeviceGone),
    /// Configuration space does not extend there, or is not writable there.
    #[error("configuration space has no {what} bytes at {offset}+{len}")]
    BadConfig {
        /// readable or writable.
        what: &'static str,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: usize,
    },
    /// NET_SET_MTU with more than 16 bits, or with what the device does not take.
    #[error("the device does not take an MTU of {0} bytes")]
    BadMtu(u64),
    /// The process has no file descriptor left.
    #[error("no file descriptor left for a vring: {0}; raise the limit (ulimit -n)")]
    NoFds(std::io::Error),
    /// The kernel gave no io_uring to call drivers with.
    #[error("cannot call the driver through io_uring: {0}")]
    NoBell(std::io::Error),
    /// An in-flight table for no, or too many, queues or descriptors.
    #[error("in-flight table for {queues} queues of {size} descriptors at {offset}: {why}")]
    BadInflight {
        /// Queues in the message.
        queues: u16,
        /// Descriptors a queue in the message.
        size: u16,
        /// Offset in the file, in bytes.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// The file behind guest memory shrank under us.
    #[error("guest memory was truncated by whoever shares it")]
    Truncated,
    /// Not supported by this back-end and not offered.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}
