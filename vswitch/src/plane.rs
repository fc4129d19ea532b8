//! vswitch's data plane on one worker: the transmit queues and uplinks it polls.
//!
//! A step offers service to the ports in the scheduler's order. A port that is served hands one
//! burst of each of its queues to the switch, which delivers it to the end: nothing is in flight
//! between two steps, so a queue can be given back at any time.

mod changes;

use std::sync::Arc;

use towpath_common::bell::Bell;
use towpath_common::chain::{BURST, Burst};
use towpath_common::clock::{Clock, Cycles};
use towpath_common::mailbox::ReplyTo;
use towpath_common::ring::{Ring, fence};
use towpath_common::sched::{EntityId, MAX_ENTITIES, Outcome, Scheduler, Share};
use towpath_common::session::{Attach, Update};
use towpath_common::worker::{Context, Plane, Poller};

use crate::batch::Source;
use crate::capture::{CaptureId, Tap};
use crate::ctrl::Control;
use crate::egress::Egress;
use crate::fdb::{Fdb, PortNo};
use crate::net::Offloads;
use crate::port::Uplink;
use crate::port::guest_ctrl::GuestCtrl;
use crate::port::guest_tx::GuestTx;
use crate::recent::Record;
use crate::stats::{Event, Events, PortShared, QueueCounters};
use crate::switch::{Ingress, Moment, Switch};
use crate::table::Tables;

/// How long an uplink that had nothing is left alone, in ns: to look costs a system call.
const UPLINK_PAUSE: u64 = 4_000;

/// Bytes of the shortest frame of Ethernet, without its checksum.
pub const SHORTEST: usize = 60;

/// What the control plane and the sessions ask of a worker.
#[derive(Debug)]
pub enum Change {
    /// Forward by these tables; the old ones come back, to be dropped elsewhere.
    Tables(Arc<Tables>, ReplyTo<Arc<Tables>>),
    /// Serve a port's queues from now on; false if there is no room.
    AddPort(NewPort, ReplyTo<bool>),
    /// Stop serving a port; its queues have been detached.
    RemovePort(PortNo, ReplyTo<()>),
    /// Another weight or cap.
    SetShare(PortNo, Share),
    /// Poll a queue of an uplink, by its number.
    AddUplink(PortNo, u16, Box<dyn Uplink>, ReplyTo<bool>),
    /// Forward nothing any more: a successor will.
    Pause(ReplyTo<()>),
    /// Poll the uplinks that were held.
    ReleaseUplinks,
    /// Give a queue of an uplink back.
    RemoveUplink(PortNo, ReplyTo<Option<Box<dyn Uplink>>>),
    /// Poll a transmit queue, of a driver that negotiated these features.
    Attach(PortNo, u16, Box<Attach>, u64, ReplyTo<bool>),
    /// Answer commands on a control queue.
    AttachControl(
        PortNo,
        u16,
        Box<Attach>,
        Control,
        Arc<Egress>,
        ReplyTo<bool>,
    ),
    /// Give a ring back.
    Detach(PortNo, u16, ReplyTo<Ring>),
    /// A change that needs no drain.
    Update(PortNo, u16, Update, ReplyTo<()>),
    /// Forward an untagged frame as if it had come from a port, in each of its VLANs.
    Inject(PortNo, Box<[u8; SHORTEST]>),
    /// Show frames to a capture; the tap comes back if there is no room for it.
    Tap(Tap, ReplyTo<Result<(), Tap>>),
    /// End a capture; its tap comes back, to be dropped elsewhere.
    Untap(CaptureId, ReplyTo<Option<Tap>>),
    /// Copy notes of recent frames, from this one on, as many as there is room for; says where to
    /// go on, if there are more.
    Recent(usize, Vec<Record>, ReplyTo<(Vec<Record>, Option<usize>)>),
}

/// A port as a worker gets it.
#[derive(Debug)]
pub struct NewPort {
    /// Its number.
    pub no: PortNo,
    /// Its name, for events.
    pub name: Arc<str>,
    /// Weight and cap.
    pub share: Share,
    /// Where its counters go.
    pub shared: Arc<PortShared>,
}

