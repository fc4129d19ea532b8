//! The private copy of a frame's first bytes: what all decisions are made on, and what is emitted.
//!
//! ```text
//!   room for a tag   virtio-net header   frame: destination, source, [tag,] EtherType, …
//!  |----- 16 ------|------- 12 --------|------------------- up to 128 --------------------|
//! ```
//!
//! A guest that rewrites its frame after the check gains nothing: receivers get these bytes, not
//! the guest's second version of them (and after them the rest, on which nothing was decided).

use crate::net::{DATA_VALID, GSO_NONE, HEADER, NEEDS_CSUM, NetHeader};
use crate::vlan::{TPID, Tag, is_tpid};

/// Bytes of a frame that are copied before anything is decided: all headers of a segmented frame
/// stand there, tags and TCP options included.
pub const COPIED: usize = 128;

/// Room in front, so that a tag can be pushed by moving what stands before it; as large as an
/// alignment, so that the words of the header and of the addresses are aligned.
const ROOM: usize = 16;
/// Length of a tag, in bytes.
pub const TAG: usize = 4;
/// Both addresses, which stand before the tag.
const ADDRESSES: usize = 12;
/// Offset of the frame.
const FRAME: usize = ROOM + HEADER;
/// Length of an Ethernet header without a tag, in bytes.
pub const ETHERNET: usize = 14;

/// The first bytes of a frame and its virtio-net header.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub struct Head {
    bytes: [u8; FRAME + COPIED],
    /// Bytes of the frame that are here.
    len: u32,
}

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parsed {
    /// Destination address, as [`crate::mac::Mac::to_u64`].
    pub dst: u64,
    /// Source address.
    pub src: u64,
    /// TPID and TCI of the outer tag, or zero.
    pub tag: u32,
    /// EtherType after the outer tag, if there is one.
    pub ethertype: u16,
}

impl Parsed {
    /// The outer tag.
    #[inline]
    #[must_use]
    pub fn tag(&self) -> Option<Tag> {
        let [a, b, c, d] = self.tag.to_be_bytes();
        (self.tag != 0).then_some(Tag {
            tpid: u16::from_be_bytes([a, b]),
            tci: u16::from_be_bytes([c, d]),
        })
    }
}

/// The words in which a frame's addresses, tag and type stand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Top([u64; 3]);

/// A frame's addresses, tag and type, to find others that have the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flow {
    top: Top,
    /// What counts of the last word; nothing can be the same if it is zero.
    mask: u64,
    /// Bytes that a frame needs to have a tag.
    need: usize,
}

impl Flow {
    /// That of a frame.
    #[inline]
    #[must_use]
    pub fn of(head: &Head, parsed: &Parsed) -> Flow {
        let (mask, need) = match parsed.tag {
            // A TPID that stands as the type is that of a tag cut short; another frame's may not
            // be.
            0 if is_tpid(parsed.ethertype) => (0, 0),
            0 => (0xffff << 48, ETHERNET),
            _ => (0xffff_ffff_ffff << 16, ETHERNET + TAG),
        };
        Flow {
            top: head.top(),
            mask,
            need,
        }
    }

    /// Whether a frame has the same addresses, tag and type.
    #[inline]
    #[must_use]
    pub fn has(&self, head: &Head) -> bool {
        let (Top([a, b, c]), Top([x, y, z])) = (self.top, head.top());
        let differs = (a ^ x) | (b ^ y) | ((c ^ z) & self.mask);
        differs == 0 && self.mask != 0 && head.len() >= self.need
    }
}

impl Default for Head {
    fn default() -> Head {
        Head {
            bytes: [0; FRAME + COPIED],
            len: 0,
        }
    }
}

impl Head {
    /// Where header and frame are to be copied: their first `HEADER + len` bytes, of a frame of at
    /// least `len` bytes. `len` is capped at [`COPIED`].
    #[inline]
    pub fn fill(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(COPIED);
        #[expect(clippy::cast_possible_truncation, reason = "128")]
        {
            self.len = len as u32;
        }
        &mut self.bytes[ROOM..FRAME + len]
    }

