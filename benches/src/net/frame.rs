//! What is sent: Ethernet frames between stations, each with a stamp that tells who sent it to
//! whom, and when in the sequence.
//!
//! A station is one MAC address behind one port. Frames are IPv4 and UDP (TCP for segmentation
//! offload), so that a switch that looks at flows finds one flow a pair of stations.

/// Bytes of a virtio-net header with `num_buffers` (virtio 1.3, 5.1.6).
pub const HEADER: usize = 12;
/// Smallest frame that holds a stamp, in bytes, without header, tag and checksum.
pub const SMALLEST: usize = STAMP + STAMP_LEN;
/// Receiver of frames that are for everybody.
pub const EVERYBODY: u16 = u16::MAX;

/// Offset of the stamp in an untagged frame: behind the longest headers before it.
const STAMP: usize = 44;
const STAMP_LEN: usize = 16;
const MAGIC: u32 = 0x746f_7770;
/// Ethertype of an 802.1Q tag.
const TAGGED: [u8; 2] = [0x81, 0x00];
/// TCP payload of a segment with time stamps over an MTU of 1500.
pub const SEGMENT: u16 = 1448;
/// Ethernet, IPv4 and TCP with time stamps.
const TCP_HEADERS: usize = 14 + 20 + 32;
/// Most whole segments that fit an IPv4 packet.
const SEGMENTS: usize = 44;
/// Bytes of the largest offloaded frame.
pub const LARGEST: usize = TCP_HEADERS + SEGMENTS * SEGMENT as usize;

/// Who sent a frame to whom, and its place in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Port of the sender.
    pub from: u16,
    /// Port of the receiver, or [`EVERYBODY`].
    pub to: u16,
    /// Number in the sequence from this sender to this receiver.
    pub number: u64,
}

impl Stamp {
    /// As bytes in a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.from.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.to.to_le_bytes());
        bytes[8..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Out of the first [`HEADER`] + 4 + [`SMALLEST`] bytes of a received buffer; none if it is
    /// not one of ours.
    #[must_use]
    pub fn find(buffer: &[u8; HEADER + 4 + SMALLEST]) -> Option<Self> {
        let at = HEADER + stamp_at(is_tagged(buffer));
        let word = |at: usize| u16::from_le_bytes([buffer[at], buffer[at + 1]]);
        if buffer[at..at + 4] != MAGIC.to_le_bytes() {
            return None;
        }
        let mut number = [0; 8];
        number.copy_from_slice(&buffer[at + 8..at + 16]);
        Some(Self {
            from: word(at + 4),
            to: word(at + 6),
            number: u64::from_le_bytes(number),
        })
    }
}

/// Whether a received buffer holds a tagged frame.
#[must_use]
pub fn is_tagged(buffer: &[u8; HEADER + 4 + SMALLEST]) -> bool {
    buffer[HEADER + 12..HEADER + 14] == TAGGED
}

/// Offset of the stamp in a frame.
#[must_use]
pub fn stamp_at(tagged: bool) -> usize {
    STAMP + if tagged { 4 } else { 0 }
}

/// MAC address of a station: locally administered, scattered so that no table can profit from
/// addresses that follow each other.
#[must_use]
pub fn mac(port: u16, station: u32) -> [u8; 6] {
    let scattered = station.wrapping_mul(0x9e37_79b1);
    let [a, b, c, d] = scattered.to_be_bytes();
    let [_, port] = port.to_be_bytes();
    [0x02, port, a, b, c, d]
}

/// What a frame is to be.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Bytes on the wire without tag and checksum; at least [`SMALLEST`].
    pub size: usize,
    /// The sender's address.
    pub source: [u8; 6],
    /// The receiver's address.
    pub destination: [u8; 6],
    /// VLAN of an 802.1Q tag.
    pub tag: Option<u16>,
    /// TCP for the receiver to segment, or UDP.
    pub segmented: bool,
    /// The stamp.
    pub stamp: Stamp,
}

