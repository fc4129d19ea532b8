//! Pass 3: each port that has frames in the burst, once; then those that get copies.

mod uplink;

use std::sync::Arc;

use arrayvec::ArrayVec;
use towpath_common::chain::Burst;
use towpath_common::ring::fence;

use super::shape::{change, exceeds, finish, linearise};
use super::watch::{Losses, View, Watch};
use crate::batch::{Batch, Item, LONGEST, Verdict, bits};
use crate::discard::Discard;
use crate::egress::{Egress, GuestEgress};
use crate::fdb::PortNo;
use crate::flow;
use crate::head::{COPIED, Retagged, TAG};
use crate::mirror::{Copies, MIRRORS, PortSet};
use crate::net::{HEADER, NetHeader, Offloads};
use crate::offload::MAX_HEADERS;
use crate::port::guest::{Delivery, GuestRx, Rest};
use crate::stats::{Event, Events};
use crate::table::{Port, Tables};
use crate::vlan::{TPID, Vid};

/// Length of the virtio-net header, as lengths in rings are given.
#[expect(clippy::cast_possible_truncation, reason = "12")]
const WIRE_HEADER: u32 = HEADER as u32;

/// Queues that may wait to be asked; any more are asked at once.
const OWED: usize = 256;

/// What goes where, and room to send it.
#[derive(Debug)]
pub(super) struct Outbox {
    /// By port number: a bit for each frame of the burst that goes there.
    masks: Vec<u64>,
    /// Ports with a bit set.
    touched: Vec<u16>,
    /// The same for copies.
    copies: ArrayVec<(PortNo, u64), MIRRORS>,
    /// What the port at hand did not take.
    losses: Losses,
    /// What some port did not take.
    lost: u64,
    /// Queues that got frames and whose drivers were not asked yet whether to notify them.
    owed: ArrayVec<(PortNo, u16), OWED>,
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
            copies: ArrayVec::new(),
            losses: Losses::default(),
            lost: 0,
            owed: ArrayVec::new(),
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
    pub(super) fn send(&mut self, port: &Port, at: usize) {
        let Some(mask) = self.masks.get_mut(port.no.index()) else {
            return;
        };
        if *mask == 0 {
            self.touched.push(port.no.0);
            if let Egress::Guest(queues) = &*port.egress {
                // Its ring is looked at once the other ports of the burst are found.
                queues.fetch();
            }
        }
        *mask |= 1 << at;
    }

    /// Frame `at` goes to `port`, as one before it did.
    #[inline]
    pub(super) fn again(&mut self, port: PortNo, at: usize) {
        if let Some(mask) = self.masks.get_mut(port.index()) {
            *mask |= 1 << at;
        }
    }

    /// Notify the drivers of all queues that got frames since this was last called, if they want
    /// that; the caller passed a [`fence`] since.
    #[inline]
    pub(super) fn settle(&mut self, tables: &Tables) {
        for (no, pair) in self.owed.drain(..) {
            let Some(port) = tables.port(no) else {
                continue;
            };
            if let Egress::Guest(queues) = &*port.egress
                && let Some(mut held) = queues.hold(pair)
                && let Some(rx) = held.as_mut()
            {
                rx.settle();
                tell(port, rx, &self.events);
            }
        }
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
                self.send(port, at);
                any = true;
            }
        }
        any
    }

    /// Enter the copies to be made of a burst, and take back what goes to a port that gets nothing
    /// else; true if there was such.
    #[cold]
    pub(super) fn mirror(
        &mut self,
        tables: &Tables,
        from: &Port,
        batch: &mut Batch,
        frames: usize,
    ) -> bool {
        let mirrors = tables.mirrors();
        let (mut last, mut copies) = (None, Copies::new());
        let mut dropped = false;
        for (at, item) in batch.items[..frames].iter_mut().enumerate() {
            match item.verdict {
                Verdict::Drop(_) => continue,
                Verdict::To(to) if mirrors.excludes(to) => {
                    if let Some(mask) = self.masks.get_mut(to.index()) {
                        *mask &= !(1 << at);
                    }
                    item.verdict = Verdict::Drop(Discard::NoMember);
                    dropped = true;
                    continue;
                }
                Verdict::To(_) | Verdict::Flood => {}
            }
            let (verdict, vid) = (item.verdict, item.class.vid());
            if last != Some((verdict, vid)) {
                last = Some((verdict, vid));
                let has = |no: &&u16| self.masks[usize::from(**no)] >> at & 1 == 1;
                let egress: PortSet = self
                    .touched
                    .iter()
                    .filter(has)
                    .map(|n| PortNo(*n))
                    .collect();
                copies = mirrors.copies(from.no, vid, &egress);
            }
            for to in &copies {
                match self.copies.iter_mut().find(|(port, _)| port == to) {
                    Some((_, mask)) => *mask |= 1 << at,
                    None => self.copies.push((*to, 1 << at)),
                }
            }
        }
        dropped
    }

    /// Send all of it.
    #[inline]
    pub(super) fn deliver(&mut self, tables: &Tables, view: View<'_>, watch: &mut Watch) {
        self.lost = 0;
        while let Some(no) = self.touched.pop() {
            let mask = std::mem::take(&mut self.masks[usize::from(no)]);
            let Some(port) = tables.port(PortNo(no)) else {
                continue;
            };
            if mask == 0 {
                continue;
            }
            self.losses.mask = 0;
            self.offer(port, view, mask, false);
            self.lost |= self.losses.mask;
            view.count_sent(port, self.worker, mask & !self.losses.mask);
            watch.sent(view, port.no, mask, &self.losses);
        }
        if !self.copies.is_empty() {
            self.deliver_copies(tables, view, watch);
        }
    }

    /// Frames of the last burst that did not arrive everywhere.
    #[inline]
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    #[cold]
    fn deliver_copies(&mut self, tables: &Tables, view: View<'_>, watch: &mut Watch) {
        for (no, mask) in std::mem::take(&mut self.copies) {
            let Some(port) = tables.port(no) else {
                continue;
            };
            self.losses.mask = 0;
            self.offer(port, view, mask, true);
            watch.sent(view, no, mask, &self.losses);
        }
    }

    #[inline]
    fn offer(&mut self, port: &Port, view: View<'_>, mask: u64, copies: bool) {
        let mut to = To {
            port,
            view,
            copies,
            formed: (0, None),
            losses: &mut self.losses,
            owed: &mut self.owed,
            linear: &mut self.linear,
            worker: self.worker,
            events: &self.events,
        };
        match &*port.egress {
            Egress::Guest(queues) => to.guest(&mut self.burst, queues, mask),
            Egress::Uplink(queues) => {
                let queue = self.worker % queues.len().max(1);
                if let Some(lease) = queues.get(queue) {
                    to.uplink(queue, &mut **lease.hold(), mask);
                } else {
                    // Its interface could not be opened yet.
                    to.drop(Discard::PortDown, mask);
                }
            }
        }
    }
}

