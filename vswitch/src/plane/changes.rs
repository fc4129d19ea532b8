//! What changes on a worker between two bursts: tables, ports, queues.

use std::sync::Arc;

use arrayvec::ArrayVec;
use towpath_common::bell::Bell;
use towpath_common::clock::Cycles;
use towpath_common::ring::{Ring, fence};
use towpath_common::session::Attach;

use super::{Change, NetPlane, NewPort, PortHere, SHORTEST, UplinkHere};
use crate::batch::Source;
use crate::ctrl::Control;
use crate::egress::Egress;
use crate::fdb::PortNo;
use crate::head::TAG;
use crate::net::Offloads;
use crate::port::Uplink;
use crate::port::guest_ctrl::GuestCtrl;
use crate::port::guest_tx::GuestTx;
use crate::stats::QueueCounters;
use crate::switch::Ingress;
use crate::vlan::{self, TPID};

impl NetPlane {
    /// Carry out a change.
    pub(super) fn change(&mut self, change: Change, now: Cycles) {
        match change {
            Change::Tables(tables, reply) => reply.send(self.switch.set_tables(tables)),
            Change::AddPort(new, reply) => reply.send(self.add_port(new, now)),
            Change::RemovePort(no, reply) => {
                self.remove_port(no);
                reply.send(());
            }
            Change::SetShare(no, share) => {
                if let Some(entity) = self.find(no).map(|p| p.entity) {
                    self.sched.set_share(entity, share, now);
                }
            }
            Change::AddUplink(no, queue, uplink, reply) => {
                reply.send(self.add_uplink(no, queue, uplink));
            }
            Change::Pause(reply) => {
                self.paused = true;
                reply.send(());
            }
            Change::ReleaseUplinks => {
                self.holds_uplinks = false;
                let ports = self.ports.iter_mut().flatten();
                ports
                    .flat_map(|port| &mut port.uplinks)
                    .for_each(|uplink| uplink.next = 0);
            }
            Change::RemoveUplink(no, reply) => reply.send(self.remove_uplink(no)),
            Change::Attach(no, queue, attach, features, reply) => {
                reply.send(self.attach(no, queue, *attach, features));
            }
            Change::AttachControl(no, queue, attach, control, egress, reply) => {
                reply.send(self.attach_control(no, queue, *attach, control, egress));
            }
            Change::Detach(no, queue, reply) => {
                // An unknown queue: dropping the reply tells the caller.
                if let Some(ring) = self.detach(no, queue) {
                    reply.send(ring);
                }
            }
            Change::Update(no, index, update, reply) => {
                if let Some(port) = self.find(no) {
                    if let Some(control) = port.control.as_mut().filter(|c| c.index() == index) {
                        control.update(update);
                    } else if let Some(queue) = port.queues.iter_mut().find(|q| q.index() == index)
                    {
                        queue.update(update);
                    }
                }
                reply.send(());
            }
            Change::Inject(no, frame) => self.inject(no, &frame, now),
            Change::Tap(tap, reply) => reply.send(self.switch.tap(tap)),
            Change::Untap(id, reply) => reply.send(self.switch.untap(id)),
            Change::Recent(from, mut records, reply) => {
                let next = self.switch.recent().copy_into(from, &mut records);
                reply.send((records, next));
            }
        }
    }

    fn find(&mut self, no: PortNo) -> Option<&mut PortHere> {
        self.ports.iter_mut().flatten().find(|p| p.no == no)
    }

    /// Forward an untagged frame as if it had come from a port, in each VLAN that the port carries.
    fn inject(&mut self, no: PortNo, frame: &[u8; SHORTEST], now: Cycles) {
        let now = self.moment(now);
        let tables = Arc::clone(self.switch.tables());
        let Some(mode) = tables.port(no).map(|port| &port.mode) else {
            return;
        };
        for vid in mode.few().iter() {
            let (addresses, rest) = frame.split_at(12);
            let mut bytes = ArrayVec::<u8, { SHORTEST + TAG }>::new();
            bytes.extend(addresses.iter().copied());
            if mode.egress(vid) == Some(vlan::Egress::Tagged) {
                bytes.extend(TPID.to_be_bytes());
                bytes.extend(vid.get().to_be_bytes());
            }
            bytes.extend(rest.iter().copied());
            let ingress = Ingress {
                port: no,
                may_send: Offloads::NONE,
                trusted: true,
                counters: &mut QueueCounters::default(),
            };
            self.switch.forward(Source::Frame(&bytes), ingress, now);
        }
        fence();
        self.switch.settle();
    }