/// Header and frame as the driver puts them into a buffer.
#[must_use]
pub fn build(spec: &Spec) -> Vec<u8> {
    let mut bytes = net_header(spec);
    bytes.extend_from_slice(&spec.destination);
    bytes.extend_from_slice(&spec.source);
    if let Some(vlan) = spec.tag {
        bytes.extend_from_slice(&TAGGED);
        bytes.extend_from_slice(&vlan.to_be_bytes());
    }
    let network = bytes.len() + 2;
    bytes.extend_from_slice(&[0x08, 0x00]);
    let packet = spec.size - 14;
    bytes.extend_from_slice(&ip_header(packet, spec));
    bytes.extend_from_slice(&if spec.segmented {
        tcp_header()
    } else {
        udp_header(packet - 20)
    });
    bytes.resize(network + packet, 0x5a);
    if !spec.segmented {
        let at = HEADER + stamp_at(spec.tag.is_some());
        bytes[at..at + STAMP_LEN].copy_from_slice(&spec.stamp.bytes());
    }
    bytes
}

/// VIRTIO_NET_HDR_F_NEEDS_CSUM, GSO_TCPV4 and offsets for a segmented frame; zeros otherwise.
fn net_header(spec: &Spec) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    if spec.segmented {
        let tag = if spec.tag.is_some() { 4u16 } else { 0 };
        header[0] = 1;
        header[1] = 1;
        header[2..4].copy_from_slice(&(66 + tag).to_le_bytes());
        header[4..6].copy_from_slice(&SEGMENT.to_le_bytes());
        header[6..8].copy_from_slice(&(34 + tag).to_le_bytes());
        header[8..10].copy_from_slice(&16u16.to_le_bytes());
    }
    header
}

fn ip_header(packet: usize, spec: &Spec) -> [u8; 20] {
    let [high, low] = u16::try_from(packet).unwrap_or(u16::MAX).to_be_bytes();
    let protocol = if spec.segmented { 6 } else { 17 };
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x45, 0, high, low]);
    header[6..10].copy_from_slice(&[0x40, 0, 64, protocol]);
    header[12] = 10;
    header[13..16].copy_from_slice(&spec.source[3..]);
    header[16] = 10;
    header[17..20].copy_from_slice(&spec.destination[3..]);
    let sum = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let [_, _, a, b] = (!folded).to_be_bytes();
    header[10..12].copy_from_slice(&[a, b]);
    header
}

/// UDP without a checksum (RFC 768: zero).
fn udp_header(len: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    vec![0x04, 0, 0x04, 1, high, low, 0, 0]
}

/// An ACK with time stamps.
fn tcp_header() -> Vec<u8> {
    let mut header = vec![0; 32];
    header[..4].copy_from_slice(&[0x04, 0, 0x04, 1]);
    header[12..16].copy_from_slice(&[0x80, 0x10, 0xff, 0xff]);
    header[20..24].copy_from_slice(&[1, 1, 8, 10]);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(tag: Option<u16>) -> Spec {
        Spec {
            size: 64,
            source: mac(1, 7),
            destination: mac(2, 7),
            tag,
            segmented: false,
            stamp: Stamp {
                from: 1,
                to: 2,
                number: 99,
            },
        }
    }

    #[test]
    fn a_stamp_is_found_again_with_and_without_a_tag() {
        for tag in [None, Some(10)] {
            let bytes = build(&spec(tag));
            let head = bytes.first_chunk();
            let mut padded = [0; HEADER + 4 + SMALLEST];
            padded[..bytes.len().min(HEADER + 4 + SMALLEST)]
                .copy_from_slice(head.map_or(&bytes, |h: &[u8; HEADER + 4 + SMALLEST]| h));
            assert_eq!(Stamp::find(&padded), Some(spec(tag).stamp));
            assert_eq!(is_tagged(&padded), tag.is_some());
            assert_eq!(bytes.len(), HEADER + 64 + if tag.is_some() { 4 } else { 0 });
        }
        assert_eq!(Stamp::find(&[0; HEADER + 4 + SMALLEST]), None);
    }

    #[test]
    fn addresses_are_distinct_and_unicast() {
        let mut seen = std::collections::BTreeSet::new();
        for port in 0..8 {
            for station in 0..1000 {
                let mac = mac(port, station);
                assert_eq!(mac[0] & 1, 0);
                assert!(seen.insert(mac));
            }
        }
    }

    #[test]
    fn an_ip_header_sums_to_all_ones() {
        let header = ip_header(50, &spec(None));
        let sum: u32 = header
            .chunks_exact(2)
            .map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn a_segmented_frame_is_a_whole_number_of_segments() {
        let big = Spec {
            size: LARGEST,
            segmented: true,
            ..spec(None)
        };
        assert_eq!(build(&big).len(), HEADER + LARGEST);
        assert!(LARGEST - 14 <= usize::from(u16::MAX));
    }
}