    /// Bytes of the frame that are here.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        (self.len as usize).min(COPIED)
    }

    /// True before the first [`Head::fill`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The frame's first bytes.
    #[inline]
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[FRAME..FRAME + self.len()]
    }

    /// The virtio-net header as it came.
    #[inline]
    #[must_use]
    pub fn header(&self) -> NetHeader {
        let mut header = [0; HEADER];
        header.copy_from_slice(&self.bytes[ROOM..FRAME]);
        NetHeader::from_bytes(&header)
    }

    /// Whether the header as it came asks for nothing: no checksum, no segmentation.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        // Flags and type stand first.
        let [flags, gso_type, ..] = self.word(0).to_be_bytes();
        (flags & (NEEDS_CSUM | DATA_VALID)) | gso_type == GSO_NONE
    }

    /// Replace the virtio-net header by one that asks for nothing, of a frame in one buffer.
    #[inline]
    pub fn set_plain(&mut self) {
        const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        self.bytes[ROOM..FRAME].copy_from_slice(&PLAIN);
    }

    /// Replace the virtio-net header by what goes on.
    #[inline]
    pub fn set_header(&mut self, header: NetHeader, num_buffers: u16) {
        self.bytes[ROOM..FRAME].copy_from_slice(&header.to_bytes(num_buffers));
    }

    /// The aligned word at `at` bytes from the header: it stands in one store of the copy.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[ROOM + at..ROOM + at + 8]);
        u64::from_be_bytes(word)
    }

    /// Read addresses, tag and type; none if the frame is too short for them.
    #[inline]
    #[must_use]
    pub fn parse(&self) -> Option<Parsed> {
        if self.len() < ETHERNET {
            return None;
        }
        let Top([a, b, c]) = self.top();
        #[expect(clippy::cast_possible_truncation, reason = "the upper 16 bits")]
        let (outer, inner) = ((c >> 48) as u16, (c >> 16) as u16);
        let mut parsed = Parsed {
            dst: a << 16 | b >> 48,
            src: b & 0xffff_ffff_ffff,
            tag: 0,
            ethertype: outer,
        };
        if is_tpid(outer) && self.len() >= ETHERNET + TAG {
            parsed.tag = (c >> 32) as u32;
            parsed.ethertype = inner;
        }
        Some(parsed)
    }

    /// The words in which addresses, tag and type stand; of a frame that is shorter than these,
    /// whatever stood there before.
    #[inline]
    #[must_use]
    pub fn top(&self) -> Top {
        // Header 12, destination 6, source 6, type or TPID 2, TCI 2, type behind a tag 2.
        Top([self.word(8) & 0xffff_ffff, self.word(16), self.word(24)])
    }

    /// Header and first bytes as they came.
    #[inline]
    #[must_use]
    pub fn emit(&self) -> &[u8] {
        &self.bytes[ROOM..FRAME + self.len()]
    }

    /// Header and first bytes in three pieces, with `tag` behind the addresses in place of the one
    /// that was there, if `had` says so; an empty one leaves none. The header is as it was.
    #[inline]
    #[must_use]
    pub fn pieces<'a>(&'a self, had: bool, tag: &'a [u8]) -> [&'a [u8]; 3] {
        let behind = FRAME + ADDRESSES + if had { TAG } else { 0 };
        let end = FRAME + self.len();
        [
            &self.bytes[ROOM..FRAME + ADDRESSES],
            tag,
            self.bytes.get(behind..end).unwrap_or_default(),
        ]
    }

    /// A copy with a tag pushed.
    #[must_use]
    pub fn tagged(&self, tci: u16) -> Retagged {
        let mut bytes = self.bytes;
        bytes.copy_within(ROOM..FRAME + ADDRESSES, ROOM - TAG);
        let at = FRAME - TAG + ADDRESSES;
        bytes[at..at + 2].copy_from_slice(&TPID.to_be_bytes());
        bytes[at + 2..at + 4].copy_from_slice(&tci.to_be_bytes());
        Retagged {
            bytes,
            start: ROOM - TAG,
            end: FRAME + self.len(),
        }
    }

    /// A copy without its tag; the caller saw one.
    #[must_use]
    pub fn untagged(&self) -> Retagged {
        let mut bytes = self.bytes;
        bytes.copy_within(ROOM..FRAME + ADDRESSES, ROOM + TAG);
        Retagged {
            bytes,
            start: ROOM + TAG,
            end: FRAME + self.len(),
        }
    }

    /// A copy as it is.
    #[must_use]
    pub fn same(&self) -> Retagged {
        Retagged {
            bytes: self.bytes,
            start: ROOM,
            end: FRAME + self.len(),
        }
    }

    /// A copy with another TCI in its tag; the caller saw one.
    #[must_use]
    pub fn retagged(&self, tci: u16) -> Retagged {
        let mut bytes = self.bytes;
        bytes[FRAME + ETHERNET..FRAME + ETHERNET + 2].copy_from_slice(&tci.to_be_bytes());
        Retagged {
            bytes,
            start: ROOM,
            end: FRAME + self.len(),
        }
    }
}

/// Header and first bytes of a frame whose tag changed.
#[derive(Debug, Clone, Copy)]
pub struct Retagged {
    bytes: [u8; FRAME + COPIED],
    start: usize,
    end: usize,
}

