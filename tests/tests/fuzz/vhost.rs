//! Rings whose words are mostly plausible; scripts that start as a handshake.

use crate::bodies::vhost::{AVAIL, QUEUE, chain_and_request, session_messages};
use crate::numbers::Numbers;

/// A descriptor, plausible more often than not.
fn descriptor(n: &mut Numbers, table: u64) -> [u8; 16] {
    let addr = match n.below(16) {
        0 => n.next(),
        1 => 0x8000 - n.below(20),
        _ => 0x400 + n.below(0x100) * 16,
    };
    let len = match n.below(16) {
        0 => n.next(),
        1 => 0,
        _ => n.one(&[1, 16, 32, 48, 512, 513, 1024]),
    };
    let flags = n.one(&[0, 1, 1, 1, 2, 2, 3, 4, 5, 8]);
    let next = n.below(table + 1);
    let tail = len & 0xffff_ffff | flags << 32 | next << 48;
    let [a, b] = [addr.to_le_bytes(), tail.to_le_bytes()];
    std::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] })
}

fn image(seed: u64) -> Vec<u8> {
    let mut n = Numbers(seed.wrapping_mul(2) + 1);
    let mut image = Vec::new();
    for _ in 0..QUEUE {
        image.extend(descriptor(&mut n, QUEUE.into()));
    }
    assert_eq!(image.len() as u64, AVAIL);
    let idx = n.one(&[1, 4, 16, 16, 17]);
    image.extend([0u16, idx].iter().flat_map(|w| w.to_le_bytes()));
    for _ in 0..QUEUE {
        image.extend(u16::try_from(n.below(17)).unwrap().to_le_bytes());
    }
    image.resize(0x400, 0);
    // Headers, ranges and tables, all of 16 bytes.
    for _ in 0..0x100 {
        if n.below(3) == 0 {
            image.extend(descriptor(&mut n, 8));
            continue;
        }
        let kind = n.one(&[0u32, 1, 4, 8, 11, 13, 2, 77]);
        let sector = n.one(&[0, 1, 2047, 2048, 1 << 55, u64::MAX]);
        image.extend(kind.to_le_bytes());
        image.extend([0; 4]);
        image.extend(sector.to_le_bytes());
    }
    image
}

/// A script of messages, behind a handshake.
fn script(seed: u64) -> Vec<u8> {
    let mut n = Numbers(seed.wrapping_mul(2) + 1);
    let mut script = Vec::new();
    let mut say = |request: u8, fds: u8, payload: &[u8]| {
        script.extend([request, 1, fds, u8::try_from(payload.len()).unwrap()]);
        script.extend(payload);
    };
    say(1, 0, &[]);
    say(16, 0, &0x1b62bu64.to_le_bytes());
    say(2, 0, &((1u64 << 30) | (1 << 32)).to_le_bytes());
    for _ in 0..n.below(20) {
        let request = u8::try_from(n.below(46)).unwrap();
        let len = n.one(&[0usize, 8, 8, 8, 12, 16, 24, 32, 40, 72]);
        let payload: Vec<u8> = (0..len)
            .map(|_| n.one(&[0, 0, 0, 1, 2, 64, 0xff]))
            .collect();
        let fds = u8::try_from(n.below(4)).unwrap();
        say(request, fds, &payload);
    }
    script
}

#[test]
fn chains_and_requests_of_fixed_seeds() {
    (0..4000).for_each(|seed| chain_and_request(&image(seed)));
}

#[test]
fn chains_and_requests_of_the_corpus() {
    chain_and_request(&[]);
    chain_and_request(&[0xff; 0x1_0000]);
    chain_and_request(&[1; 0x2000]);
    chain_and_request(&[4, 0].repeat(0x1000));
}

#[test]
fn session_messages_of_fixed_seeds() {
    (0..300).for_each(|seed| session_messages(&script(seed)));
}

#[test]
fn session_messages_of_the_corpus() {
    session_messages(&[]);
    session_messages(&[0xff; 4000]);
    for request in 0..=u8::MAX {
        session_messages(&[request, 9, 3, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
