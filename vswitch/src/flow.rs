//! Which receive queue of a guest a frame goes to: frames of one flow always to the same.

use crate::head::Head;

/// Offset of the IPv4 header behind an Ethernet header without a tag.
const IP: usize = 14;

/// A queue below `queues`, by addresses and, if the frame shows them, ports.
#[must_use]
pub(crate) fn queue(head: &Head, queues: u16) -> u16 {
    let hash = hash(head.frame());
    // The upper bits, scaled: no division.
    let scaled = ((hash >> 32) * u64::from(queues)) >> 32;
    u16::try_from(scaled).unwrap_or(0)
}

fn hash(frame: &[u8]) -> u64 {
    let mut hash = mix(0, frame.get(..12).unwrap_or_default());
    let tag = usize::from(frame.get(12..14) == Some(&[0x81, 0])) * 4;
    let at = IP + tag;
    match (frame.get(at - 2..at), frame.get(at).copied()) {
        // Fragments have ports in the first only: they are told apart by addresses alone.
        (Some([8, 0]), Some(first)) => {
            hash = mix(hash, frame.get(at + 12..at + 20).unwrap_or_default());
            let fragment = frame
                .get(at + 6..at + 8)
                .is_none_or(|f| f[0] & 0x3f != 0 || f[1] != 0);
            if !fragment {
                let ports = at + usize::from(first & 0xf) * 4;
                hash = mix(hash, frame.get(ports..ports + 4).unwrap_or_default());
            }
            hash
        }
        (Some([0x86, 0xdd]), Some(_)) => {
            hash = mix(hash, frame.get(at + 8..at + 40).unwrap_or_default());
            if matches!(frame.get(at + 6), Some(6 | 17)) {
                hash = mix(hash, frame.get(at + 40..at + 44).unwrap_or_default());
            }
            hash
        }
        _ => hash,
    }
}

fn mix(mut hash: u64, bytes: &[u8]) -> u64 {
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::HEADER;

    fn head(port: u8) -> Head {
        let mut frame = [0u8; 60];
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[14 + 20 + 1] = port;
        let mut head = Head::default();
        head.fill(frame.len())[HEADER..].copy_from_slice(&frame);
        head
    }

    #[test]
    fn flows_spread_over_queues_and_stay_there() {
        let mut seen = [0; 4];
        for port in 0..=255 {
            assert_eq!(queue(&head(port), 4), queue(&head(port), 4));
            seen[usize::from(queue(&head(port), 4))] += 1;
        }
        assert!(seen.iter().all(|n| *n > 32), "{seen:?}");
        assert_eq!(queue(&head(1), 1), 0);
    }
}