impl Retagged {
    /// The bytes.
    #[inline]
    #[must_use]
    pub fn emit(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Replace the virtio-net header.
    #[inline]
    pub fn set_header(&mut self, header: NetHeader, num_buffers: u16) {
        self.bytes[self.start..self.start + HEADER].copy_from_slice(&header.to_bytes(num_buffers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(frame: &[u8]) -> Head {
        let mut head = Head::default();
        let into = head.fill(frame.len());
        into[HEADER..].copy_from_slice(&frame[..frame.len().min(COPIED)]);
        head
    }

    fn frame(tag: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(tag);
        frame.extend([8, 0, 0x45, 1, 2, 3]);
        frame
    }

    #[test]
    fn a_frame_is_read_with_and_without_a_tag() {
        let plain = head(&frame(&[])).parse().unwrap();
        assert_eq!((plain.dst, plain.src), (0x0200_0000_0001, 0x0200_0000_0002));
        assert_eq!((plain.tag(), plain.ethertype), (None, 0x800));
        let tagged = head(&frame(&[0x81, 0, 0xa0, 7])).parse().unwrap();
        let tag = Tag {
            tpid: TPID,
            tci: 0xa007,
        };
        assert_eq!((tagged.tag(), tagged.ethertype), (Some(tag), 0x800));
        // A tag cut short is no tag, and its TPID stands as the type.
        let short = head(&frame(&[0x81, 0])[..15]).parse().unwrap();
        assert_eq!((short.tag(), short.ethertype), (None, TPID));
        assert_eq!(head(&frame(&[])[..13]).parse(), None);
    }

    #[test]
    fn a_flow_has_the_frames_that_parse_the_same() {
        let tag = |tpid: u16, tci: u16| [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
        let mut other = frame(&[]);
        other[11] = 9;
        let mut arp = frame(&[]);
        arp[13] = 6;
        let frames = [
            frame(&[]),
            other,
            arp,
            frame(&tag(TPID, 7)),
            frame(&tag(TPID, 8)),
            frame(&tag(0x88a8, 7)),
            frame(&tag(TPID, 7))[..15].to_vec(),
            frame(&tag(TPID, 7))[..17].to_vec(),
            frame(&tag(TPID, 7))[..18].to_vec(),
        ];
        for a in frames.iter().map(|f| head(f)) {
            let flow = Flow::of(&a, &a.parse().unwrap());
            for b in frames.iter().map(|f| head(f)) {
                let same = a.parse() == b.parse();
                let cut = a
                    .parse()
                    .is_some_and(|p| p.tag == 0 && is_tpid(p.ethertype));
                assert_eq!(flow.has(&b), same && !cut, "{a:?} {b:?}");
            }
        }
        assert!(!Flow::default().has(&head(&[0; 14])));
    }

    #[test]
    fn tags_are_pushed_popped_and_changed() {
        let plain = frame(&[]);
        let tagged = frame(&[0x81, 0, 0x20, 10]);
        assert_eq!(&head(&plain).tagged(0x200a).emit()[HEADER..], &tagged[..]);
        assert_eq!(&head(&tagged).untagged().emit()[HEADER..], &plain[..]);
        let other = frame(&[0x81, 0, 0xe0, 11]);
        assert_eq!(&head(&tagged).retagged(0xe00b).emit()[HEADER..], &other[..]);
    }

    #[test]
    fn pieces_are_the_same_bytes_as_a_changed_copy() {
        let tag = |tci: u16| [TPID.to_be_bytes(), tci.to_be_bytes()].concat();
        let plain = head(&frame(&[]));
        let tagged = head(&frame(&tag(10)));
        assert_eq!(
            plain.pieces(false, &tag(9)).concat(),
            plain.tagged(9).emit()
        );
        assert_eq!(tagged.pieces(true, &[]).concat(), tagged.untagged().emit());
        let changed = tagged.pieces(true, &tag(11)).concat();
        assert_eq!(changed, tagged.retagged(11).emit());
        // A frame that ends with its tag's room has nothing behind it.
        let short = head(&frame(&tag(10))[..16]);
        assert_eq!(short.pieces(true, &[]).concat(), short.untagged().emit());
    }

    #[test]
    fn a_header_is_replaced_wherever_it_stands() {
        let header = NetHeader {
            csum_start: 34,
            ..NetHeader::default()
        };
        let mut head = head(&frame(&[]));
        head.set_header(header, 1);
        assert_eq!(head.emit()[..HEADER], header.to_bytes(1));
        let mut tagged = head.tagged(5);
        assert_eq!(tagged.emit()[..HEADER], header.to_bytes(1));
        tagged.set_header(NetHeader::default(), 2);
        assert_eq!(tagged.emit()[10], 2);
    }
}