#[derive(Debug)]
struct PortHere {
    no: PortNo,
    name: Arc<str>,
    entity: EntityId,
    queues: Vec<GuestTx>,
    control: Option<GuestCtrl>,
    uplinks: Vec<UplinkHere>,
    shared: Arc<PortShared>,
    /// It had frames in this step.
    worked: bool,
    poisoned: bool,
}

#[derive(Debug)]
struct UplinkHere {
    uplink: Box<dyn Uplink>,
    /// Number of its queue; nobody else counts what comes from there.
    queue: u16,
    /// What came from it.
    rx: QueueCounters,
    /// When it is looked at next, in ns; not at all while it is held.
    next: u64,
    told: bool,
}

/// The data plane of one worker.
#[derive(Debug)]
pub struct NetPlane {
    switch: Switch,
    sched: Scheduler,
    clock: Clock,
    poller: Poller,
    ports: Vec<Option<PortHere>>,
    /// Index into `ports` by entity.
    by_entity: Box<[u16]>,
    burst: Burst,
    /// Bells of queues that are gone: a front-end that comes and goes makes no new ones.
    bells: Vec<Bell>,
    events: Events,
    /// Uplinks wait for the sessions that a predecessor left: what comes in would find nobody.
    holds_uplinks: bool,
    /// Nothing is forwarded any more: a port that sends would find others gone.
    paused: bool,
}

impl NetPlane {
    /// A plane without ports.
    #[must_use]
    pub fn new(context: Context, fdb: Arc<Fdb>, events: Events) -> NetPlane {
        let Context {
            poller,
            clock,
            index,
            ..
        } = context;
        NetPlane {
            switch: Switch::new(fdb, index, events.clone()),
            sched: Scheduler::new(clock.rate(), clock.now()),
            clock,
            poller,
            ports: Vec::new(),
            by_entity: vec![0; MAX_ENTITIES].into(),
            burst: Burst::new(),
            bells: Vec::new(),
            events,
            holds_uplinks: false,
            paused: false,
        }
    }

    /// Whether it looks at no uplink before [`Change::ReleaseUplinks`].
    #[must_use]
    pub fn holding_uplinks(self, holds_uplinks: bool) -> NetPlane {
        NetPlane {
            holds_uplinks,
            ..self
        }
    }

    /// When an uplink that had nothing is looked at next, at the soonest.
    fn soon(&self) -> u64 {
        if self.holds_uplinks { u64::MAX } else { 0 }
    }

    #[inline]
    fn moment(&self, now: Cycles) -> Moment {
        moment(&self.clock, now)
    }
}

/// The time in all its units. The control thread uses it too: seconds are the same for all.
#[inline]
#[must_use]
pub fn moment(clock: &Clock, now: Cycles) -> Moment {
    let ns = clock.rate().ns(now);
    Moment {
        cycles: now,
        ns,
        seconds: u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX),
    }
}

impl PortHere {
    /// Forward a burst of each queue; gives how many frames that were.
    #[inline]
    fn serve(&mut self, switch: &mut Switch, burst: &mut Burst, now: Moment) -> usize {
        let mut frames = 0;
        for queue in &mut self.queues {
            frames += queue.visit(switch, burst, now);
        }
        if let Some(control) = &mut self.control {
            frames += control.visit(burst);
        }
        for uplink in &mut self.uplinks {
            frames += uplink.serve(self.no, switch, now);
        }
        frames
    }

    /// Notify the drivers of what was taken from them in this step.
    #[inline]
    fn settle(&mut self) {
        if std::mem::take(&mut self.worked) {
            self.queues.iter_mut().for_each(GuestTx::settle);
        }
    }

    #[inline]
    fn tell_broken(&mut self, events: &Events) {
        let data = self.queues.iter_mut();
        let data = data.filter_map(|q| Some((q.index(), q.newly_broken()?)));
        let control = self.control.iter_mut();
        let control = control.filter_map(|q| Some((q.index(), q.newly_broken()?)));
        for (queue, violation) in data.chain(control) {
            if let Some(shared) = self.shared.queues.get(usize::from(queue)) {
                shared.set_broken(Some(violation));
            }
            events.tell(Event::Broken {
                port: Arc::clone(&self.name),
                queue,
                violation,
            });
        }
    }

