//! Puts completions back into the order in which chains were popped (VIRTIO_F_IN_ORDER; virtio 1.3,
//! 2.7.9).
//!
//! The shortcut of one used element for a whole batch is not taken: it would be legal only for
//! chains that were used whole, and drivers accept an element each.

/// What was popped and in which order, and what of it is done.
#[derive(Debug)]
pub(super) struct Reorder {
    /// Heads by pop index under the mask.
    pub(super) popped: Box<[u16]>,
    /// By head: written length and whether it is done.
    pub(super) done: Box<[Option<u32>]>,
    /// Pop index of the next head to pop, and of the next to use.
    pub(super) tail: u16,
    pub(super) next: u16,
}

impl Reorder {
    /// The next head in pop order, if it is done.
    pub(super) fn pull(&mut self, mask: u16) -> Option<(u16, u32)> {
        if self.next == self.tail {
            return None;
        }
        let head = self.popped[usize::from(self.next & mask)];
        let written = self.done[usize::from(head)].take()?;
        self.next = self.next.wrapping_add(1);
        Some((head, written))
    }
}
