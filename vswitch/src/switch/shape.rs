//! A frame as its receiver takes it: how long, with which tag, whole or in segments.

use crate::batch::Item;
use crate::discard::Discard;
use crate::head::{Head, Retagged};
use crate::net::{NetHeader, Offloads};
use crate::offload::{self, Segments};
use crate::port::guest::Rest;

/// Whether a frame, or what it is to be cut into, is longer than `max` bytes without its tag.
#[inline(never)]
pub(super) fn exceeds(item: &Item, max: u32) -> bool {
    let len = match item.header.gso_size {
        0 => item.len,
        size => u32::from(item.header.hdr_len) + u32::from(size),
    };
    let tag = u32::from(item.parsed.tag().is_some()) * 4;
    len.saturating_sub(tag) > max
}

/// Push, pop or change the tag.
pub(super) fn change(
    item: &Item,
    head: &Head,
    tagged: bool,
    tci: Option<u16>,
) -> (Retagged, NetHeader) {
    let (mut changed, header) = match (tagged, tci) {
        (false, Some(tci)) => (head.tagged(tci), item.header.shifted(4)),
        (true, Some(tci)) => (head.retagged(tci), item.header),
        (true, None) => (head.untagged(), item.header.shifted(-4)),
        (false, None) => (head.same(), item.header),
    };
    changed.set_header(header, 1);
    (changed, header)
}

/// A whole frame in private memory.
pub(super) fn linearise(linear: &mut Vec<u8>, head: &[u8], rest: Rest<'_>) {
    linear.clear();
    linear.extend_from_slice(head);
    match rest {
        Rest::Own(bytes) => linear.extend_from_slice(bytes),
        Rest::Guest {
            mem,
            segments,
            mut skip,
        } => {
            for seg in segments {
                if skip >= seg.len() {
                    skip -= seg.len();
                    continue;
                }
                let part = seg.skip(skip);
                skip = 0;
                let from = linear.len();
                linear.resize(from + part.len() as usize, 0);
                let _ = mem.read(part, &mut linear[from..]);
            }
        }
    }
}

/// Do what the receiver does not: checksum, and at most `most` segments. Each frame goes to `emit`
/// in two parts.
pub(super) fn finish(
    frame: &mut [u8],
    header: NetHeader,
    accepts: Offloads,
    most: usize,
    mut emit: impl FnMut(NetHeader, &[u8], &[u8]) -> Result<(), Discard>,
) -> Result<(), Discard> {
    if accepts.has(header.needs()) {
        return emit(header, &[], frame);
    }
    if header.gso_size == 0 {
        offload::complete_checksum(header, frame)?;
        return emit(NetHeader::default(), &[], frame);
    }
    let segments = Segments::new(header, frame, accepts)?;
    if segments.len() > most {
        return Err(Discard::TooManySegments);
    }
    for segment in segments {
        emit(segment.header, &segment.headers, segment.payload)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{GSO_TCPV4, HEADER, NEEDS_CSUM};

    fn item(len: u32, tagged: bool) -> Item {
        let mut head = Head::default();
        let tag: &[u8] = if tagged { &[0x81, 0, 0, 10] } else { &[] };
        let frame = [&[2; 12], tag, &[8, 0, 0, 0]].concat();
        head.fill(frame.len())[HEADER..].copy_from_slice(&frame);
        Item {
            len,
            parsed: head.parse().unwrap(),
            ..Item::default()
        }
    }

    #[test]
    fn a_tag_comes_on_top_of_the_longest_frame() {
        let exceeds = |len, tagged| exceeds(&item(len, tagged), 1514);
        assert!(!exceeds(1514, false) && exceeds(1515, false));
        assert!(!exceeds(1518, true) && exceeds(1519, true));
    }

    #[test]
    fn a_segmented_frame_is_as_long_as_its_segments() {
        let exceeds = |hdr_len, gso_size, tagged| {
            let header = NetHeader {
                flags: NEEDS_CSUM,
                gso_type: GSO_TCPV4,
                hdr_len,
                gso_size,
                ..NetHeader::default()
            };
            let item = item(60_000, tagged);
            exceeds(&Item { header, ..item }, 1514)
        };
        assert!(!exceeds(54, 1460, false) && exceeds(54, 1461, false));
        assert!(!exceeds(58, 1460, true) && exceeds(58, 1461, true));
    }
}
