//! A TAP interface as uplink: the switch's way to the host's network stack, bridges, namespaces.
//!
//! The interface is created, or one that an operator made beforehand is used (`ip tuntap add … user
//! …`), so that the daemon needs no privilege. Frames carry virtio-net headers both ways, so large
//! segments and partial checksums pass to and from the kernel as they pass between guests; the
//! kernel takes them whatever it was told, and TUNSETOFFLOAD says that we take them too.
//!
//! One system call a frame: a frame is read behind the one before it, into one area for a burst, so
//! that a burst of small frames stays in few pages, and pages that no large frame ever reached are
//! not resident. A frame to be sent is written to the kernel when it is committed: there is one
//! buffer for all, and it stays in the cache.
//!
//! An interface that is down loses frames and comes back. One that was deleted is gone for good:
//! the port is then [`failed`](Uplink::failed).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use arrayvec::ArrayVec;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::chain::BURST;

use super::tap_sys as sys;
use super::{LARGEST, Uplink};
use crate::net::{HEADER, NetHeader, Offloads};

/// Bytes a frame can take, with its header; one more, to know one that was cut off.
const SLOT: usize = HEADER + LARGEST + 1;

/// Room for the frames of a burst, in bytes: a full burst of 1500-byte frames takes a fifth. Longer
/// frames end a burst sooner, which bounds what becomes resident.
const ROOM: usize = 512 << 10;

/// Where frames start in it: a multiple of this, in bytes.
const ALIGN: usize = 64;

/// Ethernet header and one VLAN tag, in bytes: what a frame may have beyond the MTU.
const LINK: usize = 18;

/// Most queues of one interface (MAX_TAP_QUEUES in the kernel).
pub const MAX_QUEUES: u16 = 256;

/// Largest MTU of a TAP interface: its frames have 65535 bytes with the Ethernet header.
pub const MAX_MTU: u16 = 65_521;

/// Smallest MTU (RFC 791).
pub const MIN_MTU: u16 = 68;

/// Name of a network interface: up to 15 visible ASCII characters, no `/`, `:` or `%`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// Not the name of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be an interface's name; use 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct BadInterfaceName(String);

impl InterfaceName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = BadInterfaceName;

    fn from_str(name: &str) -> Result<InterfaceName, BadInterfaceName> {
        // '%' makes the kernel choose a number; the others it refuses itself.
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
        let short = (1..sys::NAME).contains(&name.len());
        if short && name.bytes().all(plain) && !matches!(name, "." | "..") {
            Ok(InterfaceName(name.to_owned()))
        } else {
            Err(BadInterfaceName(name.to_owned()))
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = BadInterfaceName;

    fn try_from(name: String) -> Result<InterfaceName, BadInterfaceName> {
        name.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> String {
        name.0
    }
}

/// What TAP interfaces are made and opened by.
pub const TUN: &str = "/dev/net/tun";

/// Why a TAP interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no /dev/net/tun, or nothing behind it.
    #[error("/dev/net/tun: {0}; the kernel needs CONFIG_TUN (modprobe tun)")]
    NoTun(io::Error),
    /// The kernel's TAP lacks something.
    #[error("this kernel's TAP interfaces have no {0}")]
    Lacks(&'static str),
    /// Creating and changing interfaces takes a privilege.
    #[error(
        "{name}: not permitted to {action}; give the daemon CAP_NET_ADMIN, or prepare the \
         interface: ip tuntap add {name} mode tap multi_queue vnet_hdr user USER, \
         then ip link set {name} up mtu MTU"
    )]
    NotPermitted {
        /// The interface.
        name: InterfaceName,
        /// What was tried.
        action: &'static str,
    },
    /// Somebody else has it.
    #[error("{0}: in use by another process; make it with multi_queue to share it")]
    Busy(InterfaceName),
    /// There is an interface of this name that does not do.
    #[error(
        "{name}: exists, and is no TAP interface with {queues} queue(s); several need one made \
         with multi_queue"
    )]
    OtherKind {
        /// The interface.
        name: InterfaceName,
        /// Queues asked for.
        queues: u16,
    },
    /// The number of queues is out of range.
    #[error("{0} queues; use 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// The MTU is out of range.
    #[error("an MTU of {0}; use {MIN_MTU} to {MAX_MTU}")]
    Mtu(u16),
    /// Anything else.
    #[error("{name}: cannot {action}: {source}")]
    Call {
        /// The interface.
        name: InterfaceName,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    accepts: Offloads,
    max_frame: usize,
    /// Frames received, with their headers.
    input: Box<[u8]>,
    /// Where they are: start and length with header.
    frames: ArrayVec<(usize, usize), BURST>,
    /// One frame to be sent, with its header.
    output: Box<[u8]>,
    /// Length of the frame there is room for.
    reserved: usize,
    lost: usize,
    failed: Option<io::Error>,
}

