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

use std::sync::Arc;

use towpath_common::chain::BURST;
use towpath_common::clock::Cycles;

use crate::batch::{Batch, Item, Source, Verdict};
use crate::discard::Discard;
use crate::fdb::{Fdb, Learned, PortNo};
use crate::guard::Storm;
use crate::head::{Parsed, TAG};
use crate::mac::Mac;
use crate::net::Offloads;
use crate::offload;
use crate::stats::{Events, QueueCounters};
use crate::table::{Port, Tables};
use deliver::Outbox;

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
    out: Outbox,
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
            out: Outbox::new(worker, events),
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

    /// Count frames of a ring that is not enabled.
    #[cold]
    pub fn discard_disabled(&self, ingress: &Ingress<'_>, frames: usize) {
        let port = self.tables.port(ingress.port);
        if let Some(discards) = port.and_then(|p| p.shared.discards.get(self.worker)) {
            discards.count(Discard::RingDisabled, frames as u64);
        }
    }

    /// Forward a burst.
    #[inline]
    pub fn forward(&mut self, source: Source<'_>, ingress: Ingress<'_>, now: Moment) {
        let Switch {
            tables,
            fdb,
            worker,
            batch,
            out,
        } = self;
        let frames = source.len().min(BURST);
        let Some(port) = tables.port(ingress.port) else {
            return;
        };
        examine(port, fdb, batch, source, &ingress, frames);
        let mut bytes = 0;
        let mut last = Learnt::default();
        let mut dropped = false;
        for at in 0..frames {
            let item = &mut batch.items[at];
            bytes += u64::from(item.len);
            if let Verdict::Drop(_) = item.verdict {
                dropped = true;
                continue;
            }
            item.verdict = decide(port, tables, fdb, item, &mut last, now);
            match item.verdict {
                Verdict::To(to) => out.send(to, at),
                Verdict::Flood => {
                    if !out.flood(tables, port, item.class.vid, at) {
                        item.verdict = Verdict::Drop(Discard::NoMember);
                        dropped = true;
                    }
                }
                Verdict::Drop(_) => dropped = true,
            }
        }
        ingress.counters.frames += frames as u64;
        ingress.counters.bytes += bytes;
        ingress.counters.bursts += 1;
        out.deliver(tables, batch, source);
        if dropped {
            count(port, *worker, batch, frames);
        }
    }
}

#[cold]
fn count(port: &Port, worker: usize, batch: &Batch, frames: usize) {
    let Some(discards) = port.shared.discards.get(worker) else {
        return;
    };
    for item in &batch.items[..frames] {
        if let Verdict::Drop(why) = item.verdict {
            discards.count(why, 1);
        }
    }
}

/// Pass 1: everything that needs the frame alone.
#[inline]
fn examine(
    port: &Port,
    fdb: &Fdb,
    batch: &mut Batch,
    source: Source<'_>,
    ingress: &Ingress<'_>,
    frames: usize,
) {
    for at in 0..frames {
        let (head, item) = (&mut batch.heads[at], &mut batch.items[at]);
        item.len = 0;
        let examined = source.load(at, head).and_then(|len| {
            item.len = len;
            let parsed = head.parse().ok_or(Discard::Runt)?;
            item.parsed = parsed;
            let (asked, bytes) = (head.header(), len as usize);
            let header = if ingress.trusted {
                offload::validate_uplink(asked, bytes, head.frame())?
            } else {
                offload::validate(asked, bytes, head.frame(), ingress.may_send)?
            };
            item.header = header;
            head.set_header(header, 1);
            let class = port.mode.classify(parsed.tag(), parsed.ethertype)?;
            item.class = class;
            if header.gso_size == 0 && len > longest(port, &parsed) {
                return Err(Discard::Giant);
            }
            let (src, dst) = (Mac::from_u64(parsed.src), Mac::from_u64(parsed.dst));
            if src.is_multicast() || src.is_zero() {
                return Err(Discard::BadSource);
            }
            item.src = fdb.hash(class.vid, src);
            item.dst = fdb.hash(class.vid, dst);
            fdb.touch(item.src);
            fdb.touch(item.dst);
            Ok(())
        });
        item.verdict = match examined {
            Ok(()) => Verdict::Flood,
            Err(why) => Verdict::Drop(why),
        };
    }
}

/// Longest unsegmented frame taken from a port: a tag comes on top.
#[inline]
fn longest(port: &Port, parsed: &Parsed) -> u32 {
    let tag = if parsed.tag().is_some() { TAG } else { 0 };
    port.max_frame.saturating_add(u32::from(tag != 0) * 4)
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
        && let Err(why) = guards.rate(item.len as usize, now.ns)
    {
        return Verdict::Drop(why);
    }
    if last.src != Some(item.src) {
        match fdb.learn(item.src, port.no, now.seconds, guards.mac_limit()) {
            Learned::LimitReached => return Verdict::Drop(Discard::MacLimit),
            Learned::Static => return Verdict::Drop(Discard::SourceGuard),
            _ => last.src = Some(item.src),
        }
    }
    if dst.is_multicast() {
        let storm = if dst.is_broadcast() {
            Storm::Broadcast
        } else {
            Storm::Multicast
        };
        return flood(guards.storm(storm, now.ns));
    }
    if last.dst != Some(item.dst) {
        last.dst = Some(item.dst);
        last.to = fdb.lookup(item.dst);
    }
    let Some(to) = last.to else {
        return flood(guards.storm(Storm::Unknown, now.ns));
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
