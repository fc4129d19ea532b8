//! Commands to the administration queue of an NVMe controller, by its character device
//! (linux/nvme_ioctl.h): the three that flexible resources of SR-IOV take. The kernel offers no
//! other way, sysfs the least of all.
//!
//! Why it is sound: the kernel takes [`Passthrough`] by value and writes back the same structure;
//! the one pointer in it is to a buffer that is lent for the call, with its length beside it. On an
//! fd of another kind the operation gives ENOTTY.

// UNSAFETY: ioctl, whose argument the kernel takes on trust.
#![expect(unsafe_code, reason = "ioctl has no types")]

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Bytes that Identify answers with (NVMe base 2.0, 5.17).
pub const IDENTIFY_BYTES: usize = 4096;

const IDENTIFY: u8 = 0x06;
const VIRTUALIZATION: u8 = 0x1c;
/// Far longer than a controller that works takes.
const TIMEOUT_MS: u32 = 10_000;

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    words_2_and_3: [u32; 2],
    metadata: u64,
    data: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    words_10_to_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

const ADMIN: Opcode = opcode::read_write::<Passthrough>(b'N', 0x41);

/// A command on its way, and the status of the controller on the way back.
struct Command(Passthrough);

// SAFETY: ADMIN takes and gives a Passthrough, which is what `as_ptr` points to; it has no invalid
// bytes. What it points to in turn is `admin`'s to vouch for.
unsafe impl Ioctl for Command {
    /// The status field: 0 is success.
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        ADMIN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    // SAFETY: the pointer, which the caller vouches for, is not followed: the answer is the status.
    unsafe fn output_from_ptr(status: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(status)
    }
}

/// A controller's own word for a command that it did not carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller answers with status {:#x}", .0)]
pub struct Status(pub u16);

fn admin(controller: impl AsFd, command: Passthrough, data: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let command = Command(Passthrough {
        data: data.as_mut_ptr().expose_provenance() as u64,
        data_bytes: length,
        timeout_ms: TIMEOUT_MS,
        ..command
    });
    // SAFETY: `data` is lent to this function alone until the call is over, and is as long as said.
    let status = unsafe { ioctl(controller, command) }?;
    match u16::try_from(status) {
        Ok(0) => Ok(()),
        Ok(status) => Err(io::Error::other(Status(status))),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn open(controller: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).open(controller)
}

/// Asks for the structure `cns`, of controllers from the first on.
///
/// # Errors
/// When there is no such device, or it says no.
pub fn identify(controller: &Path, cns: u8) -> io::Result<Box<[u8; IDENTIFY_BYTES]>> {
    let mut answer = Box::new([0; IDENTIFY_BYTES]);
    let command = Passthrough {
        opcode: IDENTIFY,
        words_10_to_15: [u32::from(cns), 0, 0, 0, 0, 0],
        ..Passthrough::default()
    };
    admin(open(controller)?, command, answer.as_mut_slice())?;
    Ok(answer)
}

/// Virtualization Management (NVMe base 2.0, 5.34): `action` on `count` resources of `kind` of the
/// controller `id`.
///
/// # Errors
/// When there is no such device, or it says no.
pub fn virtualization(
    controller: &Path,
    id: u16,
    action: u8,
    kind: u8,
    count: u16,
) -> io::Result<()> {
    let first = (u32::from(id) << 16) | (u32::from(kind & 7) << 8) | u32::from(action & 0xf);
    let command = Passthrough {
        opcode: VIRTUALIZATION,
        words_10_to_15: [first, u32::from(count), 0, 0, 0, 0],
        ..Passthrough::default()
    };
    admin(open(controller)?, command, &mut [])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<Passthrough>(), 72);
        assert_eq!(std::mem::offset_of!(Passthrough, data), 24);
        assert_eq!(std::mem::offset_of!(Passthrough, words_10_to_15), 40);
    }

    #[test]
    fn what_is_no_controller_says_so() {
        let error = identify(Path::new("/dev/null"), 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(25), "ENOTTY: {error}");
        assert!(virtualization(Path::new("/nowhere"), 0, 1, 0, 0).is_err());
    }
}