impl Tap {
    /// Open the interface `name` with so many queues, one for each worker that serves it; create
    /// it if there is none. It is brought up, and given an MTU if one is named (in bytes, without
    /// the Ethernet header). An interface created here vanishes with the last queue.
    ///
    /// # Errors
    /// If there is no such interface and none can be created, or it is another's; see [`TapError`].
    pub fn open(name: &InterfaceName, queues: u16, mtu: Option<u16>) -> Result<Vec<Tap>, TapError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        if let Some(mtu) = mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
            return Err(TapError::Mtu(mtu));
        }
        let fds = (0..queues).map(|_| attach(name, queues));
        let fds: Vec<OwnedFd> = fds.collect::<Result<_, _>>()?;
        Tap::over(name, fds, mtu)
    }

    /// The interface `name` by its queues, which a predecessor had opened.
    ///
    /// # Errors
    /// If it is not there any more; see [`TapError`].
    pub fn over(
        name: &InterfaceName,
        fds: Vec<OwnedFd>,
        mtu: Option<u16>,
    ) -> Result<Vec<Tap>, TapError> {
        let mut accepts = Offloads::NONE;
        for fd in &fds {
            accepts = configure(fd.as_fd()).map_err(|source| TapError::Call {
                name: name.clone(),
                action: "set header and offloads",
                source,
            })?;
        }
        let mtu = bring_up(name, mtu)?;
        Ok(fds
            .into_iter()
            .map(|fd| Tap::of(fd, accepts, mtu + LINK))
            .collect())
    }

    fn of(fd: OwnedFd, accepts: Offloads, max_frame: usize) -> Tap {
        Tap {
            fd,
            accepts,
            max_frame,
            input: vec![0; ROOM].into_boxed_slice(),
            frames: ArrayVec::new(),
            output: vec![0; HEADER + LARGEST].into_boxed_slice(),
            reserved: 0,
            lost: 0,
            failed: None,
        }
    }

    /// Whether there is an interface of this name in this network namespace.
    #[must_use]
    pub fn exists(name: &InterfaceName) -> bool {
        let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
        socket.is_ok_and(|socket| sys::flags(socket.as_fd(), name.as_str()).is_ok())
    }

    /// Give the interface another MTU (in bytes, without the Ethernet header); its queues stay.
    ///
    /// # Errors
    /// If there is no such interface in this network namespace, or it does not take that; see
    /// [`TapError`].
    pub fn set_mtu(name: &InterfaceName, mtu: u16) -> Result<(), TapError> {
        if !(MIN_MTU..=MAX_MTU).contains(&mtu) {
            return Err(TapError::Mtu(mtu));
        }
        bring_up(name, Some(mtu)).map(drop)
    }

    /// MTU of the interface when it was opened, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        u16::try_from(self.max_frame - LINK).unwrap_or(u16::MAX)
    }

    /// The queue, for whoever keeps it for a successor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The same queue once more, so that one thread can receive from it and another send to it.
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn twin(&self) -> io::Result<Tap> {
        Ok(Tap::of(self.fd.try_clone()?, self.accepts, self.max_frame))
    }
}

/// A new queue of the interface.
fn attach(name: &InterfaceName, queues: u16) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open(TUN, flags, Mode::empty()).map_err(|e| match e {
        Errno::ACCESS | Errno::PERM => TapError::NotPermitted {
            name: name.clone(),
            action: "open /dev/net/tun",
        },
        e => TapError::NoTun(e.into()),
    })?;
    let features = sys::features(fd.as_fd()).map_err(TapError::NoTun)?;
    if features & u32::from(sys::IFF_VNET_HDR) == 0 {
        return Err(TapError::Lacks("virtio-net headers (IFF_VNET_HDR)"));
    }
    if queues > 1 && features & u32::from(sys::IFF_MULTI_QUEUE) == 0 {
        return Err(TapError::Lacks("multi-queue (IFF_MULTI_QUEUE)"));
    }
    let single = sys::IFF_TAP | sys::IFF_NO_PI | sys::IFF_VNET_HDR;
    let multi = single | sys::IFF_MULTI_QUEUE;
    let try_with = |flags| {
        let result = sys::attach(fd.as_fd(), name.as_str(), flags);
        result.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    };
    let result = match queues {
        // One that exists may have been made with multi_queue.
        1 => match try_with(single) {
            Err(Errno::INVAL) => try_with(multi),
            other => other,
        },
        _ => try_with(multi),
    };
    let name = name.clone();
    match result {
        Ok(()) => Ok(fd),
        Err(Errno::PERM) => Err(TapError::NotPermitted {
            name,
            action: "create or use it",
        }),
        Err(Errno::BUSY) => Err(TapError::Busy(name)),
        Err(Errno::INVAL) => Err(TapError::OtherKind { name, queues }),
        Err(source) => Err(TapError::Call {
            name,
            action: "attach to it",
            source: source.into(),
        }),
    }
}

