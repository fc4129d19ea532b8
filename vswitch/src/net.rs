//! The virtio-net header (virtio 1.3, 5.1.6) and what a receiver of frames can take.

/// Size of the header in bytes, with VIRTIO_F_VERSION_1 or VIRTIO_NET_F_MRG_RXBUF.
pub const HEADER: usize = 12;

/// The checksum from `csum_start` on is partial: to be completed at `csum_offset`.
pub const NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
pub const DATA_VALID: u8 = 2;

// Other flags are never shown to a guest: RSC_INFO (4) needs VIRTIO_NET_F_RSC_EXT and
// UDP_TUNNEL_CSUM (8) needs VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO_CSUM, neither of which is offered.

/// Not segmented.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmentation, obsolete; never offered.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP segmentation (USO), IPv4 or IPv6.
pub const GSO_UDP_L4: u8 = 5;
// UDP tunnels, 0x20 over IPv4 and 0x40 over IPv6 beside another type, need VIRTIO_NET_F_HOST_ and
// GUEST_UDP_TUNNEL_GSO and a longer header (Linux 6.17). They are not offered, and unknown here.

/// With any TCP type: the segments carry ECN.
pub const GSO_ECN: u8 = 0x80;

/// A virtio-net header, without `num_buffers`, which belongs to the ring and not to the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the GSO types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Length of all headers up to the payload, in bytes: a hint.
    pub hdr_len: u16,
    /// Payload of a segment, in bytes.
    pub gso_size: u16,
    /// Where checksumming starts, in bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum stands, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl NetHeader {
    /// As it stands in guest memory; `num_buffers` is ignored.
    #[inline]
    #[must_use]
    pub fn from_bytes(b: &[u8; HEADER]) -> NetHeader {
        let word = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        NetHeader {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// As it stands in guest memory.
    #[inline]
    #[must_use]
    pub fn to_bytes(self, num_buffers: u16) -> [u8; HEADER] {
        let [h, g, s, o, n] = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            num_buffers,
        ]
        .map(u16::to_le_bytes);
        [
            self.flags,
            self.gso_type,
            h[0],
            h[1],
            g[0],
            g[1],
            s[0],
            s[1],
            o[0],
            o[1],
            n[0],
            n[1],
        ]
    }

    /// The header after `bytes` were put into the frame, or taken out of it if negative, before its
    /// network header: a VLAN tag has four.
    #[inline]
    #[must_use]
    pub fn shifted(self, bytes: i16) -> NetHeader {
        if self.flags & NEEDS_CSUM == 0 {
            return self;
        }
        let hdr_len = match self.gso_type {
            GSO_NONE => 0,
            _ => self.hdr_len.saturating_add_signed(bytes),
        };
        NetHeader {
            hdr_len,
            csum_start: self.csum_start.saturating_add_signed(bytes),
            ..self
        }
    }

    /// What a receiver must take to get the frame as it is. To one without partial checksums no
    /// flag may be shown, not even that a checksum was verified (virtio 1.3, 5.1.6.4.1).
    #[inline]
    #[must_use]
    pub fn needs(&self) -> Offloads {
        if self.flags == 0 && self.gso_type == GSO_NONE {
            return Offloads::NONE;
        }
        let csum = if self.flags & (NEEDS_CSUM | DATA_VALID) != 0 {
            Offloads::CSUM
        } else {
            Offloads::NONE
        };
        let gso = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => Offloads::TSO4,
            GSO_TCPV6 => Offloads::TSO6,
            GSO_UDP_L4 => Offloads::USO,
            _ => Offloads::NONE,
        };
        let ecn = if self.gso_type & GSO_ECN != 0 {
            Offloads::ECN
        } else {
            Offloads::NONE
        };
        csum.with(gso).with(ecn)
    }
}

/// A set of offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u8);

impl Offloads {
    /// None.
    pub const NONE: Offloads = Offloads(0);
    /// Partial checksums.
    pub const CSUM: Offloads = Offloads(1);
    /// TCP over IPv4, unsegmented.
    pub const TSO4: Offloads = Offloads(2);
    /// TCP over IPv6, unsegmented.
    pub const TSO6: Offloads = Offloads(4);
    /// UDP, unsegmented.
    pub const USO: Offloads = Offloads(8);
    /// TCP segmentation with ECN.
    pub const ECN: Offloads = Offloads(16);
    /// All of them.
    pub const ALL: Offloads = Offloads(31);

    /// Both sets together.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }

    /// Whether `other` is wholly in this set.
    #[inline]
    #[must_use]
    pub const fn has(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let header = NetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        let bytes = header.to_bytes(7);
        assert_eq!(NetHeader::from_bytes(&bytes), header);
        assert_eq!(bytes[10..], [7, 0]);
        let needs = Offloads::CSUM.with(Offloads::TSO4).with(Offloads::ECN);
        assert_eq!(header.needs(), needs);
        assert!(Offloads::ALL.has(needs) && !Offloads::CSUM.has(needs));
    }

    #[test]
    fn a_header_follows_its_tags() {
        let plain = NetHeader {
            flags: NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 16,
            ..NetHeader::default()
        };
        let tagged = plain.shifted(4);
        assert_eq!((tagged.csum_start, tagged.hdr_len), (38, 0));
        assert_eq!(tagged.shifted(-4), plain);
        let gso = NetHeader {
            gso_type: GSO_TCPV6,
            hdr_len: 86,
            ..plain
        };
        assert_eq!(gso.shifted(4).hdr_len, 90);
        assert_eq!(NetHeader::default().shifted(4), NetHeader::default());
    }

    #[test]
    fn a_receiver_without_checksums_sees_no_flags() {
        let header = NetHeader {
            flags: DATA_VALID,
            ..NetHeader::default()
        };
        assert_eq!(header.needs(), Offloads::CSUM);
        assert_eq!(NetHeader::default().needs(), Offloads::NONE);
    }
}
