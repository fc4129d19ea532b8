//! Forwarding: a burst in, decisions for all of it, then each egress once.
//!
//! ```text
//! pass 1  each frame: copy its head, check its header, VLAN, hash both addresses, touch the FDB
//! pass 2  each frame: learn, look up → one bit in the mask of every port it goes to
//! pass 3  each port with a bit: hold its queue, write its frames, publish, notify   (`deliver`)
//! ```
//!
//! Nothing outlives the call: what a full receiver does not take is dropped there and then, and
//! delays nobody else (no head-of-line blocking).

mod deliver;
mod posted;
mod shape;
mod watch;

use std::sync::Arc;

use towpath_common::chain::BURST;
use towpath_common::clock::Cycles;

use crate::batch::{Batch, Item, Source, Verdict};
use crate::capture::{CaptureId, Tap};
use crate::discard::Discard;
use crate::fdb::{Fdb, Hashes, Learned, PortNo};
use crate::guard::Storm;
use crate::head::{Flow, Head, Parsed, TAG};
use crate::mac::Mac;
use crate::net::{NetHeader, Offloads};
use crate::offload;
use crate::recent::Recent;
use crate::stats::{Events, QueueCounters};
use crate::table::{Port, Tables};
use deliver::Outbox;
use watch::{View, Watch};

/// The time, as forwarding needs it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// On the worker's clock.
    pub cycles: Cycles,
    /// The same in nanoseconds, for guards.
    pub ns: u64,
    /// The same in seconds, for the FDB.
    pub seconds: u32,
}

/// Where a burst comes from.
#[derive(Debug)]
pub struct Ingress<'a> {
    /// The port.
    pub port: PortNo,
    /// What its headers may ask for.
    pub may_send: Offloads,
    /// Headers are those of the host's kernel.
    pub trusted: bool,
    /// Counted here.
    pub counters: &'a mut QueueCounters,
}

/// One worker's switch.
#[derive(Debug)]
pub struct Switch {
    tables: Arc<Tables>,
    fdb: Arc<Fdb>,
    worker: usize,
    batch: Batch,
    hashes: Hashes,
    out: Outbox,
    watch: Watch,
}

impl Switch {
    /// A switch without ports, for worker `worker`.
    #[must_use]
    pub fn new(fdb: Arc<Fdb>, worker: usize, events: Events) -> Switch {
        Switch {
            tables: Arc::default(),
            fdb,
            worker,
            batch: Batch::default(),
            hashes: Hashes::default(),
            out: Outbox::new(worker, events),
            watch: Watch::default(),
        }
    }

    /// Forward by these tables from now on; gives back the old ones, to be dropped elsewhere.
    #[must_use]
    pub fn set_tables(&mut self, tables: Arc<Tables>) -> Arc<Tables> {
        self.out.resize(tables.size());
        std::mem::replace(&mut self.tables, tables)
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The filtering database.
    #[must_use]
    pub fn fdb(&self) -> &Arc<Fdb> {
        &self.fdb
    }

    /// Show a capture what passes from now on; gives the tap back if there is no room for it.
    ///
    /// # Errors
    /// The tap.
    pub fn tap(&mut self, tap: Tap) -> Result<(), Tap> {
        self.watch.add(tap)
    }

    /// End a capture; its tap is to be dropped elsewhere.
    pub fn untap(&mut self, id: CaptureId) -> Option<Tap> {
        self.watch.remove(id)
    }

    /// What was seen of late.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.watch.recent
    }

    /// Count frames of a ring that is not enabled.
    #[cold]
    pub fn discard_disabled(&self, ingress: &Ingress<'_>, frames: usize) {
        let port = self.tables.port(ingress.port);
        if let Some(discards) = port.and_then(|p| p.shared.discards.get(self.worker)) {
            discards.count(Discard::RingDisabled, frames as u64);
        }
    }

    /// Notify the drivers of all queues that frames were delivered to, if they want that: at the
    /// end of a worker's step, after a [`towpath_common::ring::fence`].
    #[inline]
    pub fn settle(&mut self) {
        self.out.settle(&self.tables);
    }

