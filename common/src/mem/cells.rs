//! The elements of a ring: a power of two of equal cells in guest memory.
//!
//! An index is masked, so no access can lie outside, and none has to be checked. Size and alignment
//! are checked once, when the cells are made.

// UNSAFETY: dereferencing the mapping. Each block's argument is bounds and alignment (checked in
// `Cells::new`, kept by the mask) and lifetime (the `View` keeps its mapping alive).
#![expect(
    unsafe_code,
    reason = "guest memory is reached through raw pointers, in this folder alone"
)]

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::View;
use super::window::{prefetch, prefetch_write};

/// Cells of `SIZE` bytes, aligned to `ALIGN`. Indices may be anything: they wrap.
#[derive(Debug, Clone)]
pub struct Cells<const SIZE: usize, const ALIGN: usize> {
    /// Of the first cell.
    ptr: *mut u8,
    mask: u16,
    /// Keeps the memory mapped.
    _view: View,
}

// SAFETY: Cells are a View (which is Send) and an address inside it.
unsafe impl<const SIZE: usize, const ALIGN: usize> Send for Cells<SIZE, ALIGN> {}
// SAFETY: as for View: all access is volatile or atomic, and there are no references.
unsafe impl<const SIZE: usize, const ALIGN: usize> Sync for Cells<SIZE, ALIGN> {}

impl<const SIZE: usize, const ALIGN: usize> Cells<SIZE, ALIGN> {
    /// `count` cells at `off` of `view`; none if they do not lie inside, are misaligned, or are no
    /// power of two.
    #[must_use]
    pub fn new(view: &View, off: usize, count: u16) -> Option<Cells<SIZE, ALIGN>> {
        const { assert!(ALIGN.is_power_of_two() && SIZE.is_multiple_of(ALIGN)) };
        let end = off.checked_add(SIZE * usize::from(count))?;
        let fits = count.is_power_of_two() && end <= view.len();
        let address = view.address(off);
        (fits && address.is_multiple_of(ALIGN)).then(|| Cells {
            ptr: view.base().wrapping_add(off),
            mask: count - 1,
            _view: view.clone(),
        })
    }

    /// The address of a cell: inside and aligned, whatever the index.
    #[inline]
    fn at(&self, index: u16) -> *mut u8 {
        self.ptr.wrapping_add(usize::from(index & self.mask) * SIZE)
    }

    /// Our address of a cell, for hints.
    #[inline]
    #[must_use]
    pub fn address(&self, index: u16) -> usize {
        self.at(index).addr()
    }

    /// Read a u16 at the start of a cell.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, index: u16) -> u16 {
        const { assert!(SIZE >= 2 && ALIGN >= 2) };
        // SAFETY: `at` gives a cell, which has that size and alignment; the mapping lives as long
        // as `self`.
        let word = unsafe { AtomicU16::from_ptr(self.at(index).cast()) };
        u16::from_le(word.load(Ordering::Relaxed))
    }

    /// Read two u64s that stand side by side, each atomically: a descriptor.
    #[inline]
    #[must_use]
    pub fn load_pair(&self, index: u16) -> [u64; 2] {
        const { assert!(SIZE >= 16 && ALIGN >= 8) };
        let pair = self.at(index).cast::<[AtomicU64; 2]>();
        // SAFETY: as in `load_u16`.
        let [a, b] = unsafe { &*pair };
        [a, b].map(|word| u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// Write two u32s side by side (volatile, not ordered): a used element.
    #[inline]
    pub fn write_pair(&self, index: u16, pair: [u32; 2]) {
        const { assert!(SIZE >= 8 && ALIGN >= 4) };
        let cell = self.at(index).cast::<[u32; 2]>();
        // SAFETY: as in `load_u16`.
        unsafe { cell.write_volatile(pair.map(u32::to_le)) };
    }

    /// Ask the processor to fetch a cell.
    #[inline]
    pub fn prefetch(&self, index: u16) {
        prefetch(self.at(index));
    }

    /// The same, to be written.
    #[inline]
    pub fn prefetch_write(&self, index: u16) {
        prefetch_write(self.at(index));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::Mapping;

    fn view() -> View {
        let (mapping, _) = Mapping::memfd("cells", 4096).unwrap();
        View::new(&Arc::new(mapping), 64, 1024, 64).unwrap()
    }

    #[test]
    fn indices_wrap_and_cells_stand_where_they_should() {
        let view = view();
        let cells = Cells::<8, 4>::new(&view, 4, 16).unwrap();
        cells.write_pair(3, [7, 8]);
        cells.write_pair(19, [9, 10]);
        assert_eq!(view.load_u16(4 + 3 * 8, Ordering::Relaxed), 9);
        assert_eq!(cells.load_u16(3 + 16), 9);
        assert_eq!(cells.load_u16(2), 0);
        let wide = Cells::<16, 16>::new(&view, 0, 4).unwrap();
        view.store_u64(24, 5, Ordering::Relaxed);
        assert_eq!(wide.load_pair(0xfff1), [wide.load_pair(1)[0], 5]);
    }

    #[test]
    fn cells_outside_or_askew_are_refused() {
        let view = view();
        assert!(Cells::<8, 4>::new(&view, 0, 128).is_some());
        assert!(Cells::<8, 4>::new(&view, 4, 128).is_none());
        assert!(Cells::<8, 4>::new(&view, 2, 16).is_none());
        assert!(Cells::<8, 4>::new(&view, 0, 12).is_none());
        assert!(Cells::<8, 4>::new(&view, usize::MAX, 16).is_none());
    }
}
