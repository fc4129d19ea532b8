//! What requests in flight refer to by a small number: disks and memory maps. An entry goes only
//! when its users let go of it *and* the last request that names it has finished.

use std::sync::Arc;

#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    /// How often it was added and not removed again.
    users: u32,
    /// Requests that name it.
    in_flight: u32,
}

/// A table of shared values, with the number of requests that name each.
#[derive(Debug)]
pub(super) struct Table<T> {
    entries: Vec<Option<Entry<T>>>,
    capacity: usize,
    /// What a stale number stands for.
    nothing: T,
}

impl<T> Table<T> {
    pub(super) fn new(capacity: u32, nothing: T) -> Table<T> {
        Table {
            entries: Vec::new(),
            capacity: capacity as usize,
            nothing,
        }
    }

    /// Count one more user of `value`, which is in the table already: where.
    pub(super) fn share(&mut self, value: &Arc<T>) -> Option<u16> {
        let same = |e: &Option<Entry<T>>| e.as_ref().is_some_and(|e| Arc::ptr_eq(&e.value, value));
        let index = self.entries.iter().position(same)?;
        self.entries.get_mut(index)?.as_mut()?.users += 1;
        u16::try_from(index).ok()
    }

    /// A place that is free.
    pub(super) fn vacancy(&mut self) -> Option<u16> {
        let free = self.entries.iter().position(Option::is_none);
        let index = free.unwrap_or(self.entries.len());
        if index == self.capacity {
            return None;
        }
        if index == self.entries.len() {
            self.entries.push(None);
        }
        u16::try_from(index).ok()
    }

    /// Put `value` at a place that [`Table::vacancy`] gave, with one user.
    pub(super) fn put(&mut self, index: u16, value: Arc<T>) {
        if let Some(place) = self.entries.get_mut(usize::from(index)) {
            *place = Some(Entry {
                value,
                users: 1,
                in_flight: 0,
            });
        }
    }

    #[inline]
    fn entry(&mut self, index: u16) -> Option<&mut Entry<T>> {
        self.entries.get_mut(usize::from(index))?.as_mut()
    }

    #[inline]
    pub(super) fn find(&self, index: u16) -> Option<&T> {
        Some(&self.entries.get(usize::from(index))?.as_ref()?.value)
    }

    /// The value at `index`, or the one that stands for nothing.
    #[inline]
    pub(super) fn get(&self, index: u16) -> &T {
        self.find(index).unwrap_or(&self.nothing)
    }

    /// Requests that name it.
    pub(super) fn in_flight(&self, index: u16) -> u32 {
        let entry = self
            .entries
            .get(usize::from(index))
            .and_then(Option::as_ref);
        entry.map_or(0, |e| e.in_flight)
    }

    /// A request names it from now on.
    #[inline]
    pub(super) fn pin(&mut self, index: u16) {
        if let Some(entry) = self.entry(index) {
            entry.in_flight += 1;
        }
    }

    /// A request names it no longer. True if that was the last and there is no user: the place
    /// is free now.
    #[inline]
    #[must_use]
    pub(super) fn unpin(&mut self, index: u16) -> bool {
        let Some(entry) = self.entry(index) else {
            return false;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        entry.users == 0 && self.settle(index)
    }

    /// One user less. True if there is none left, nor a request: the place is free now.
    #[must_use]
    pub(super) fn remove(&mut self, index: u16) -> bool {
        let Some(entry) = self.entry(index) else {
            return false;
        };
        entry.users = entry.users.saturating_sub(1);
        self.settle(index)
    }

    fn settle(&mut self, index: u16) -> bool {
        let over = |e: &mut Entry<T>| e.users == 0 && e.in_flight == 0;
        self.entries
            .get_mut(usize::from(index))
            .and_then(|e| e.take_if(over))
            .is_some()
    }
}