    /// Forward a burst. [`Switch::settle`] is to be called before the worker does anything else.
    #[inline]
    pub fn forward(&mut self, source: Source<'_>, ingress: Ingress<'_>, now: Moment) {
        let Switch {
            tables,
            fdb,
            worker,
            batch,
            hashes,
            out,
            watch,
        } = self;
        let frames = source.len().min(BURST);
        let Some(port) = tables.port(ingress.port) else {
            return;
        };
        watch.begin();
        let known = Known { port, fdb, hashes };
        match source.guest() {
            Some(guest) => examine(known, batch, &ingress, frames, |at, head| {
                guest.load(at, head)
            }),
            None => examine(known, batch, &ingress, frames, |at, head| {
                source.load(at, head)
            }),
        }
        let mirrored = !tables.mirrors().is_empty();
        if mirrored {
            deliver::refuse(tables, port, batch, frames);
        }
        let (bytes, mut dropped) =
            decide_all(tables, fdb, port, &mut batch.items[..frames], out, now);
        ingress.counters.frames += frames as u64;
        ingress.counters.bytes += bytes;
        ingress.counters.bursts += 1;
        if mirrored {
            dropped |= out.mirror(tables, port, batch, frames);
        }
        let view = View::new(batch, source, port, (frames, bytes), dropped, now.cycles);
        out.deliver(tables, view, watch);
        if dropped {
            watch.dropped(view, *worker);
        }
        watch.end(view, *worker, out.lost());
    }
}

/// What a frame is examined against.
struct Known<'a> {
    port: &'a Port,
    fdb: &'a Fdb,
    hashes: &'a mut Hashes,
}

/// Pass 1: everything that needs the frame alone. Most frames of a burst are of the flow of the one
/// before, and are not looked at further.
#[inline]
fn examine(
    mut known: Known<'_>,
    batch: &mut Batch,
    ingress: &Ingress<'_>,
    frames: usize,
    load: impl Fn(usize, &mut Head) -> Result<u32, Discard>,
) {
    // The last frame that was examined, where its item stands, and the longest that may repeat it.
    let (mut flow, mut like, mut longest_again) = (Flow::default(), 0, 0);
    for (at, head) in batch.heads.iter_mut().enumerate().take(frames) {
        let (before, rest) = batch.items.split_at_mut(at);
        let Some(item) = rest.first_mut() else { break };
        let len = match load(at, head) {
            Ok(len) => len,
            Err(why) => {
                (item.len, item.repeats) = (0, false);
                item.verdict = Verdict::Drop(why);
                continue;
            }
        };
        if let Some(like) = before.get(like)
            && flow.has(head)
            && head.is_plain()
            && len <= longest_again
        {
            head.set_plain();
            *item = *like;
            (item.len, item.repeats) = (len, true);
            (item.header, item.needs) = (NetHeader::default(), Offloads::NONE);
            continue;
        }
        (item.len, item.repeats) = (len, false);
        if let Some(why) = examine_one(&mut known, head, item, ingress) {
            item.verdict = Verdict::Drop(why);
            continue;
        }
        item.verdict = Verdict::Flood;
        (flow, like) = (Flow::of(head, &item.parsed), at);
        longest_again = longest(known.port, &item.parsed);
    }
}

/// Pass 1 of one frame: fills in its item, or says why it is dropped.
#[inline]
fn examine_one(
    known: &mut Known<'_>,
    head: &mut Head,
    item: &mut Item,
    ingress: &Ingress<'_>,
) -> Option<Discard> {
    let Known { port, fdb, hashes } = known;
    let Some(parsed) = head.parse() else {
        return Some(Discard::Runt);
    };
    item.parsed = parsed;
    item.header = NetHeader::default();
    item.needs = Offloads::NONE;
    if head.is_plain() {
        head.set_plain();
    } else if let Err(why) = check_header(head, item, ingress) {
        return Some(why);
    }
    if item.header.gso_size == 0 && item.len > longest(port, &parsed) {
        return Some(Discard::Giant);
    }
    match port.mode.classify(parsed.tag(), parsed.ethertype) {
        Ok(class) => item.class = class,
        Err(why) => return Some(why),
    }
    let (src, dst) = (Mac::from_u64(parsed.src), Mac::from_u64(parsed.dst));
    if src.is_multicast() || src.is_zero() {
        return Some(Discard::BadSource);
    }
    let vid = item.class.vid();
    item.src = hashes.of(fdb, vid, src);
    item.dst = hashes.of(fdb, vid, dst);
    fdb.touch(item.src);
    fdb.touch(item.dst);
    None
}

/// Check a header that asks for something.
#[cold]
fn check_header(head: &mut Head, item: &mut Item, ingress: &Ingress<'_>) -> Result<(), Discard> {
    let (asked, len) = (head.header(), item.len as usize);
    let header = if ingress.trusted {
        offload::validate_uplink(asked, len, head.frame())?
    } else {
        offload::validate(asked, len, head.frame(), ingress.may_send)?
    };
    item.header = header;
    item.needs = header.needs();
    head.set_header(header, 1);
    Ok(())
}

