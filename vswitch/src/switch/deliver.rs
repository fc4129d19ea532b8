//! Pass 3: each port that has frames in the burst, once.

use std::sync::Arc;

use arrayvec::ArrayVec;
use towpath_common::chain::Burst;

use crate::batch::{Batch, Item, LONGEST, Source, bits};
use crate::discard::Discard;
use crate::egress::{Egress, GuestEgress};
use crate::fdb::PortNo;
use crate::flow;
use crate::head::{Head, Retagged, TAG};
use crate::net::{HEADER, NetHeader, Offloads};
use crate::offload::{self, MAX_HEADERS, Segments};
use crate::port::Uplink;
use crate::port::guest::{Delivery, GuestRx, Rest};
use crate::stats::{Event, Events};
use crate::table::{Port, Tables};
use crate::vlan::{TPID, Vid};

/// What goes where, and room to send it.
#[derive(Debug)]
pub(super) struct Outbox {
    /// By port number: a bit for each frame of the burst that goes there.
    masks: Vec<u64>,
    /// Ports with a bit set.
    touched: Vec<u16>,
    /// Room for receive buffers.
    burst: Burst,
    /// Room for one whole frame.
    linear: Vec<u8>,
    worker: usize,
    events: Events,
}

impl Outbox {
    pub(super) fn new(worker: usize, events: Events) -> Outbox {
        Outbox {
            masks: Vec::new(),
            touched: Vec::new(),
            burst: Burst::new(),
            // Reserved, not touched: it costs memory from its first use on.
            linear: Vec::with_capacity(LONGEST as usize + TAG),
            worker,
            events,
        }
    }

    /// For port numbers below `ports`.
    pub(super) fn resize(&mut self, ports: usize) {
        self.masks.resize(ports, 0);
        self.touched.reserve(ports);
    }

    /// Frame `at` goes to `port`.
    #[inline]
    pub(super) fn send(&mut self, port: PortNo, at: usize) {
        let Some(mask) = self.masks.get_mut(usize::from(port.0)) else {
            return;
        };
        if *mask == 0 {
            self.touched.push(port.0);
        }
        *mask |= 1 << at;
    }

    /// Frame `at` goes to all members of its VLAN but the port it came from; false if there are
    /// none.
    pub(super) fn flood(&mut self, tables: &Tables, from: &Port, vid: Vid, at: usize) -> bool {
        let mut any = false;
        for &no in tables.members(vid) {
            let Some(port) = tables.port(no).filter(|p| p.no != from.no) else {
                continue;
            };
            let apart = (from.isolated && !port.uplink) || (port.isolated && !from.uplink);
            if !apart {
                self.send(no, at);
                any = true;
            }
        }
        any
    }

    /// Send all of it.
    #[inline]
    pub(super) fn deliver(&mut self, tables: &Tables, batch: &Batch, source: Source<'_>) {
        while let Some(no) = self.touched.pop() {
            let mask = std::mem::take(&mut self.masks[usize::from(no)]);
            let Some(port) = tables.port(PortNo(no)) else {
                continue;
            };
            let mut to = To {
                port,
                batch,
                source,
                burst: &mut self.burst,
                linear: &mut self.linear,
                worker: self.worker,
                events: &self.events,
            };
            match &*port.egress {
                Egress::Guest(queues) => to.guest(queues, mask),
                Egress::Uplink(queues) => {
                    if let Some(lease) = queues.get(self.worker % queues.len().max(1)) {
                        to.uplink(&mut **lease.hold(), mask);
                    }
                }
            }
        }
    }
}

/// A delivery to one port.
struct To<'a> {
    port: &'a Port,
    batch: &'a Batch,
    source: Source<'a>,
    burst: &'a mut Burst,
    linear: &'a mut Vec<u8>,
    worker: usize,
    events: &'a Events,
}

/// A frame's first bytes, tagged as the port wants them.
enum Form<'a> {
    AsIs(&'a Head),
    Changed(Retagged, NetHeader),
}

impl Form<'_> {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Form::AsIs(head) => head.emit(),
            Form::Changed(head, _) => head.emit(),
        }
    }
}

