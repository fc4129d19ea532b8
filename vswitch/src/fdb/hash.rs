//! The secret permutation that spreads addresses over the table.
//!
//! A key is 60 bits: VLAN id and MAC address. Three rounds of a Feistel network turn it into 60
//! other bits, each round a multiplication: `f(x) = (a·x + b) mod 2^64`, of which the upper 30
//! bits. With `a` and `b` random that family is pairwise independent (Dietzfelbinger 1996: 30 bits
//! to 30 bits need a word of 59 or more), so for two keys chosen without knowing the secret, the
//! chance to share the first bucket of 2^n is at most 2^-n + 2^-30, and the second 2^-n + 2^-29.
//! A guest never sees a hash, and cannot do better than guess.
//!
//! Because it is a permutation, a bucket's number and the rest of the hash are together the key:
//! an entry stores the rest only, which leaves room for the port in the same word (see `bucket`).
//! The cost is three multiplications in a row, but those of a burst overlap: 3 ns an address
//! (`benches/src/fdb.rs`).

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use super::Fdb;
use crate::mac::Mac;
use crate::vlan::Vid;

/// Half of a key, in bits.
const HALF: u32 = 30;
const HALF_MASK: u64 = (1 << HALF) - 1;

/// The secret of a process: 384 bits.
#[derive(Clone)]
pub struct HashKey([(u64, u64); 3]);

/// A (VLAN, address) where a table keeps it: its key, permuted. 60 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(u64);

impl HashKey {
    /// A new secret from the kernel.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn random() -> io::Result<HashKey> {
        let mut bytes = [0_u8; 48];
        let mut have = 0;
        while have < bytes.len() {
            have += getrandom(&mut bytes[have..], GetRandomFlags::empty())?;
        }
        let mut words = [0_u64; 6];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, b| word << 8 | u64::from(*b));
        }
        Ok(HashKey::from_words(words))
    }

    /// A secret that is known, for tests.
    #[must_use]
    pub const fn from_words(words: [u64; 6]) -> HashKey {
        let [a, b, c, d, e, f] = words;
        HashKey([(a, b), (c, d), (e, f)])
    }

    /// Where `mac` in `vid` is kept.
    #[inline]
    #[must_use]
    pub fn hash(&self, vid: Vid, mac: Mac) -> Hash {
        let key = u64::from(vid.get()) << 48 | mac.to_u64();
        let (left, right) = (key >> HALF, key & HALF_MASK);
        let left = left ^ self.round(0, right);
        let right = right ^ self.round(1, left);
        let left = left ^ self.round(2, right);
        Hash(left << HALF | right)
    }

    /// The inverse of [`HashKey::hash`]; `None` if no VLAN has that hash.
    #[must_use]
    pub fn key(&self, hash: Hash) -> Option<(Vid, Mac)> {
        let (left, right) = (hash.0 >> HALF, hash.0 & HALF_MASK);
        let left = left ^ self.round(2, right);
        let right = right ^ self.round(1, left);
        let left = left ^ self.round(0, right);
        let key = left << HALF | right;
        let vid = u16::try_from(key >> 48).ok().and_then(Vid::new)?;
        Some((vid, Mac::from_u64(key)))
    }

    #[inline]
    fn round(&self, index: usize, half: u64) -> u64 {
        let (a, b) = self.0[index];
        a.wrapping_mul(half).wrapping_add(b) >> (64 - HALF)
    }
}

/// Places for hashes made of late.
const KEPT: usize = 128;

/// Hashes that one worker made of late: a hash depends on nothing but the secret, so what is kept
/// is right for ever. Few stations talk at a time, and a look here costs a fifth of a hash.
#[derive(Debug)]
pub struct Hashes([(u64, Hash); KEPT]);

impl Default for Hashes {
    fn default() -> Hashes {
        // No key is zero: VLAN ids begin with one.
        Hashes([(0, Hash(0)); KEPT])
    }
}

impl Hashes {
    /// As [`Fdb::hash`], always with the same table.
    #[inline]
    pub fn of(&mut self, fdb: &Fdb, vid: Vid, mac: Mac) -> Hash {
        let bits = mac.to_u64();
        let key = u64::from(vid.get()) << 48 | bits;
        // Stations of a VLAN differ in the last bytes, and ports' in any.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a remainder of the low bits"
        )]
        let at = (bits ^ bits >> 8 ^ bits >> 16 ^ bits >> 24) as usize % KEPT;
        let kept = &mut self.0[at];
        if kept.0 != key {
            *kept = (key, fdb.hash(vid, mac));
        }
        kept.1
    }
}

/// The secret stays out of logs.
impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey")
    }
}

impl Hash {
    /// The hash whose lower `bits` are `low` and whose other bits are `rest`.
    #[inline]
    pub(super) fn join(rest: u64, low: usize, bits: u32) -> Hash {
        Hash(rest << bits | low as u64)
    }

    /// The lower `bits`, and the others.
    #[inline]
    pub(super) fn split(self, bits: u32) -> (usize, u64) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a table has 2^18 buckets at most"
        )]
        let low = (self.0 & ((1 << bits) - 1)) as usize;
        (low, self.0 >> bits)
    }

    /// With its halves exchanged: whatever is low now was high. Its own inverse.
    #[inline]
    pub(super) fn turned(self) -> Hash {
        Hash(self.0 >> HALF | (self.0 & HALF_MASK) << HALF)
    }
}
