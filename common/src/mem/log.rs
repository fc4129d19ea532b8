//! The dirty log of a live migration: one bit a page of guest memory, set for every page we write.
//!
//! vhost-user, "Migration": the front-end shares the log by SET_LOG_BASE, and the back-end sets the
//! bit of page `addr / 4096` atomically (bit `page % 8` of byte `page / 8`) after each write.

use std::sync::Arc;

use super::{LOG_PAGE, Mapping, MemError, View};

/// A mapped dirty log.
#[derive(Debug, Clone)]
pub struct DirtyLog {
    bits: View,
}

impl DirtyLog {
    /// A log over the whole of `mapping`.
    ///
    /// # Errors
    /// [`MemError::FileTooSmall`] if it does not cover guest addresses up to `end`.
    pub fn new(mapping: Mapping, end: u64) -> Result<DirtyLog, MemError> {
        let size = mapping.len();
        let need = end.div_ceil(LOG_PAGE * 8);
        let short = MemError::FileTooSmall { end: need, size };
        if size < need {
            return Err(short);
        }
        let mapping = Arc::new(mapping);
        View::new(&mapping, 0, size, 1)
            .map(|bits| DirtyLog { bits })
            .ok_or(short)
    }

    /// Mark `gpa .. gpa + len` as written. Pages past the log's end have no bit and are skipped:
    /// a front-end that hot-plugs memory sends a larger log first.
    #[inline]
    pub fn mark(&self, gpa: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = gpa.saturating_add(len - 1) / LOG_PAGE;
        for page in gpa / LOG_PAGE..=last {
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            if byte >= self.bits.len() {
                return;
            }
            self.bits.or_u8(byte, 1 << (page % 8));
        }
    }

    /// True if the page that holds `gpa` is marked.
    #[must_use]
    pub fn is_marked(&self, gpa: u64) -> bool {
        let page = gpa / LOG_PAGE;
        let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
        byte < self.bits.len()
            && self
                .bits
                .load_u8(byte, std::sync::atomic::Ordering::Relaxed)
                & (1 << (page % 8))
                != 0
    }
}
