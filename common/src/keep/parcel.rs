//! Many file descriptors as one: a socket in whose queue they wait.
//!
//! A parcel is one end of a socket pair whose other end is closed after a message with the
//! descriptors was sent through it. Whoever holds the parcel holds all of them, and a change from
//! one parcel to the next is all or nothing. It is read by peeking, so a parcel can be opened any
//! number of times, by one process after the other.
//!
//! A message carries [`FDS`] descriptors at most; what is beyond that is in a parcel of its own,
//! which is the last descriptor.

use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

/// Descriptors in one message, and one for the next parcel: the kernel takes 253 (SCM_MAX_FD).
const FDS: usize = 250;
/// Parcels in parcels that are opened: 256 vrings and 509 regions take seven.
const DEPTH: usize = 16;
/// What a parcel says; the last byte tells whether its last descriptor is another parcel.
const WORD: [u8; 16] = *b"towpath parcel 1";

/// Put `fds` into one parcel.
///
/// # Errors
/// If a system call fails: no file descriptors left, or too many under way (`RLIMIT_NOFILE`).
pub fn pack(fds: &[BorrowedFd<'_>]) -> Result<OwnedFd> {
    let mut next: Option<OwnedFd> = None;
    let mut chunks: Vec<&[BorrowedFd<'_>]> = fds.chunks(FDS).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    for chunk in chunks.into_iter().rev() {
        let inner = next.take();
        let mut all = chunk.to_vec();
        all.extend(inner.as_ref().map(AsFd::as_fd));
        next = Some(seal(&all, inner.is_some())?);
    }
    next.ok_or_else(|| Error::from(ErrorKind::InvalidInput))
}

fn seal(fds: &[BorrowedFd<'_>], more: bool) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (parcel, filler) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    let more = [u8::from(more)];
    let word = [IoSlice::new(&WORD), IoSlice::new(&more)];
    sendmsg(&filler, &word, &mut control, SendFlags::NOSIGNAL)?;
    Ok(parcel)
}

/// What is in a parcel, in order; the parcel keeps its own.
///
/// # Errors
/// If it is none, if it is damaged, or if there are no file descriptors left.
pub fn open(parcel: impl AsFd) -> Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    let mut here = parcel.as_fd().try_clone_to_owned()?;
    for _ in 0..DEPTH {
        let more = peek(&here, &mut all)?;
        if !more {
            return Ok(all);
        }
        here = all
            .pop()
            .ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
    }
    Err(Error::new(ErrorKind::InvalidData, "a parcel without end"))
}

fn peek(parcel: &OwnedFd, fds: &mut Vec<OwnedFd>) -> Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let (mut word, mut more) = ([0; WORD.len()], [0]);
    let mut parts = [IoSliceMut::new(&mut word), IoSliceMut::new(&mut more)];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(parcel, &mut parts, &mut control, flags)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = part {
            fds.extend(some);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        let why = "a parcel could not be opened: no file descriptors left";
        return Err(Error::other(why));
    }
    if message.bytes != WORD.len() + 1 || word != WORD {
        return Err(Error::new(ErrorKind::InvalidData, "not a parcel"));
    }
    Ok(more == [1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An eventfd that counts `n`.
    fn numbered(n: u32) -> OwnedFd {
        rustix::event::eventfd(n, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    fn number(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).unwrap();
        rustix::io::write(fd, &count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn a_parcel_holds_any_number_in_order_and_can_be_opened_again() {
        for count in [0, 1, FDS, FDS + 1, 2 * FDS, 3 * FDS - 1] {
            let fds: Vec<OwnedFd> = (1..=count)
                .map(|n| numbered(n.try_into().unwrap()))
                .collect();
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let parcel = pack(&borrowed).unwrap();
            drop(fds);
            for _ in 0..2 {
                let found = open(&parcel).unwrap();
                let numbers: Vec<u64> = found.iter().map(number).collect();
                assert_eq!(numbers, (1..=count as u64).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_is_no_parcel_is_refused() {
        let flags = SocketFlags::CLOEXEC;
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (empty, _other) = pair();
        assert!(open(&empty).is_err(), "nothing in it, and nobody waits");
        let (strange, other) = pair();
        rustix::net::send(&other, b"something else...", SendFlags::empty()).unwrap();
        assert!(open(&strange).is_err());
        assert!(open(numbered(1)).is_err());
    }

    #[test]
    fn a_parcel_that_says_more_and_has_none_is_refused() {
        assert!(open(seal(&[], true).unwrap()).is_err());
        let inside = numbered(1);
        assert!(open(seal(&[inside.as_fd()], true).unwrap()).is_err());
    }
}
