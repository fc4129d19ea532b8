//! The calls that TAP interfaces and their names are set up with, all of them `ioctl`, which rustix
//! has no safe signatures for. Each function here names one operation with the argument that the
//! kernel expects for it; nothing else in the switch calls `ioctl`.
//!
//! Why it is sound: the kernel reads and writes only what the argument of the operation is defined
//! to be (linux/if_tun.h, linux/sockios.h), on whatever fd: one that does not know the operation
//! gives ENOTTY. Arguments are a [`Request`], which is as large as `struct ifreq` on every
//! architecture and has no invalid bytes, a C int, or a number.

// UNSAFETY: ioctl, whose argument the kernel takes on trust.
#![expect(unsafe_code, reason = "ioctl has no types")]

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Getter, IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};

/// Flags of TUNSETIFF and TUNGETFEATURES (linux/if_tun.h).
pub(super) const IFF_TAP: u16 = 0x0002;
pub(super) const IFF_NO_PI: u16 = 0x1000;
pub(super) const IFF_VNET_HDR: u16 = 0x4000;
pub(super) const IFF_MULTI_QUEUE: u16 = 0x0100;

/// Flags of TUNSETOFFLOAD (linux/if_tun.h): what may be given to us.
pub(super) const TUN_F_CSUM: u32 = 0x01;
pub(super) const TUN_F_TSO4: u32 = 0x02;
pub(super) const TUN_F_TSO6: u32 = 0x04;
pub(super) const TUN_F_TSO_ECN: u32 = 0x08;
/// Since Linux 6.2, and only both together.
pub(super) const TUN_F_USO: u32 = 0x20 | 0x40;

/// The interface is up (linux/if.h).
pub(super) const IFF_UP: u16 = 0x1;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNGETFEATURES: Opcode = opcode::read::<u32>(b'T', 207);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCGIFMTU: Opcode = 0x8921;
const SIOCSIFMTU: Opcode = 0x8922;

/// Room for an interface's name with its final zero (IFNAMSIZ).
pub(super) const NAME: usize = 16;

/// `struct ifreq` (linux/if.h): a name, and a union of up to 24 bytes.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy)]
struct Request {
    name: [u8; NAME],
    value: [u8; 24],
}

impl Request {
    fn new<const N: usize>(name: &str, value: [u8; N]) -> Request {
        let mut request = Request {
            name: [0; NAME],
            value: [0; 24],
        };
        // The last byte of the name stays zero.
        let places = request.name[..NAME - 1].iter_mut();
        places.zip(name.bytes()).for_each(|(to, from)| *to = from);
        let places = request.value.iter_mut();
        places.zip(value).for_each(|(to, from)| *to = from);
        request
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.value[0], self.value[1]])
    }

    fn number(&self) -> i32 {
        let [a, b, c, d, ..] = self.value;
        i32::from_ne_bytes([a, b, c, d])
    }
}

/// An operation on a `struct ifreq`: the kernel reads it and may write it.
fn update<const OPCODE: Opcode>(fd: BorrowedFd<'_>, request: &mut Request) -> io::Result<()> {
    // SAFETY: this module's operations on a `Request` are TUNSETIFF and SIOC[GS]IF{FLAGS,MTU},
    // whose argument is a struct ifreq; `Request` is one in size and alignment.
    let call = unsafe { Updater::<OPCODE, Request>::new(request) };
    // SAFETY: as above; the kernel reads and writes within the request, which is borrowed for the
    // call and valid whatever its bytes.
    Ok(unsafe { ioctl(fd, call) }?)
}

/// An operation that reads a C int.
fn set<const OPCODE: Opcode>(fd: BorrowedFd<'_>, value: c_int) -> io::Result<()> {
    // SAFETY: this module's operations here are TUNSETVNETHDRSZ and TUNSETVNETLE: a pointer to int.
    let call = unsafe { Setter::<OPCODE, c_int>::new(value) };
    // SAFETY: as above; the kernel only reads the int.
    Ok(unsafe { ioctl(fd, call) }?)
}

/// Make `fd`, an open /dev/net/tun, a queue of the interface `name`, which is created if there is
/// none.
pub(super) fn attach(fd: BorrowedFd<'_>, name: &str, flags: u16) -> io::Result<()> {
    update::<TUNSETIFF>(fd, &mut Request::new(name, flags.to_ne_bytes()))
}

/// What the kernel knows of the flags of [`attach`].
pub(super) fn features(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: TUNGETFEATURES writes an unsigned int.
    let call = unsafe { Getter::<TUNGETFEATURES, u32>::new() };
    // SAFETY: as above; the crate gives it room.
    Ok(unsafe { ioctl(fd, call) }?)
}

/// What may be given to us unfinished.
pub(super) fn set_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    let Ok(offloads) = usize::try_from(offloads) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: TUNSETOFFLOAD takes a number in place of a pointer.
    let call = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads) };
    // SAFETY: as above; the kernel reaches no memory of ours.
    Ok(unsafe { ioctl(fd, call) }?)
}

/// Size of the virtio-net header before each frame, in bytes.
pub(super) fn set_header_size(fd: BorrowedFd<'_>, bytes: u8) -> io::Result<()> {
    set::<TUNSETVNETHDRSZ>(fd, bytes.into())
}

/// Fields of the virtio-net header are little-endian, as in virtio 1.
pub(super) fn set_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    set::<TUNSETVNETLE>(fd, 1)
}

/// Flags of an interface; `fd` is any socket of its network namespace, as below.
pub(super) fn flags(fd: BorrowedFd<'_>, name: &str) -> io::Result<u16> {
    let mut request = Request::new(name, []);
    update::<SIOCGIFFLAGS>(fd, &mut request)?;
    Ok(request.flags())
}

/// Set the flags of an interface.
pub(super) fn set_flags(fd: BorrowedFd<'_>, name: &str, flags: u16) -> io::Result<()> {
    update::<SIOCSIFFLAGS>(fd, &mut Request::new(name, flags.to_ne_bytes()))
}

/// Largest packet of an interface, in bytes, without the link header.
pub(super) fn mtu(fd: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    let mut request = Request::new(name, []);
    update::<SIOCGIFMTU>(fd, &mut request)?;
    Ok(request.number())
}

/// Set the largest packet.
pub(super) fn set_mtu(fd: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let bytes = i32::from(mtu).to_ne_bytes();
    update::<SIOCSIFMTU>(fd, &mut Request::new(name, bytes))
}
