//! Frames that are mostly plausible.

use crate::bodies::frames::frames;
use crate::numbers::Numbers;

/// What some ports send each other, one after the other.
fn exchange(seed: u64) -> Vec<u8> {
    let mut n = Numbers(seed.wrapping_mul(2) + 1);
    let mut input = Vec::new();
    for _ in 0..n.below(40) {
        let offload = n.below(4) == 0;
        let port = u8::try_from(n.below(5)).unwrap();
        let len = n.one(&[0u8, 1, 2, 4, 8, 8, 9, 20, 189, 190, 255]);
        input.extend([port | u8::from(offload) << 3, len]);
        if offload {
            let flags = n.one(&[0u8, 1, 1, 2, 0xff]);
            let kind = n.one(&[0u8, 0, 1, 4, 5, 3, 0x81]);
            let words = [
                n.one(&[0u16, 54, 14]),
                n.one(&[0, 100, 1448]),
                n.one(&[34, 14, 2000]),
            ];
            input.extend([flags, kind]);
            input.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            input.extend(n.one(&[6u16, 16, 0, 9999]).to_le_bytes());
        }
        let mut frame = Vec::new();
        let mut address = |n: &mut Numbers| match n.below(8) {
            0 => frame.extend([0xff; 6]),
            1 => frame.extend([1, 0x80, 0xc2, 0, 0, u8::try_from(n.below(20)).unwrap()]),
            2 => frame.extend([1, 0, 0x5e, 0, 0, 9]),
            _ => frame.extend([2, 0, 0, 0, 0, u8::try_from(n.below(6)).unwrap()]),
        };
        address(&mut n);
        address(&mut n);
        for _ in 0..n.below(3) {
            frame.extend(n.one(&[0x8100u16, 0x8100, 0x88a8]).to_be_bytes());
            frame.extend(n.one(&[0u16, 10, 20, 30, 4095, 0x200a]).to_be_bytes());
        }
        frame.extend(n.one(&[0x0800u16, 0x86dd, 0x0806, 0x88b5]).to_be_bytes());
        frame.extend([0x45, 0, 0, 60, 0, 0, 0, 0, 64, n.one(&[6, 17, 1]), 0, 0]);
        frame.resize(usize::from(len) * 8, 0x5a);
        input.extend(frame);
    }
    input
}

#[test]
fn frames_of_fixed_seeds() {
    (0..1500).for_each(|seed| frames(&exchange(seed)));
}

#[test]
fn frames_of_the_corpus() {
    frames(&[]);
    frames(&[0xff; 4000]);
    frames(&[0; 4000]);
}
