//! The Internet checksum (RFC 1071): a ones-complement sum of 16-bit words.
//!
//! The sum does not depend on byte order or on how wide the words are that it is gathered in (RFC
//! 1071, section 2), so it is gathered in the machine's own order, 32 bits at a time, in 64-bit
//! lanes that need no carries, and turned round once, at the end.

/// A sum on its way: parts may be added in any order, if each starts at an even offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

/// Bytes a turn: eight lanes of four bytes each.
const STRIDE: usize = 32;

/// Bytes that the 64-bit lanes take before they are folded: far from overflow, and more than the
/// longest frame.
const BLOCK: usize = 1 << 20;

impl Sum {
    /// The sum of `bytes`; a last odd byte counts as if a zero followed.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Sum {
        Sum::default().with(bytes)
    }

    /// This sum and that of `bytes`.
    #[inline]
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Sum {
        let mut total = self.0;
        for block in bytes.chunks(BLOCK) {
            total = fold32(total) + fold32(block_sum(block));
        }
        Sum(total)
    }

    /// This sum and that of one number, as it would stand in a frame.
    #[inline]
    #[must_use]
    pub fn with_u16(self, value: u16) -> Sum {
        Sum(fold32(self.0) + u64::from(u16::from_ne_bytes(value.to_be_bytes())))
    }

    /// The sum as 16 bits, as a number: what a partial checksum field holds.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        // Each turn halves the bits that matter: 64, 33, 18, 17, 16.
        for _ in 0..4 {
            sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + ((sum >> 32) & 0xffff) + (sum >> 48);
        }
        let [a, b, ..] = sum.to_le_bytes();
        // `sum` is a number of 16 bits in the machine's order.
        let native = u16::from_le_bytes([a, b]);
        u16::from_be_bytes(native.to_ne_bytes())
    }

    /// The checksum: the complement of the sum.
    #[inline]
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum, with 0 as 0xffff, its equal in ones-complement: in UDP a zero means that there
    /// is none (RFC 768), and for TCP both are right.
    #[inline]
    #[must_use]
    pub fn nonzero_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Equal to `sum` in ones-complement, in 33 bits.
#[inline]
fn fold32(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Sum of up to [`BLOCK`] bytes.
#[inline]
fn block_sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; STRIDE / 4];
    let (strides, tail) = bytes.as_chunks::<STRIDE>();
    for stride in strides {
        let (words, _) = stride.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, tail) = tail.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    total + u64::from(u32::from_ne_bytes(last))
}
