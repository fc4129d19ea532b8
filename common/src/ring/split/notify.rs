//! What the driver sees of a visit: the used index, and who wakes whom (virtio 1.3, 2.7.7 to
//! 2.7.10).

use std::sync::atomic::{Ordering, fence};

use super::super::Soon;
use super::{ELEMENTS, IDX, NO_INTERRUPT, NO_NOTIFY, Split};

impl Split {
    #[inline]
    pub(in crate::ring) fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        self.expose();
        // The index must be visible before the driver's wish is read (2.7.13.4.1).
        fence(Ordering::SeqCst);
        self.owes_call()
    }

    #[inline]
    pub(in crate::ring) fn expose(&mut self) {
        if self.published == self.next_used {
            return;
        }
        self.published = self.next_used;
        self.used.store_u16(IDX, self.next_used, Ordering::Release);
        if let Some(table) = &mut self.inflight {
            table.published(self.next_used);
        }
        if let (Some(log), Some(gpa)) = (&self.log, self.log_addr) {
            // The whole ring: it is a page or two, and a migration is running anyway.
            log.mark(gpa, self.used.len() as u64);
        }
    }

    #[inline]
    pub(in crate::ring) fn owes_call(&mut self) -> bool {
        let (old, new) = (self.asked, self.published);
        if old == new {
            return false;
        }
        self.asked = new;
        if self.event_idx {
            let at = ELEMENTS + 2 * usize::from(self.size);
            let event = self.avail.load_u16(at, Ordering::Relaxed);
            // 2.7.7.2, vring_need_event: has the index the driver waits for been passed?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.avail.load_u16(0, Ordering::Relaxed) & NO_INTERRUPT == 0
        }
    }

    #[inline]
    pub(in crate::ring) fn soon(&self) -> Soon {
        Soon {
            avail: self.heads.address(self.next_avail),
            used: self.elements.address(self.next_used),
        }
    }

    pub(in crate::ring) fn arm(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        if !self.resubmit.is_empty() {
            return true;
        }
        if self.event_idx {
            let at = ELEMENTS + 8 * usize::from(self.size);
            self.used.store_u16(at, self.next_avail, Ordering::Relaxed);
        } else {
            self.used.store_u16(0, 0, Ordering::Relaxed);
        }
        // The wish must be visible before the index is read again, or a kick is lost.
        fence(Ordering::SeqCst);
        self.pending(usize::MAX) != 0
    }

    pub(in crate::ring) fn disarm(&mut self) {
        // With EVENT_IDX the event index simply stays behind: the driver kicks again only after
        // 65536 more buffers. Without, there is a flag.
        if !self.event_idx {
            self.used.store_u16(0, NO_NOTIFY, Ordering::Relaxed);
        }
    }
}