/// Drop what came from a port that only gets copies.
#[cold]
pub(super) fn refuse(tables: &Tables, from: &Port, batch: &mut Batch, frames: usize) {
    if tables.mirrors().excludes(from.no) {
        for item in &mut batch.items[..frames] {
            if !matches!(item.verdict, Verdict::Drop(_)) {
                item.verdict = Verdict::Drop(Discard::NoMember);
            }
        }
    }
}

/// Publish what a receive queue counted, and tell whoever should know that it broke.
#[inline]
fn tell(port: &Port, rx: &mut GuestRx, events: &Events) {
    let shared = port.shared.queues.get(usize::from(rx.index()));
    if let Some(shared) = shared {
        shared.counters.publish(&rx.counters);
    }
    if let Some(violation) = rx.newly_broken() {
        if let Some(shared) = shared {
            shared.set_broken(Some(violation));
        }
        events.tell(Event::Broken {
            port: Arc::clone(&port.name),
            queue: rx.index(),
            violation,
        });
    }
}

/// A tag as it stands in a frame.
#[inline]
fn tag(tci: u16) -> [u8; TAG] {
    let ([a, b], [c, d]) = (TPID.to_be_bytes(), tci.to_be_bytes());
    [a, b, c, d]
}

/// A delivery to one port.
struct To<'a> {
    port: &'a Port,
    view: View<'a>,
    /// Frames go out as they came in.
    copies: bool,
    /// Class and tag of the last frame, which are never zero, and what became of the tag.
    formed: (u64, Option<Option<u16>>),
    losses: &'a mut Losses,
    owed: &'a mut ArrayVec<(PortNo, u16), OWED>,
    linear: &'a mut Vec<u8>,
    worker: usize,
    events: &'a Events,
}