/// Set the header, and as many offloads as the kernel knows; gives what it takes from us.
fn configure(fd: BorrowedFd<'_>) -> io::Result<Offloads> {
    const HEADER_BYTES: u8 = 12;
    const { assert!(HEADER_BYTES as usize == HEADER) };
    sys::set_header_size(fd, HEADER_BYTES)?;
    sys::set_little_endian(fd)?;
    let tso = sys::TUN_F_CSUM | sys::TUN_F_TSO4 | sys::TUN_F_TSO6 | sys::TUN_F_TSO_ECN;
    let basic = Offloads::CSUM
        .with(Offloads::TSO4)
        .with(Offloads::TSO6)
        .with(Offloads::ECN);
    // A kernel that does not know USO, which came last, refuses the whole.
    if sys::set_offloads(fd, tso | sys::TUN_F_USO).is_ok() {
        return Ok(basic.with(Offloads::USO));
    }
    sys::set_offloads(fd, tso)?;
    Ok(basic)
}

/// Set the MTU and bring the interface up, where it is not so already; gives the MTU.
fn bring_up(name: &InterfaceName, wanted: Option<u16>) -> Result<usize, TapError> {
    let fail = |action: &'static str| {
        move |e: io::Error| match Errno::from_io_error(&e) {
            Some(Errno::PERM) => TapError::NotPermitted {
                name: name.clone(),
                action,
            },
            _ => TapError::Call {
                name: name.clone(),
                action,
                source: e,
            },
        }
    };
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(|e| fail("open a socket for it")(e.into()))?;
    let (fd, text) = (socket.as_fd(), name.as_str());
    let mut mtu = sys::mtu(fd, text).map_err(fail("read its MTU"))?;
    if let Some(wanted) = wanted.filter(|wanted| i32::from(*wanted) != mtu) {
        sys::set_mtu(fd, text, wanted).map_err(fail("set its MTU"))?;
        mtu = wanted.into();
    }
    let flags = sys::flags(fd, text).map_err(fail("read its flags"))?;
    if flags & sys::IFF_UP == 0 {
        sys::set_flags(fd, text, flags | sys::IFF_UP).map_err(fail("bring it up"))?;
    }
    Ok(usize::try_from(mtu).unwrap_or_default())
}

impl Uplink for Tap {
    fn receive(&mut self, max: usize) -> usize {
        self.frames.clear();
        if self.failed.is_some() {
            return 0;
        }
        let mut at = 0;
        for _ in 0..max.min(BURST) {
            let Some(room) = self.input.get_mut(at..at + SLOT) else {
                break;
            };
            match rustix::io::read(&self.fd, room) {
                Ok(length) => {
                    self.frames.push((at, length));
                    at += length.next_multiple_of(ALIGN);
                }
                // No memory for now, or nothing there.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => break,
                Err(e) => {
                    self.failed = Some(e.into());
                    break;
                }
            }
        }
        self.frames.len()
    }

    fn frame(&self, index: usize) -> (NetHeader, &[u8]) {
        let place = self.frames.get(index).copied();
        let bytes = place.and_then(|(at, length)| self.input.get(at..at + length));
        match bytes.and_then(<[u8]>::split_first_chunk) {
            Some((header, frame)) => (NetHeader::from_bytes(header), frame),
            None => (NetHeader::default(), &[]),
        }
    }

    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reserved = 0;
        let room = self.output.get_mut(HEADER..HEADER + len)?;
        self.reserved = len;
        Some(room)
    }

    fn commit(&mut self, header: NetHeader) {
        let (head, _) = self.output.split_at_mut(HEADER);
        // The kernel ignores num_buffers.
        head.copy_from_slice(&header.to_bytes(0));
        let length = HEADER + std::mem::take(&mut self.reserved);
        if self.failed.is_some() {
            self.lost += 1;
            return;
        }
        let bytes = self.output.get(..length).unwrap_or_default();
        match rustix::io::write(&self.fd, bytes) {
            Ok(_) => {}
            Err(e) => {
                self.lost += 1;
                // Down, full, or a header that the kernel does not like: only this frame is lost.
                if matches!(e, Errno::BADFD | Errno::BADF | Errno::NODEV | Errno::NXIO) {
                    self.failed = Some(e.into());
                }
            }
        }
    }

    fn send(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    fn accepts(&self) -> Offloads {
        self.accepts
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }
}

#[cfg(test)]
mod tests;
