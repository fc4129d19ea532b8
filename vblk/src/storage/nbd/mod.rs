//! NBD: a disk on a server.
//!
//! The handshake and every connect happen on a thread of the export's own, the keeper, which may
//! wait ([`keeper`]). A worker's client (`crate::engine::nbd`) orders connections and finds them,
//! or news of them, at its [`Desk`]; requests and replies go through the worker's ring.
//!
//! # When the server goes away
//!
//! Requests wait, and the guest with them, until the keeper has a connection again; only to the
//! same export: another size, or a flag less, is another image, and is not served. What was in
//! flight is sent anew. That is safe, because none of it was completed, so the guest cannot have
//! built on any order of it; the dead connection was shut down before, so that nothing new of it
//! reaches the server. What is not safe to assume is that a server still has what it acknowledged
//! but was not told to flush. So once the last connection of a client is lost with such writes
//! outstanding, FLUSH fails, and the disk stays failed, as after an fsync error. Drivers that work
//! write-through, and all whose writes were flushed, do not notice.
//!
//! Of several connections one may break while the others seem to stand, because nothing was sent on
//! these since their server was started anew; a FLUSH through the new one would then be answered
//! by a server that knows nothing of the writes. So a connection that is opened beside others is
//! used once one of these has answered a request sent after that: one server was behind both at
//! that moment. If all of these break first, the last connection is lost.
//!
//! What NBD has no word for is how long a server goes on with requests of a connection that is
//! gone: one that carries them out after it answered those of the next connection undoes these.
//!
//! A disk that is stopped while its server does not answer gets a grace of a few seconds; then its
//! requests fail ([`Hurry`]).
//!
//! # When it has grown
//!
//! NBD tells the size in the handshake and has no word for another one, and a server may hold a
//! connection to what it told there. So an export that was given more room is served as it was
//! until somebody asks for the new size (`vblk disk resize`). Then the disk is brought to rest and
//! flushed, the size that connections must have becomes the new one, and all are made anew.

pub mod address;
pub mod handshake;
mod hurry;
mod keeper;
pub mod proto;
mod tls;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};

use crossbeam::queue::ArrayQueue;
use rustix::event::EventfdFlags;

use super::{Health, Shape, Storage};
use crate::disk::{BlockSize, Disk, Serial};
use crate::events::WRITES_DOUBTFUL;
use address::Address;
use handshake::{HandshakeError, Info};
pub use hurry::Hurry;
use keeper::Order;
use proto::flag;