impl To<'_> {
    #[cold]
    fn drop(&self, why: Discard, frames: u32) {
        if let Some(discards) = self.port.shared.discards.get(self.worker) {
            discards.count(why, frames.into());
        }
    }

    #[inline]
    fn guest(&mut self, queues: &GuestEgress, mask: u64) {
        match queues.active() {
            0 => self.drop(Discard::PortDown, mask.count_ones()),
            1 => self.queue(queues, 0, mask),
            active => {
                // Frames of a flow stay in one queue, so they stay in order.
                for pair in 0..active {
                    let mine = |at: &usize| flow::queue(&self.batch.heads[*at], active) == pair;
                    let part = bits(mask).filter(mine).fold(0, |m, at| m | 1 << at);
                    if part != 0 {
                        self.queue(queues, pair, part);
                    }
                }
            }
        }
    }

    #[inline]
    fn queue(&mut self, queues: &GuestEgress, pair: u16, mask: u64) {
        let held = queues.hold(pair);
        let Some(mut held) = held else { return };
        let Some(rx) = held.as_mut().filter(|rx| rx.is_open()) else {
            self.drop(Discard::PortDown, mask.count_ones());
            return;
        };
        let accepts = rx.accepts();
        // The room leaves this struct for as long as the delivery has it.
        let mut burst = std::mem::take(self.burst);
        let mut delivery = rx.begin(&mut burst, mask.count_ones() as usize);
        for at in bits(mask) {
            if let Err(why) = self.put(&mut delivery, at, accepts) {
                self.drop(why, 1);
            }
        }
        delivery.end();
        *self.burst = burst;
        self.tell(rx);
    }

    #[inline]
    fn tell(&self, rx: &mut GuestRx) {
        let shared = self.port.shared.queues.get(usize::from(rx.index()));
        if let Some(shared) = shared {
            shared.counters.publish(&rx.counters);
        }
        if let Some(violation) = rx.newly_broken() {
            if let Some(shared) = shared {
                shared.set_broken(Some(violation));
            }
            self.events.tell(Event::Broken {
                port: Arc::clone(&self.port.name),
                queue: rx.index(),
                violation,
            });
        }
    }

    /// The frame's head as this port wants it.
    #[inline]
    fn form(&self, at: usize) -> Result<Form<'_>, Discard> {
        let (item, head) = (&self.batch.items[at], &self.batch.heads[at]);
        let egress = self.port.mode.egress(item.class.vid);
        let tci = egress.ok_or(Discard::VlanNotAllowed)?.tci(item.class)?;
        match (item.parsed.tag(), tci) {
            (None, None) => Ok(Form::AsIs(head)),
            (Some(tag), Some(tci)) if tag.tci == tci => Ok(Form::AsIs(head)),
            (tag, tci) => Ok(change(item, head, tag.is_some(), tci)),
        }
    }

    /// Give one frame to a guest.
    #[inline]
    fn put(&mut self, to: &mut Delivery<'_>, at: usize, accepts: Offloads) -> Result<(), Discard> {
        let rest = self.source.rest(at);
        let len = self.batch.items[at].len;
        let form = self.form(at)?;
        let header = match &form {
            Form::AsIs(_) => self.batch.items[at].header,
            Form::Changed(_, header) => *header,
        };
        if !accepts.has(header.needs()) {
            let head = copied(&form);
            return self.put_finished(to, &head, header, rest, accepts);
        }
        let bytes = form.bytes();
        let moved = (bytes.len() as u32).wrapping_sub(self.batch.heads[at].emit().len() as u32);
        let len = (HEADER as u32 + len).wrapping_add(moved);
        to.put(bytes, rest, len)
    }

    /// Give one frame to a guest that wants checksums and segmentation done.
    #[cold]
    fn put_finished(
        &mut self,
        to: &mut Delivery<'_>,
        head: &[u8],
        header: NetHeader,
        rest: Rest<'_>,
        accepts: Offloads,
    ) -> Result<(), Discard> {
        linearise(self.linear, &head[HEADER..], rest);
        finish(self.linear, header, accepts, |header, headers, payload| {
            let mut head = ArrayVec::<u8, { HEADER + MAX_HEADERS }>::new();
            head.extend(header.to_bytes(1));
            let whole = head.try_extend_from_slice(headers);
            whole.map_err(|_| Discard::TooBigForReceiver)?;
            let len = u32::try_from(head.len() + payload.len()).unwrap_or(u32::MAX);
            to.put(&head, Rest::Own(payload), len)
        })
    }

    fn uplink(&mut self, tx: &mut dyn Uplink, mask: u64) {
        if tx.failed().is_some() {
            return self.drop(Discard::PortDown, mask.count_ones());
        }
        let accepts = tx.accepts();
        let mut bytes = 0;
        let mut sent = 0u64;
        for at in bits(mask) {
            match self.uplink_one(tx, at, accepts) {
                Ok(len) => {
                    bytes += len;
                    sent += 1;
                }
                Err(why) => self.drop(why, 1),
            }
        }
        let lost = u32::try_from(tx.send()).unwrap_or(u32::MAX);
        if lost > 0 {
            self.drop(Discard::ReceiverFull, lost);
        }
        if let Some(shared) = self.port.shared.queues.first() {
            let mut counters = shared.counters.snapshot();
            counters.frames += sent.saturating_sub(lost.into());
            counters.bytes += bytes;
            counters.bursts += 1;
            shared.counters.publish(&counters);
        }
    }

    /// Give one frame to an uplink; gives its length.
    fn uplink_one(
        &mut self,
        tx: &mut dyn Uplink,
        at: usize,
        accepts: Offloads,
    ) -> Result<u64, Discard> {
        let rest = self.source.rest(at);
        let form = self.form(at)?;
        let header = match &form {
            Form::AsIs(_) => self.batch.items[at].header,
            Form::Changed(_, header) => *header,
        };
        let head = copied(&form);
        linearise(self.linear, &head[HEADER..], rest);
        // A tag comes on top, a segmented frame counts by its segments.
        let tagged = self.linear.get(12..14) == Some(&TPID.to_be_bytes());
        let longest = tx.max_frame() + if tagged { TAG } else { 0 };
        let len = match usize::from(header.gso_size) {
            0 => self.linear.len(),
            size => usize::from(header.hdr_len) + size,
        };
        if len > longest {
            return Err(Discard::TooBigForReceiver);
        }
        let mut total = 0;
        finish(self.linear, header, accepts, |header, headers, payload| {
            let len = headers.len() + payload.len();
            let room = tx.reserve(len).ok_or(Discard::ReceiverFull)?;
            let (start, end) = room.split_at_mut(headers.len());
            start.copy_from_slice(headers);
            end.copy_from_slice(payload);
            tx.commit(header);
            total += len as u64;
            Ok(())
        })?;
        Ok(total)
    }
}

