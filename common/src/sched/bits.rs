//! A set of entities as a bitmap: small enough that looking at all of it is cheap.

use super::MAX_ENTITIES;

/// Words in a [`Bits`].
pub(super) const WORDS: usize = MAX_ENTITIES.div_ceil(64);

/// A set of indices below [`MAX_ENTITIES`]. Indices beyond panic, as for any array.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits([u64; WORDS]);

impl Bits {
    pub(super) fn has(&self, index: usize) -> bool {
        self.0[index / 64] & mask(index) != 0
    }

    pub(super) fn put(&mut self, index: usize, member: bool) {
        if member {
            self.0[index / 64] |= mask(index);
        } else {
            self.0[index / 64] &= !mask(index);
        }
    }

    pub(super) fn word(&self, word: usize) -> u64 {
        self.0[word]
    }

    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|&word| word != 0)
    }
}

const fn mask(index: usize) -> u64 {
    1 << (index % 64)
}

/// The indices that `bits`, the word number `word` of a set, stands for.
pub(super) fn ones(word: usize, mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        Some(word * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_listed_in_order() {
        let mut set = Bits::default();
        assert!(!set.any());
        for index in [0, 63, 64, 700, MAX_ENTITIES - 1] {
            set.put(index, true);
        }
        set.put(64, false);
        let members: Vec<_> = (0..WORDS)
            .flat_map(|word| ones(word, set.word(word)))
            .collect();
        assert_eq!(members, [0, 63, 700, MAX_ENTITIES - 1]);
        assert!(set.any() && set.has(63) && !set.has(64));
    }
}
