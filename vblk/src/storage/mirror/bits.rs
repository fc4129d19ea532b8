//! A set of regions: one bit each.

/// Regions, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    words: Box<[u64]>,
    len: usize,
    count: usize,
}

impl Bits {
    /// None of `len` regions.
    #[must_use]
    pub fn new(len: usize) -> Bits {
        Bits {
            words: vec![0; len.div_ceil(64)].into(),
            len,
            count: 0,
        }
    }

    /// All of `len` regions.
    #[must_use]
    pub fn all(len: usize) -> Bits {
        let mut bits = Bits::new(len);
        bits.set_range(0, len);
        bits
    }

    /// As many as `len` of those in `bytes`, eight a byte, the lowest first.
    #[must_use]
    pub fn of_bytes(bytes: &[u8], len: usize) -> Bits {
        let mut bits = Bits::new(len);
        for (i, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                bits.set(i * 8 + bit);
            }
        }
        bits
    }

    /// The same where there are `len` regions, each as large as `1 << by` of these.
    #[must_use]
    pub fn scaled(&self, by: u32, len: usize) -> Bits {
        let mut bits = Bits::new(len);
        let mut at = 0;
        while let Some(i) = self.next(at) {
            bits.set(i >> by);
            at = i + 1;
        }
        bits
    }

    /// Regions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Regions in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// True if no region is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True if region `i` is in the set.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize) -> bool {
        self.words
            .get(i / 64)
            .is_some_and(|w| w & (1 << (i % 64)) != 0)
    }

    /// Put region `i` in; true if it was not.
    #[inline]
    pub fn set(&mut self, i: usize) -> bool {
        if i >= self.len {
            return false;
        }
        let Some(word) = self.words.get_mut(i / 64) else {
            return false;
        };
        let before = *word;
        *word |= 1 << (i % 64);
        let new = *word != before;
        self.count += usize::from(new);
        new
    }

    /// Put in the regions from, to (exclusive).
    pub fn set_range(&mut self, from: usize, to: usize) {
        for i in from..to.min(self.len) {
            self.set(i);
        }
    }

    /// Take region `i` out; true if it was in.
    #[inline]
    pub fn clear(&mut self, i: usize) -> bool {
        let Some(word) = self.words.get_mut(i / 64) else {
            return false;
        };
        let before = *word;
        *word &= !(1 << (i % 64));
        let was = *word != before;
        self.count -= usize::from(was);
        was
    }

    /// Take all out.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Put in all that `other` has.
    pub fn add(&mut self, other: &Bits) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        let count = self.words.iter().map(|w| w.count_ones() as usize).sum();
        self.count = count;
    }

    /// The first region at or after `from`.
    #[must_use]
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut at = from / 64;
        let mut word = self.words.get(at)? & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(at * 64 + word.trailing_zeros() as usize);
            }
            at += 1;
            word = *self.words.get(at)?;
        }
    }

    /// The words `from` on, at most `count`.
    #[must_use]
    pub fn words(&self, from: usize, count: usize) -> &[u64] {
        let rest = self.words.get(from..).unwrap_or_default();
        rest.get(..count).unwrap_or(rest)
    }

    /// Replace the words `from` on.
    pub fn replace(&mut self, from: usize, words: &[u64]) {
        let rest = self.words.get_mut(from..).unwrap_or_default();
        for (word, new) in rest.iter_mut().zip(words) {
            self.count = self.count - word.count_ones() as usize + new.count_ones() as usize;
            *word = *new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_of_regions_is_a_set(
            steps in prop::collection::vec((0..300_usize, any::<bool>()), 0..200)
        ) {
            let (mut bits, mut model) = (Bits::new(260), BTreeSet::new());
            for (i, put) in steps {
                if put {
                    prop_assert_eq!(bits.set(i), i < 260 && model.insert(i));
                } else {
                    prop_assert_eq!(bits.clear(i), model.remove(&i));
                }
            }
            let mut found = Vec::new();
            let mut at = 0;
            while let Some(i) = bits.next(at) {
                found.push(i);
                at = i + 1;
            }
            prop_assert_eq!(&found, &model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.count(), model.len());
            let bytes: Vec<u8> = bits.words(0, 5).iter().flat_map(|w| w.to_le_bytes()).collect();
            prop_assert_eq!(&Bits::of_bytes(&bytes, 260), &bits);
            let mut other = Bits::new(260);
            other.replace(0, bits.words(0, 99));
            prop_assert_eq!(&other, &bits);
            let mut sum = Bits::all(260);
            sum.add(&bits);
            prop_assert_eq!(sum.count(), 260);
        }
    }
}