/// Longest unsegmented frame taken from a port: a tag comes on top.
#[inline]
fn longest(port: &Port, parsed: &Parsed) -> u32 {
    let tag = if parsed.tag().is_some() { TAG } else { 0 };
    port.max_frame.saturating_add(u32::from(tag != 0) * 4)
}

/// Pass 2: where each frame goes, entered in `out`; their bytes, and whether some go nowhere.
#[inline]
fn decide_all(
    tables: &Tables,
    fdb: &Fdb,
    port: &Port,
    items: &mut [Item],
    out: &mut Outbox,
    now: Moment,
) -> (u64, bool) {
    let mut bytes = 0;
    let mut last = Learnt::default();
    let mut dropped = false;
    // Where the frame went that the next may be a repetition of.
    let mut before = None;
    for (at, item) in items.iter_mut().enumerate() {
        bytes += u64::from(item.len);
        if let (true, Some(to)) = (item.repeats, before) {
            item.verdict = Verdict::To(to);
            out.again(to, at);
            continue;
        }
        if let Verdict::Drop(_) = item.verdict {
            dropped = true;
            continue;
        }
        item.verdict = decide(port, tables, fdb, item, &mut last, now);
        before = None;
        match item.verdict {
            Verdict::To(to) => match tables.port(to) {
                Some(there) => {
                    out.send(there, at);
                    // What is counted by the frame is asked for each.
                    before = (!port.guards.is_rated()).then_some(to);
                }
                None => {
                    item.verdict = Verdict::Drop(Discard::PortDown);
                    dropped = true;
                }
            },
            Verdict::Flood => {
                if !out.flood(tables, port, item.class.vid(), at) {
                    item.verdict = Verdict::Drop(Discard::NoMember);
                    dropped = true;
                }
            }
            Verdict::Drop(_) => dropped = true,
        }
    }
    (bytes, dropped)
}

/// What the frame before this one taught: most frames of a burst repeat it.
#[derive(Debug, Default, Clone, Copy)]
struct Learnt {
    src: Option<crate::fdb::Hash>,
    dst: Option<crate::fdb::Hash>,
    to: Option<PortNo>,
}

/// Pass 2: learn the source, look up the destination.
#[inline]
fn decide(
    port: &Port,
    tables: &Tables,
    fdb: &Fdb,
    item: &Item,
    last: &mut Learnt,
    now: Moment,
) -> Verdict {
    let guards = &port.guards;
    let dst = Mac::from_u64(item.parsed.dst);
    let admitted = guards
        .source(Mac::from_u64(item.parsed.src))
        .and_then(|()| guards.bridge_protocol(dst));
    if let Err(why) = admitted {
        return Verdict::Drop(why);
    }
    if dst.is_reserved() {
        return Verdict::Drop(Discard::LinkLocal);
    }
    if guards.is_rated()
        && let Err(why) = guards.rate(item.wire_frames(), item.len as usize, now.ns)
    {
        return Verdict::Drop(why);
    }
    if last.src != Some(item.src) {
        match fdb.learn(item.src, port.no, now.seconds, guards.mac_limit()) {
            Learned::LimitReached => return Verdict::Drop(Discard::MacLimit),
            Learned::Static => return Verdict::Drop(Discard::SourceGuard),
            Learned::Known => last.src = Some(item.src),
            _ => {
                last.src = Some(item.src);
                // What was looked up may have been this very address.
                last.dst = None;
            }
        }
    }
    if dst.is_multicast() {
        let storm = if dst.is_broadcast() {
            Storm::Broadcast
        } else {
            Storm::Multicast
        };
        return flood(guards.storm(storm, item.wire_frames(), now.ns));
    }
    if last.dst != Some(item.dst) {
        last.dst = Some(item.dst);
        last.to = fdb.lookup(item.dst);
    }
    let Some(to) = last.to else {
        return flood(guards.storm(Storm::Unknown, item.wire_frames(), now.ns));
    };
    if to == port.no {
        return Verdict::Drop(Discard::Hairpin);
    }
    match tables.port(to) {
        Some(there) if port.isolated && !there.uplink => Verdict::Drop(Discard::Isolated),
        Some(there) if there.isolated && !port.uplink => Verdict::Drop(Discard::Isolated),
        Some(_) => Verdict::To(to),
        None => Verdict::Drop(Discard::PortDown),
    }
}

#[inline]
fn flood(storm: Result<(), Discard>) -> Verdict {
    storm.map_or_else(Verdict::Drop, |()| Verdict::Flood)
}

#[cfg(test)]
mod tests;