impl To<'_> {
    /// These frames are lost.
    #[cold]
    fn drop(&mut self, why: Discard, mask: u64) {
        self.losses.add(mask, why);
        if let Some(discards) = self.port.shared.discards.get(self.worker) {
            discards.count(why, mask.count_ones().into());
        }
    }

    #[inline]
    fn guest(&mut self, burst: &mut Burst, queues: &GuestEgress, mask: u64) {
        match queues.active() {
            0 => self.drop(Discard::PortDown, mask),
            1 => self.queue(burst, queues, 0, mask),
            active => {
                // Frames of a flow stay in one queue, so they stay in order.
                for pair in 0..active {
                    let mine =
                        |at: &usize| flow::queue(&self.view.batch.heads[*at], active) == pair;
                    let part = bits(mask).filter(mine).fold(0, |m, at| m | 1 << at);
                    if part != 0 {
                        self.queue(burst, queues, pair, part);
                    }
                }
            }
        }
    }

    #[inline]
    fn queue(&mut self, burst: &mut Burst, queues: &GuestEgress, pair: u16, mask: u64) {
        let held = queues.hold(pair);
        let Some(mut held) = held else { return };
        let Some(rx) = held.as_mut().filter(|rx| rx.is_open()) else {
            return self.drop(Discard::PortDown, mask);
        };
        let accepts = rx.accepts();
        let mut delivery = rx.begin(burst, mask.count_ones() as usize);
        for at in bits(mask) {
            if let Err(why) = self.put(&mut delivery, at, accepts) {
                self.drop(why, 1 << at);
            }
        }
        let owing = delivery.end();
        queues.note(pair, rx.soon());
        if owing && self.owed.try_push((self.port.no, pair)).is_err() {
            fence();
            rx.settle();
            tell(self.port, rx, self.events);
        }
    }

    /// The tag that a frame leaves with; none: without one. Outer none: as it came.
    #[inline]
    fn retag(&mut self, item: &Item) -> Result<Option<Option<u16>>, Discard> {
        if item.len > self.port.max_frame && exceeds(item, self.port.max_frame) {
            return Err(Discard::TooBigForReceiver);
        }
        let form = u64::from(item.class.word()) << 32 | u64::from(item.parsed.tag);
        if form != self.formed.0 {
            self.formed = (form, self.retag_class(item)?);
        }
        Ok(self.formed.1)
    }

    #[inline(never)]
    fn retag_class(&self, item: &Item) -> Result<Option<Option<u16>>, Discard> {
        if self.copies {
            // A mirror shows what came, as it came.
            return Ok(None);
        }
        let Some(egress) = self.port.mode.egress(item.class.vid()) else {
            return Err(Discard::VlanNotAllowed);
        };
        let tci = egress.tci(item.class)?;
        let had = item.parsed.tag().map(|tag| tag.tci);
        Ok((had != tci).then_some(tci))
    }

    /// The frame's head as this port wants it, and its header.
    #[cold]
    fn form(&self, at: usize, tci: Option<Option<u16>>) -> (Retagged, NetHeader) {
        let (item, head) = (&self.view.batch.items[at], &self.view.batch.heads[at]);
        match tci {
            None => (head.same(), item.header),
            Some(tci) => change(item, head, item.parsed.tag != 0, tci),
        }
    }

    /// Give one frame to a guest.
    #[inline]
    fn put(&mut self, to: &mut Delivery<'_>, at: usize, accepts: Offloads) -> Result<(), Discard> {
        let item = &self.view.batch.items[at];
        let head = &self.view.batch.heads[at];
        let tci = self.retag(item)?;
        if !accepts.has(item.needs) {
            return self.put_changed(to, at, tci, accepts);
        }
        let len = WIRE_HEADER + item.len;
        let Some(tci) = tci else {
            if item.len as usize <= COPIED {
                return to.put_whole(head.emit(), len);
            }
            return to.put(head.emit(), self.view.source.rest(at), len);
        };
        let rest = if item.len as usize > COPIED {
            self.view.source.rest(at)
        } else {
            Rest::Own(&[])
        };
        if item.header != NetHeader::default() {
            // Where its checksum begins moves with the tag.
            return self.put_changed(to, at, Some(tci), accepts);
        }
        let had = item.parsed.tag != 0;
        let len = len - 4 * u32::from(had) + 4 * u32::from(tci.is_some());
        match tci {
            Some(tci) => to.put_pieces(head.pieces(had, &tag(tci)), rest, len),
            None => to.put_pieces(head.pieces(had, &[]), rest, len),
        }
    }

    /// Give one frame to a guest, with another tag, or checksums and segmentation done.
    #[cold]
    fn put_changed(
        &mut self,
        to: &mut Delivery<'_>,
        at: usize,
        tci: Option<Option<u16>>,
        accepts: Offloads,
    ) -> Result<(), Discard> {
        let rest = self.view.source.rest(at);
        let (head, header) = self.form(at, tci);
        let bytes = head.emit();
        if !accepts.has(header.needs()) {
            return self.put_finished(to, bytes, header, rest, accepts);
        }
        let rest_len = (self.view.batch.items[at].len as usize).saturating_sub(COPIED);
        let len = u32::try_from(bytes.len() + rest_len).unwrap_or(u32::MAX);
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
        let most = to.most();
        finish(
            self.linear,
            header,
            accepts,
            most,
            |header, headers, payload| {
                let mut head = ArrayVec::<u8, { HEADER + MAX_HEADERS }>::new();
                head.extend(header.to_bytes(1));
                let whole = head.try_extend_from_slice(headers);
                whole.map_err(|_| Discard::TooBigForReceiver)?;
                let len = u32::try_from(head.len() + payload.len()).unwrap_or(u32::MAX);
                to.put(&head, Rest::Own(payload), len)
            },
        )
    }
}
