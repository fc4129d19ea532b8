//! Offloads in software: what a receiver gets that did not negotiate what a sender asked for.
//!
//! A guest may send frames with a partial checksum, and segments of up to 64 KiB (virtio 1.3,
//! 5.1.6.2). They pass to receivers that take them as they are; others get them with [`the checksum
//! completed`](complete_checksum) and [cut into segments](Segments), to the byte as Linux does it.
//!
//! [`validate`] comes first and makes of a header that a guest wrote one that may be shown to
//! another guest: every field is either checked against the frame, made anew, or zero. What works
//! on the frame later checks its own bounds again, since tags come and go in between.
//!
//! Nothing here allocates, panics or loops longer than the frame is: the number of segments is
//! bounded by [`MAX_SEGMENTS`].

mod checksum;
mod layout;
mod segments;

#[cfg(test)]
mod tests;

pub use checksum::Sum;
pub use segments::{MAX_HEADERS, Segment, Segments};

use crate::discard::Discard;
use crate::net::{DATA_VALID, GSO_ECN, GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, NetHeader, Offloads};
use layout::{ETHERNET, Layout, TCP_CHECKSUM, TCP_HEADER, Trouble, UDP_CHECKSUM, UDP_HEADER};

/// Most segments of one frame: 64 bytes of payload each in the longest frame, which is less than
/// any TCP connection sends at full length. It bounds the work and the frames one frame can cause.
pub const MAX_SEGMENTS: usize = 1024;

/// Highest `csum_start`, in bytes: no transport header stands further back, and a tag can be pushed
/// without the number overflowing.
const MAX_CSUM_START: u16 = 0x7fff;

/// Check the header that a guest put before a frame against the frame and the features it
/// negotiated; gives the header to go on with.
///
/// `head` is the beginning of the frame, in private memory: 128 bytes always do, fewer if the frame
/// is shorter. With less than the headers of a segmented frame, `hdr_len` becomes a guess. In
/// `negotiated` stand VIRTIO_NET_F_CSUM, HOST_TSO4, HOST_TSO6, HOST_USO and HOST_ECN.
///
/// - `hdr_len` is a hint (virtio 1.3, 5.1.6.2): it is not believed but made anew, for segmented
///   frames; elsewhere it is 0.
/// - DATA_VALID and RSC_INFO are not a driver's to set, and unknown flags are to be ignored (virtio
///   1.3, 5.1.6.2.1 and 5.1.6.2.2): they are cleared, as Linux's TAP does.
/// - A frame of one segment is not segmented, whatever its header says, as in Linux.
///
/// # Errors
/// [`Discard::BadHeader`] for what was not negotiated, unknown types of segmentation, segmentation
/// without NEEDS_CSUM, without a size or with one that makes more than [`MAX_SEGMENTS`], headers
/// that are not what the type says, and checksums that lie outside the frame or in its Ethernet
/// header.
#[inline]
pub fn validate(
    header: NetHeader,
    frame_len: usize,
    head: &[u8],
    negotiated: Offloads,
) -> Result<NetHeader, Discard> {
    if (header.flags & NEEDS_CSUM) | header.gso_type == 0 {
        return Ok(NetHeader::default());
    }
    validate_offload(header, frame_len, head, negotiated)
}

/// The same for a header of the host's kernel: its DATA_VALID is believed and kept.
///
/// # Errors
/// As [`validate`]: what stands in a frame may come from anywhere.
#[inline]
pub fn validate_uplink(
    header: NetHeader,
    frame_len: usize,
    head: &[u8],
) -> Result<NetHeader, Discard> {
    let mut checked = validate(header, frame_len, head, Offloads::ALL)?;
    if checked.flags == 0 {
        checked.flags = header.flags & DATA_VALID;
    }
    Ok(checked)
}

fn validate_offload(
    header: NetHeader,
    frame_len: usize,
    head: &[u8],
    negotiated: Offloads,
) -> Result<NetHeader, Discard> {
    let (start, offset) = (header.csum_start, header.csum_offset);
    let field_end = usize::from(start) + usize::from(offset) + 2;
    // The link header decides where the frame goes; no checksum may be written over it.
    let link = layout::ethertype_at(head).map_or(ETHERNET, |at| at + 2);
    let bad = header.flags & NEEDS_CSUM == 0
        || field_end > frame_len
        || usize::from(start) < link
        || start > MAX_CSUM_START
        || !negotiated.has(header.needs());
    if bad {
        return Err(Discard::BadHeader);
    }
    let partial = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: start,
        csum_offset: offset,
        ..NetHeader::default()
    };
    if header.gso_type == GSO_NONE {
        return Ok(partial);
    }
    let payload_at = match Layout::parse(head) {
        Ok(layout) if layout.transport == usize::from(start) && layout.fits(header.gso_type) => {
            layout.payload
        }
        Err(Trouble::Short) if head.len() < frame_len => usize::from(start) + shortest(header),
        _ => return Err(Discard::BadHeader),
    };
    if cut(header, payload_at, frame_len)? == 1 {
        return Ok(partial);
    }
    Ok(NetHeader {
        gso_type: header.gso_type,
        gso_size: header.gso_size,
        hdr_len: u16::try_from(payload_at).map_err(|_| Discard::BadHeader)?,
        ..partial
    })
}

/// Length of the shortest transport header of a segmented frame, in bytes.
fn shortest(header: NetHeader) -> usize {
    if header.gso_type == GSO_UDP_L4 {
        UDP_HEADER
    } else {
        TCP_HEADER
    }
}

/// In how many segments a segmented frame is to be cut, its payload starting at `payload_at`.
fn cut(header: NetHeader, payload_at: usize, frame_len: usize) -> Result<usize, Discard> {
    let checksum_at = match header.gso_type {
        GSO_UDP_L4 => UDP_CHECKSUM,
        kind if kind & !GSO_ECN == GSO_UDP_L4 => return Err(Discard::BadHeader),
        _ => TCP_CHECKSUM,
    };
    let size = usize::from(header.gso_size);
    let payload = frame_len.checked_sub(payload_at);
    let count =
        payload.and_then(|payload| payload.checked_add(size)?.checked_sub(1)?.checked_div(size));
    match count {
        // No payload at all is one segment too.
        Some(count) if usize::from(header.csum_offset) == checksum_at && count <= MAX_SEGMENTS => {
            Ok(count.max(1))
        }
        _ => Err(Discard::BadHeader),
    }
}

/// Complete a partial checksum (virtio 1.3, 5.1.6.2): of all bytes from `csum_start` on, the
/// pseudo-header's part standing in the field already. A result of 0 is written as 0xffff, its
/// equal, since 0 means no checksum to UDP. The header to go with the frame then is all zero.
///
/// # Errors
/// [`Discard::BadHeader`] if the checksum lies outside the frame.
pub fn complete_checksum(header: NetHeader, frame: &mut [u8]) -> Result<(), Discard> {
    if header.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let checked = frame.get(start..).ok_or(Discard::BadHeader)?;
    let sum = Sum::of(checked).nonzero_checksum();
    let field = frame.get_mut(at..at + 2).ok_or(Discard::BadHeader)?;
    field.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}