    fn add_port(&mut self, new: NewPort, now: Cycles) -> bool {
        let Ok(entity) = self.sched.add(new.share, now) else {
            return false;
        };
        let here = PortHere {
            no: new.no,
            name: new.name,
            entity,
            queues: Vec::new(),
            control: None,
            uplinks: Vec::new(),
            shared: new.shared,
            worked: false,
            poisoned: false,
        };
        let at = self.ports.iter().position(Option::is_none);
        let at = at.unwrap_or_else(|| {
            self.ports.push(None);
            self.ports.len() - 1
        });
        self.by_entity[entity.index()] = u16::try_from(at).unwrap_or(u16::MAX);
        self.ports[at] = Some(here);
        true
    }

    fn remove_port(&mut self, no: PortNo) {
        for place in &mut self.ports {
            if let Some(port) = place.take_if(|p| p.no == no) {
                self.sched.remove(port.entity);
                // What the caller did not ask back: others may keep the same files open, and they
                // would go on waking this worker.
                let kicks = port.queues.iter().filter_map(GuestTx::kick);
                let kicks = kicks.chain(port.control.iter().filter_map(GuestCtrl::kick));
                let uplinks = port.uplinks.iter().map(|here| here.uplink.fd());
                kicks.chain(uplinks).for_each(|fd| self.poller.remove(fd));
            }
        }
    }

    fn add_uplink(&mut self, no: PortNo, queue: u16, uplink: Box<dyn Uplink>) -> bool {
        let next = self.soon();
        let Some(port) = self.ports.iter_mut().flatten().find(|p| p.no == no) else {
            return false;
        };
        if self.poller.add(uplink.fd()).is_err() {
            return false;
        }
        let shared = port.shared.queues.get(usize::from(queue) * 2 + 1);
        let rx = shared.map(|q| q.counters.snapshot()).unwrap_or_default();
        port.uplinks.push(UplinkHere {
            uplink,
            queue,
            rx,
            next,
            told: false,
        });
        true
    }

    fn remove_uplink(&mut self, no: PortNo) -> Option<Box<dyn Uplink>> {
        let port = self.find(no)?;
        let here = port.uplinks.pop()?;
        here.publish(&port.shared);
        self.poller.remove(here.uplink.fd());
        Some(here.uplink)
    }

    fn attach(&mut self, no: PortNo, index: u16, attach: Attach, features: u64) -> bool {
        let Some(port) = self.ports.iter_mut().flatten().find(|p| p.no == no) else {
            return false;
        };
        let Ok(bell) = self.bells.pop().map_or_else(Bell::new, Ok) else {
            return false;
        };
        let counters = port.shared.queues.get(usize::from(index)).map(|q| {
            q.set_broken(None);
            q.counters.snapshot()
        });
        let counters = counters.unwrap_or_default();
        let Ok(queue) = GuestTx::new(no, index, attach, bell, counters, features) else {
            return false;
        };
        if queue
            .kick()
            .is_some_and(|kick| self.poller.add(kick).is_err())
        {
            self.bells.extend(queue.into_parts().1);
            return false;
        }
        port.queues.push(queue);
        port.queues.sort_by_key(GuestTx::index);
        port.poisoned = false;
        true
    }

    fn attach_control(
        &mut self,
        no: PortNo,
        index: u16,
        attach: Attach,
        control: Control,
        egress: Arc<Egress>,
    ) -> bool {
        let Some(port) = self.ports.iter_mut().flatten().find(|p| p.no == no) else {
            return false;
        };
        let Ok(bell) = self.bells.pop().map_or_else(Bell::new, Ok) else {
            return false;
        };
        let Ok(queue) = GuestCtrl::new(index, attach, bell, control, egress) else {
            return false;
        };
        if queue
            .kick()
            .is_some_and(|kick| self.poller.add(kick).is_err())
        {
            self.bells.extend(queue.into_parts().1);
            return false;
        }
        if let Some(shared) = port.shared.queues.get(usize::from(index)) {
            shared.set_broken(None);
        }
        port.control = Some(queue);
        port.poisoned = false;
        true
    }

    fn detach(&mut self, no: PortNo, index: u16) -> Option<Ring> {
        let port = self.ports.iter_mut().flatten().find(|p| p.no == no)?;
        if let Some(control) = port.control.take_if(|c| c.index() == index) {
            if let Some(kick) = control.kick() {
                self.poller.remove(kick);
            }
            let (ring, bell) = control.into_parts();
            self.bells.extend(bell);
            return Some(ring);
        }
        let at = port.queues.iter().position(|q| q.index() == index)?;
        let mut queue = port.queues.remove(at);
        if let Some(shared) = port.shared.queues.get(usize::from(index)) {
            shared.counters.publish(queue.report());
        }
        if let Some(kick) = queue.kick() {
            self.poller.remove(kick);
        }
        let (ring, bell) = queue.into_parts();
        self.bells.extend(bell);
        Some(ring)
    }
}
