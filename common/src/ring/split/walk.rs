//! Walking chains of several descriptors and indirect tables (virtio 1.3, 2.7.5).

use super::super::Violation;
use super::super::descriptor::{DESC, DESC_LEN, Desc, INDIRECT, NEXT, WRITE, add, unfit};
use super::Split;
use crate::chain::{Builder, Burst, MAX_SEGMENTS};
use crate::mem::Segment;
use crate::ring::MAX_SIZE;

impl Split {
    /// Copy one chain, and mark its head as in flight.
    pub(super) fn walk(
        &mut self,
        head: u16,
        (first, found): (Desc, Segment),
        burst: &mut Burst,
    ) -> Result<(), Violation> {
        let mut chain = burst.open();
        let mut d = first;
        // Descriptors without bytes count too: a long table of them must not make a long visit.
        let longest = usize::from(self.size).min(MAX_SEGMENTS);
        let mut left = longest;
        if !d.has(INDIRECT) && found.len() == d.len && d.len > 0 {
            // Translated already, for the prefetch.
            chain.push(found, d.has(WRITE)).map_err(unfit)?;
        } else if !d.has(INDIRECT) {
            add(&self.mem, &mut self.hint, d, &mut chain)?;
        }
        loop {
            if d.has(INDIRECT) {
                self.walk_table(d, &mut chain)?;
                chain.prefetch(&self.mem);
                break;
            }
            if !d.has(NEXT) {
                break;
            }
            left -= 1;
            if left == 0 {
                let looped = longest == usize::from(self.size);
                return Err(if looped {
                    Violation::Loop
                } else {
                    Violation::TooLong
                });
            }
            if d.next >= self.size {
                return Err(Violation::BadNext(d.next));
            }
            d = self.descriptor(d.next);
            if !d.has(INDIRECT) {
                add(&self.mem, &mut self.hint, d, &mut chain)?;
            }
        }
        if !self.mark(head) {
            return Err(Violation::HeadInFlight(head));
        }
        chain.close(head);
        Ok(())
    }

    /// Walk an indirect table, 2.7.5.3: entries are chained by `next` inside the table.
    fn walk_table(&mut self, d: Desc, chain: &mut Builder<'_>) -> Result<(), Violation> {
        let entries = d.len as usize / DESC;
        if !self.indirect || d.has(NEXT) || entries == 0 || !(d.len as usize).is_multiple_of(DESC) {
            return Err(Violation::BadIndirect(d.len));
        }
        // Drivers may chain more than the queue size here (Linux does with short queues), so the
        // bound is ours. It also bounds the walk: each entry can be visited once.
        if entries > usize::from(MAX_SIZE) {
            return Err(Violation::BadIndirect(d.len));
        }
        // Every driver chains its tables in order. Counting along instead of following `next` lets
        // the processor read ahead: no address depends on what was loaded.
        let most = entries.min(MAX_SEGMENTS + 1);
        for at in 0..most {
            let Some(next) = self.table_step(d, at, entries, chain)? else {
                return Ok(());
            };
            if next != at + 1 {
                return self.walk_scattered(d, next, entries, most - at - 1, chain);
            }
        }
        Err(endless(entries))
    }

    /// The rest of a table that is not chained in order, from entry `at` on; `left` bounds it.
    #[cold]
    fn walk_scattered(
        &mut self,
        table: Desc,
        mut at: usize,
        entries: usize,
        left: usize,
        chain: &mut Builder<'_>,
    ) -> Result<(), Violation> {
        for _ in 0..left {
            let Some(next) = self.table_step(table, at, entries, chain)? else {
                return Ok(());
            };
            at = next;
        }
        Err(endless(entries))
    }

    /// Take entry `at` of `table` into the chain; the index of the next, unless it was the last.
    #[inline]
    fn table_step(
        &mut self,
        table: Desc,
        at: usize,
        entries: usize,
        chain: &mut Builder<'_>,
    ) -> Result<Option<usize>, Violation> {
        let outside = Violation::BadAddress {
            gpa: table.addr,
            len: table.len,
        };
        let gpa = table.addr.checked_add((at * DESC) as u64).ok_or(outside)?;
        // A table may cross regions, an entry may not.
        let seg = self
            .mem
            .lookup(gpa, DESC_LEN, &mut self.hint)
            .ok_or(outside)?;
        let [addr, rest] = self.mem.load_pair(seg).ok_or(outside)?;
        let entry = Desc::from_words(addr, rest);
        if entry.has(INDIRECT) {
            return Err(Violation::BadIndirect(entry.len));
        }
        add(&self.mem, &mut self.hint, entry, chain)?;
        if !entry.has(NEXT) {
            return Ok(None);
        }
        let next = usize::from(entry.next);
        if next >= entries {
            return Err(Violation::BadNext(entry.next));
        }
        Ok(Some(next))
    }
}

/// What is wrong with a table that does not end.
#[cold]
fn endless(entries: usize) -> Violation {
    if entries > MAX_SEGMENTS {
        Violation::TooLong
    } else {
        Violation::Loop
    }
}
