//! Frames to an uplink: whole in private memory, as its queue wants them.

use super::To;
use crate::batch::bits;
use crate::discard::Discard;
use crate::net::HEADER;
use crate::net::Offloads;
use crate::port::Uplink;
use crate::switch::posted::Posted;
use crate::switch::shape::{finish, linearise};

impl To<'_> {
    /// Its counters are those of the queue, written by whoever holds it.
    pub(super) fn uplink(&mut self, queue: usize, tx: &mut dyn Uplink, mask: u64) {
        if tx.failed().is_some() {
            return self.drop(Discard::PortDown, mask);
        }
        let accepts = tx.accepts();
        let mut posted = Posted::default();
        for at in bits(mask) {
            if let Err(why) = self.uplink_one(tx, at, accepts, &mut posted) {
                self.drop(why, 1 << at);
            }
        }
        let lost = posted.lose(tx.send());
        if lost != 0 {
            self.drop(Discard::ReceiverFull, lost);
        }
        if let Some(shared) = self.port.shared.queues.get(queue * 2) {
            let mut counters = shared.counters.snapshot();
            let (frames, bytes) = posted.sent();
            counters.frames += frames;
            counters.bytes += bytes;
            counters.bursts += 1;
            shared.counters.publish(&counters);
        }
    }

    /// Give one frame to an uplink.
    fn uplink_one(
        &mut self,
        tx: &mut dyn Uplink,
        at: usize,
        accepts: Offloads,
        posted: &mut Posted,
    ) -> Result<(), Discard> {
        let rest = self.view.source.rest(at);
        let tci = self.retag(&self.view.batch.items[at])?;
        let (head, header) = self.form(at, tci);
        linearise(self.linear, &head.emit()[HEADER..], rest);
        let post = posted.begin(at);
        finish(
            self.linear,
            header,
            accepts,
            usize::MAX,
            |header, headers, payload| {
                let len = headers.len() + payload.len();
                let room = tx.reserve(len).ok_or(Discard::ReceiverFull)?;
                let (start, end) = room.split_at_mut(headers.len());
                start.copy_from_slice(headers);
                end.copy_from_slice(payload);
                tx.commit(header);
                post.segment(len);
                Ok(())
            },
        )?;
        post.whole();
        Ok(())
    }
}
