//! What a worker's ring may do, told to the kernel: IORING_REGISTER_RESTRICTIONS.
//!
//! seccomp sees of io_uring nothing but `io_uring_enter`. So the ring itself is restricted: it is
//! made disabled, set up, limited to the lists below, and only then enabled; there is no way back.
//! Whoever takes over a worker's ring can do with it what a worker does: read, write, sync and
//! deallocate the files it was given, and no other (FIXED_FILE is required). It cannot open,
//! connect, send, receive, or act on a descriptor of the process.
//!
//! Linux has it since 5.10. An older kernel's rings are unlimited, and the log says so.

use std::io;
use std::sync::Once;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

/// Operations, each with who asks for it.
const OPERATIONS: [u8; 10] = [
    opcode::Read::CODE, // one piece of memory; the NBD client, of sockets and eventfds
    opcode::Write::CODE, // the same
    opcode::Readv::CODE, // several pieces
    opcode::Writev::CODE, // the same
    opcode::ReadFixed::CODE, // registered guest memory
    opcode::WriteFixed::CODE,
    opcode::ReadvFixed::CODE, // several pieces of it (6.15; see NEW)
    opcode::WritevFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// Those of [`OPERATIONS`] that kernels before 6.15 do not know.
const NEW: [u8; 2] = [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE];

/// What is registered while a ring lives (include/uapi/linux/io_uring.h).
const REGISTER: [u8; 4] = [
    3,  // UNREGISTER_FILES: the end of an engine
    6,  // REGISTER_FILES_UPDATE: disks come and go
    16, // REGISTER_BUFFERS_UPDATE: guests' memory goes
    30, // REGISTER_CLONE_BUFFERS: guests' memory comes
];

/// IOSQE_FIXED_FILE, with every operation.
const FIXED_FILE: u8 = 1;
/// IOSQE_ASYNC, with those of storage that may wait.
const ASYNC: u8 = 1 << 4;

/// Limit a ring that was made disabled, and enable it; one that was not stays as it is, with a word
/// in the log. `fixed_vectors`: the kernel knows [`NEW`].
///
/// # Errors
/// If the ring cannot be enabled.
pub(super) fn enable(ring: &IoUring, disabled: bool, fixed_vectors: bool) -> io::Result<()> {
    if !disabled {
        unlimited("it has no disabled rings");
        return Ok(());
    }
    let known = |op: &&u8| fixed_vectors || !NEW.contains(op);
    let known = OPERATIONS.iter().filter(known);
    let mut list: Vec<Restriction> = known.map(|op| Restriction::sqe_op(*op)).collect();
    list.extend(REGISTER.iter().map(|op| Restriction::register_op(*op)));
    list.push(Restriction::sqe_flags_allowed(FIXED_FILE | ASYNC));
    list.push(Restriction::sqe_flags_required(FIXED_FILE));
    let submitter = ring.submitter();
    if let Err(error) = submitter.register_restrictions(&mut list) {
        unlimited(&error.to_string());
    }
    submitter.register_enable_rings()
}

/// Say, once, that rings are not limited.
fn unlimited(why: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!(
            why,
            "this kernel does not restrict io_uring (Linux 5.10 does): a ring may \
            do whatever the process may"
        );
    });
}