/// Most connections of one client.
pub const MAX_CONNECTIONS: u8 = 16;

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The server cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no session.
    #[error("{address}: {source}")]
    Handshake {
        /// Where.
        address: String,
        /// Why.
        source: HandshakeError,
    },
    /// A size or block that is no disk's.
    #[error(
        "{address} has {size} bytes in blocks of {block}; a disk has blocks of 512 bytes to \
             64 KiB, and one at least"
    )]
    Size {
        /// Where.
        address: String,
        /// Bytes.
        size: u64,
        /// Smallest request in bytes.
        block: u32,
    },
    /// It may not be written.
    #[error("{address} is read-only; serve it with read_only = true")]
    ReadOnly {
        /// Where.
        address: String,
    },
    /// Nothing could be promised.
    #[error(
        "{address} has no FLUSH, so no write would ever be known to be durable; serve it with \
             read_only = true, or use a server that has it"
    )]
    NoFlush {
        /// Where.
        address: String,
    },
    /// No thread or eventfd.
    #[error("cannot set up a client for {address}: {source}")]
    System {
        /// Where.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Where a client finds what it ordered.
#[derive(Debug)]
pub struct Desk {
    mail: ArrayQueue<Mail>,
    bell: OwnedFd,
}

/// A connection, as it is delivered.
#[derive(Debug)]
pub struct Mail {
    /// Which of the client's it is.
    pub number: u8,
    /// The connection.
    pub socket: OwnedFd,
    /// Bytes of the export as its handshake told.
    pub size: u64,
}

impl Desk {
    fn new() -> std::io::Result<Desk> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Desk {
            mail: ArrayQueue::new(usize::from(MAX_CONNECTIONS)),
            bell,
        })
    }

    /// Readable when there is mail.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// A connection that was ordered.
    #[must_use]
    pub fn take(&self) -> Option<Mail> {
        self.mail.pop()
    }

    fn put(&self, mail: Mail) {
        // A client orders a connection only while it has none of that number: there is room.
        let _ = self.mail.push(mail);
        self.ring();
    }

    /// Make the bell readable.
    pub fn ring(&self) {
        // The counter cannot be full: it is read each time.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// What all clients of an export share.
#[derive(Debug)]
pub struct Shared {
    address: Address,
    info: Info,
    /// Bytes the export is to have; more than [`Info::size`] once it has grown.
    size: AtomicU64,
    /// How often all connections were to be made anew.
    renewals: AtomicU64,
    /// Writes acknowledged that no FLUSH was about when it was sent, so far.
    acked: AtomicU64,
    /// As `acked` was when the last successful FLUSH was sent.
    stable: AtomicU64,
    /// Acknowledged writes may be lost.
    lost: AtomicBool,
    /// Connections lost.
    losses: AtomicU64,
    /// Why there is no connection.
    trouble: Mutex<Option<String>>,
    /// Requests fail rather than wait: the disk is being stopped, and its server does not answer.
    given_up: AtomicBool,
    /// All desks, some of which may be gone.
    desks: Mutex<Vec<Weak<Desk>>>,
}

impl Shared {
    /// What the export can do.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// True if the export can do `flag`.
    #[must_use]
    pub fn can(&self, flag: u16) -> bool {
        self.info.flags & flag != 0
    }

    /// Bytes the export is to have.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// How often all connections were to be made anew, so far.
    #[must_use]
    pub(crate) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Acquire)
    }

    /// A write was acknowledged that is not known to be durable.
    pub(crate) fn acked(&self) {
        self.acked.fetch_add(1, Ordering::Relaxed);
    }

    /// A FLUSH is sent: what to tell [`Shared::flushed`].
    pub(crate) fn flushing(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// A FLUSH succeeded.
    pub(crate) fn flushed(&self, mark: u64) {
        self.stable.fetch_max(mark, Ordering::AcqRel);
    }

    /// A client has no connection left.
    pub(crate) fn cut_off(&self) {
        if self.acked.load(Ordering::Acquire) > self.stable.load(Ordering::Acquire)
            && !self.lost.swap(true, Ordering::AcqRel)
        {
            tracing::error!(name: WRITES_DOUBTFUL, server = %self.address, "the server \
                went away with writes that it acknowledged and was not told to flush: FLUSH \
                fails until the disk was checked and cleared (`vblk disk clear`)");
        }
    }

    /// Acknowledged writes may be lost, or an operator says that they are not.
    pub(crate) fn set_lost(&self, lost: bool) {
        if !lost {
            // What is not flushed now was acknowledged by a server that is there.
            let acked = self.acked.load(Ordering::Acquire);
            self.stable.fetch_max(acked, Ordering::AcqRel);
        }
        self.lost.store(lost, Ordering::Release);
    }

    /// A connection ended.
    pub(crate) fn lose(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// True if acknowledged writes may be lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// How the export is.
    #[must_use]
    pub fn health(&self) -> Health {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = self.is_lost().then(|| {
            "the server went away with writes that were not flushed; FLUSH fails".to_owned()
        });
        Health {
            trouble: trouble.clone().or(lost),
            losses: self.losses.load(Ordering::Relaxed),
        }
    }

    fn set_trouble(&self, why: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &why {
            Some(why) if trouble.as_ref() != Some(why) => {
                tracing::warn!(server = %self.address, %why, "no connection, trying on");
            }
            None if trouble.is_some() => tracing::info!(server = %self.address, "connected again"),
            _ => {}
        }
        *trouble = why;
    }
}

/// An export of an NBD server.
#[derive(Debug)]
pub struct Export {
    shared: Arc<Shared>,
    connections: u8,
    orders: mpsc::Sender<Order>,
}

impl Export {
    /// Connect to `address` and make a disk of what is there, with `connections` connections for
    /// each worker where the server allows more than one.
    ///
    /// # Errors
    /// [`NbdError`].
    pub fn disk(
        address: &Address,
        read_only: bool,
        connections: u8,
        serial: Serial,
    ) -> Result<Disk, NbdError> {
        let (socket, info) = keeper::connect(address)?;
        let shape = shape(address, &info, read_only)?;
        let shared = Arc::new(Shared {
            address: address.clone(),
            size: AtomicU64::new(info.size),
            info,
            renewals: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            stable: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            losses: AtomicU64::new(0),
            trouble: Mutex::default(),
            given_up: AtomicBool::new(false),
            desks: Mutex::default(),
        });
        let orders = keeper::start(Arc::clone(&shared), socket).map_err(|source| {
            let address = address.to_string();
            NbdError::System { address, source }
        })?;
        let multi = info.flags & flag::CAN_MULTI_CONN != 0;
        let export = Export {
            shared,
            connections: if multi {
                connections.clamp(1, MAX_CONNECTIONS)
            } else {
                1
            },
            orders,
        };
        Ok(Disk::of(Storage::Nbd(export), shape, serial))
    }

    /// Bytes of the export at `address`.
    ///
    /// # Errors
    /// [`NbdError`].
    pub fn size(address: &Address) -> Result<u64, NbdError> {
        Ok(keeper::connect(address)?.1.size)
    }

    /// Bytes it has now, by a new connection.
    ///
    /// # Errors
    /// Why it cannot be told: no server, or another export.
    pub(crate) fn look(&self) -> Result<u64, String> {
        Ok(keeper::look(&self.shared)?.1)
    }

    /// It is to have `size` bytes: connections that are made from now on are to such an export.
    pub(crate) fn expect(&self, size: u64) {
        self.shared.size.store(size, Ordering::Release);
    }

    /// All connections are made anew. Nothing is in flight on them, and all that was acknowledged
    /// was flushed.
    pub(crate) fn renew(&self) {
        self.shared.renewals.fetch_add(1, Ordering::AcqRel);
        self.shared.ring();
    }

    /// What all its clients share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Connections a client has.
    #[must_use]
    pub fn connections(&self) -> u8 {
        self.connections
    }

    /// True if TRIM can be sent.
    #[must_use]
    pub fn trims(&self) -> bool {
        self.shared.can(flag::SEND_TRIM)
    }

    /// A desk for a new client.
    ///
    /// # Errors
    /// If there is no eventfd.
    pub fn desk(&self) -> std::io::Result<Arc<Desk>> {
        let desk = Desk::new().map(Arc::new)?;
        self.shared.introduce(&desk);
        Ok(desk)
    }

    /// A way to order connections, delivered to `desk`.
    #[must_use]
    pub fn orders(&self, desk: &Arc<Desk>) -> Orders {
        Orders {
            to: self.orders.clone(),
            desk: Arc::clone(desk),
        }
    }
}

/// How a client orders connections.
#[derive(Debug)]
pub struct Orders {
    to: mpsc::Sender<Order>,
    desk: Arc<Desk>,
}

impl Orders {
    /// Order connection `number`.
    pub fn place(&self, number: u8) {
        let desk = Arc::downgrade(&self.desk);
        // A keeper ends only when every sender is gone.
        let _ = self.to.send(Order { desk, number });
    }
}

fn shape(address: &Address, info: &Info, read_only: bool) -> Result<Shape, NbdError> {
    let address = || address.to_string();
    let block = info.min_block.max(BlockSize::SECTOR.bytes());
    let size = info.size & !(u64::from(block) - 1);
    let Some(block) = BlockSize::new(block).filter(|_| size > 0) else {
        let (address, size, block) = (address(), info.size, info.min_block);
        return Err(NbdError::Size {
            address,
            size,
            block,
        });
    };
    let has = |flag| info.flags & flag != 0;
    if !read_only && has(flag::READ_ONLY) {
        return Err(NbdError::ReadOnly { address: address() });
    }
    if !read_only && !has(flag::SEND_FLUSH) {
        return Err(NbdError::NoFlush { address: address() });
    }
    let preferred = BlockSize::new(info.preferred_block).unwrap_or(BlockSize::PAGE);
    let gives_back = has(flag::SEND_TRIM) || has(flag::SEND_WRITE_ZEROES);
    Ok(Shape {
        size,
        block,
        physical: preferred.max(block),
        direct: false,
        inline: true,
        waits: false,
        threaded: false,
        read_only,
        mem_align: 1,
        len_align: 1,
        discard: (gives_back && !read_only).then(|| preferred.max(block).bytes()),
        one_worker: !has(flag::CAN_MULTI_CONN),
    })
}