    fn publish(&mut self, events: &Events) {
        for queue in &mut self.queues {
            let index = usize::from(queue.index());
            if let Some(shared) = self.shared.queues.get(index) {
                shared.counters.publish(queue.report());
            }
        }
        for uplink in &mut self.uplinks {
            uplink.publish(&self.shared);
            if let Some(error) = uplink.uplink.failed()
                && !std::mem::replace(&mut uplink.told, true)
            {
                let error = error.to_string();
                self.shared.fail(Some(error.clone()));
                events.tell(Event::UplinkFailed {
                    port: Arc::clone(&self.name),
                    error,
                });
            }
        }
    }
}

impl UplinkHere {
    fn publish(&self, shared: &PortShared) {
        if let Some(shared) = shared.queues.get(usize::from(self.queue) * 2 + 1) {
            shared.counters.publish(&self.rx);
        }
    }

    fn serve(&mut self, port: PortNo, switch: &mut Switch, now: Moment) -> usize {
        if now.ns < self.next {
            return 0;
        }
        let frames = self.uplink.receive(BURST);
        if frames == 0 {
            self.next = now.ns + UPLINK_PAUSE;
            return 0;
        }
        let ingress = Ingress {
            port,
            may_send: Offloads::ALL,
            trusted: true,
            counters: &mut self.rx,
        };
        switch.forward(Source::Uplink(&*self.uplink, frames), ingress, now);
        frames
    }
}

impl Plane for NetPlane {
    type Change = Change;

    fn apply(&mut self, change: Change, now: Cycles) {
        self.change(change, now);
    }

    fn step(&mut self, now: Cycles) -> bool {
        if self.paused {
            return false;
        }
        let moment = self.moment(now);
        let NetPlane {
            switch,
            sched,
            clock,
            ports,
            by_entity,
            burst,
            events,
            ..
        } = self;
        sched.wake_all();
        let mut last = now;
        let worked = sched.pass(now, |entity| {
            let at = usize::from(by_entity[entity.index()]);
            let Some(Some(port)) = ports.get_mut(at) else {
                return Outcome::Idle;
            };
            if port.serve(switch, burst, moment) == 0 {
                port.tell_broken(events);
                return Outcome::Idle;
            }
            port.worked = true;
            let cost = clock.now().since(last);
            last += cost;
            Outcome::Worked(cost)
        });
        if worked {
            // Once for all rings of the step: each driver's wish is read after what it is about is
            // visible.
            fence();
            switch.settle();
            ports.iter_mut().flatten().for_each(PortHere::settle);
        }
        worked
    }

    fn arm(&mut self) -> bool {
        if self.paused {
            return false;
        }
        let mut work = false;
        for port in self.ports.iter_mut().flatten() {
            // A parked port's work waits for its cap, which the deadline is about.
            let parked = self.sched.is_parked(port.entity);
            for queue in &mut port.queues {
                work |= queue.arm() && !parked;
            }
            if let Some(control) = &mut port.control {
                work |= control.arm() && !parked;
            }
        }
        // Uplinks wake by an edge after the look that found nothing.
        work
    }

    fn disarm(&mut self) {
        let soon = self.soon();
        for port in self.ports.iter_mut().flatten() {
            port.queues.iter_mut().for_each(GuestTx::disarm);
            port.control.iter_mut().for_each(GuestCtrl::disarm);
            for uplink in &mut port.uplinks {
                uplink.next = soon;
            }
        }
    }

    fn housekeep(&mut self, _: Cycles) {
        let tables = self.switch.tables();
        for port in self.ports.iter_mut().flatten() {
            port.publish(&self.events);
            port.tell_broken(&self.events);
            if port.poisoned {
                continue;
            }
            let mut poisoned = port.queues.iter().any(GuestTx::check_poison);
            poisoned |= port.control.iter().any(GuestCtrl::check_poison);
            if let Some(Egress::Guest(queues)) = tables.port(port.no).map(|p| &*p.egress) {
                poisoned |= queues.check_poison();
            }
            if poisoned {
                port.poisoned = true;
                self.events.tell(Event::Poisoned {
                    port: Arc::clone(&port.name),
                });
            }
        }
    }

    fn deadline(&self, now: Cycles) -> Option<Cycles> {
        self.sched.next_release(now)
    }
}

#[cfg(test)]
mod tests;