/// A private copy, so that the frame's own bytes need not stay borrowed.
fn copied(form: &Form<'_>) -> ArrayVec<u8, 160> {
    let mut copy = ArrayVec::new();
    let _ = copy.try_extend_from_slice(form.bytes());
    copy
}

/// Push, pop or change the tag.
#[cold]
fn change(item: &Item, head: &Head, tagged: bool, tci: Option<u16>) -> Form<'static> {
    let mut header = item.header;
    let mut changed = match (tagged, tci) {
        (false, Some(tci)) => {
            header = header.shifted(4);
            head.tagged(tci)
        }
        (true, Some(tci)) => head.retagged(tci),
        (true, None) => {
            header = header.shifted(-4);
            head.untagged()
        }
        (false, None) => head.same(),
    };
    changed.set_header(header, 1);
    Form::Changed(changed, header)
}

/// A whole frame in private memory.
fn linearise(linear: &mut Vec<u8>, head: &[u8], rest: Rest<'_>) {
    linear.clear();
    linear.extend_from_slice(head);
    match rest {
        Rest::Own(bytes) => linear.extend_from_slice(bytes),
        Rest::Guest {
            mem,
            segments,
            mut skip,
        } => {
            for seg in segments {
                if skip >= seg.len() {
                    skip -= seg.len();
                    continue;
                }
                let part = seg.skip(skip);
                skip = 0;
                let from = linear.len();
                linear.resize(from + part.len() as usize, 0);
                let _ = mem.read(part, &mut linear[from..]);
            }
        }
    }
}

/// Do what the receiver does not: checksum, segments. Each frame goes to `emit` in two parts.
fn finish(
    frame: &mut [u8],
    header: NetHeader,
    accepts: Offloads,
    mut emit: impl FnMut(NetHeader, &[u8], &[u8]) -> Result<(), Discard>,
) -> Result<(), Discard> {
    if accepts.has(header.needs()) {
        return emit(header, &[], frame);
    }
    if header.gso_size == 0 {
        offload::complete_checksum(header, frame)?;
        return emit(NetHeader::default(), &[], frame);
    }
    for segment in Segments::new(header, frame, accepts)? {
        emit(segment.header, &segment.headers, segment.payload)?;
    }
    Ok(())
}
