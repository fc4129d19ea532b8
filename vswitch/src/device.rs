//! A port as a vhost-user device: what its session asks, passed on to egress and workers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_common::bell::Bell;
use towpath_common::keep::Settings;
use towpath_common::mem::Mem;
use towpath_common::ring::Ring;
use towpath_common::session::{Attach, Device, DeviceGone, F_LOG_ALL, P_NET_MTU, P_RARP, Update};
use towpath_common::worker::Handle;
use tracing::error;

use crate::ctrl::Control;
use crate::egress::Egress;
use crate::fdb::PortNo;
use crate::features::{self, Card, NetConfig};
use crate::plane::{Change, SHORTEST};
use crate::port::guest::GuestRx;
use crate::stats::PortShared;

/// A guest's network card, as its front-end sees it.
#[derive(Debug)]
pub struct NetDevice {
    name: Arc<str>,
    no: PortNo,
    card: Card,
    egress: Arc<Egress>,
    shared: Arc<PortShared>,
    config: Mutex<NetConfig>,
    /// Features the driver accepted.
    accepted: AtomicU64,
    /// The workers; transmit queue of pair `i` belongs to worker `(no + i) % len`.
    workers: Vec<Handle<Change>>,
    /// Bells of receive queues that are gone.
    bells: Mutex<Vec<Bell>>,
}

impl NetDevice {
    /// The device of port `no`, as `card` shows it to its driver.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        no: PortNo,
        card: Card,
        egress: Arc<Egress>,
        shared: Arc<PortShared>,
        workers: Vec<Handle<Change>>,
    ) -> NetDevice {
        NetDevice {
            name,
            no,
            card,
            egress,
            shared,
            config: Mutex::new(NetConfig::new(card)),
            accepted: AtomicU64::new(0),
            workers,
            bells: Mutex::default(),
        }
    }

    /// Which worker polls the transmit queue of a pair.
    #[must_use]
    pub fn worker_of(no: PortNo, pair: u16, workers: usize) -> usize {
        (usize::from(no.0) + usize::from(pair)) % workers.max(1)
    }

    /// A poisoned lock only means that some thread panicked while it copied bytes.
    fn config(&self) -> MutexGuard<'_, NetConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `queue` is the control queue (virtio 1.3, 5.1.2: after the last pair in use).
    fn is_control(&self, queue: u16) -> bool {
        let features = self.accepted.load(Relaxed);
        let pairs = if features & features::MQ != 0 {
            self.card.pairs
        } else {
            1
        };
        features & features::CTRL_VQ != 0 && queue == pairs * 2
    }

    fn worker(&self, queue: u16) -> Option<&Handle<Change>> {
        let at = Self::worker_of(self.no, queue / 2, self.workers.len());
        self.workers.get(at)
    }

    /// Receive queues come first in each pair (virtio 1.3, 5.1.2).
    fn is_receive(&self, queue: u16) -> bool {
        queue.is_multiple_of(2) && !self.is_control(queue)
    }

    fn attach_receive(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone> {
        let bell = self
            .bells
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let bell = bell.map_or_else(Bell::new, Ok).map_err(|_| DeviceGone)?;
        let counters = self.shared.queues.get(usize::from(queue)).map(|q| {
            q.set_broken(None);
            q.counters.snapshot()
        });
        let counters = counters.unwrap_or_default();
        let features = self.accepted.load(Relaxed);
        let rx = GuestRx::new(queue, attach, bell, counters, features).map_err(|_| DeviceGone)?;
        match &*self.egress {
            Egress::Guest(queues) => queues.install(queue / 2, rx).map_err(|_| DeviceGone),
            Egress::Uplink(_) => Err(DeviceGone),
        }
    }
}

impl Device for NetDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        features::offered(&self.card)
    }

    fn protocol_features(&self) -> u64 {
        P_RARP | P_NET_MTU
    }

    fn keeps_in_flight(&self) -> bool {
        // A burst is forwarded to the end before its worker does anything else.
        false
    }

    fn sends_to_others(&self, queue: u16) -> bool {
        !self.is_receive(queue) && !self.is_control(queue)
    }

    fn max_queues(&self) -> u16 {
        self.card.pairs * 2 + 1
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool {
        self.config().read(offset, buf)
    }

    fn write_config(&self, _offset: u32, _data: &[u8]) -> bool {
        false
    }

    fn negotiated(&self, features: u64) {
        let before = self.accepted.swap(features, Relaxed);
        // To log writes, for a migration, is the front-end's affair and not the driver's.
        if (before ^ features) & !F_LOG_ALL != 0 {
            self.reset();
        }
    }

    fn reset(&self) {
        if let Egress::Guest(queues) = &*self.egress {
            queues.reset();
        }
    }

    fn memory(&self, _: &Arc<Mem>) {}

    fn attach(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone> {
        if self.is_receive(queue) {
            return self.attach_receive(queue, attach);
        }
        let worker = self.worker(queue).ok_or(DeviceGone)?;
        let features = self.accepted.load(Relaxed);
        let attach = Box::new(attach);
        let answer = if self.is_control(queue) {
            let egress = Arc::clone(&self.egress);
            let said = match &*egress {
                Egress::Guest(queues) => (queues.pairs(), queues.offloads()),
                Egress::Uplink(_) => (None, None),
            };
            let control = Control::new(features, self.card.pairs).resumed(said.0, said.1);
            worker
                .call(|reply| Change::AttachControl(self.no, queue, attach, control, egress, reply))
        } else {
            worker.call(|reply| Change::Attach(self.no, queue, attach, features, reply))
        };
        if answer == Ok(true) {
            Ok(())
        } else {
            Err(DeviceGone)
        }
    }

    fn detach(&self, queue: u16) -> Option<Ring> {
        if self.is_receive(queue) {
            let Egress::Guest(queues) = &*self.egress else {
                return None;
            };
            let (ring, bell) = queues.remove(queue / 2)?;
            let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
            bells.extend(bell);
            return Some(ring);
        }
        let worker = self.worker(queue)?;
        match worker.call(|reply| Change::Detach(self.no, queue, reply)) {
            Ok(ring) => Some(ring),
            Err(error) => {
                error!(port = &*self.name, queue, %error, "queue not given back by its worker");
                None
            }
        }
    }

    fn update(&self, queue: u16, update: Update) {
        if self.is_receive(queue) {
            if let Egress::Guest(queues) = &*self.egress {
                queues.update(queue / 2, update);
            }
        } else if let Some(worker) = self.worker(queue) {
            // Waited for: a front-end that is told that its ring is enabled may send at once, and
            // frames on a disabled ring are dropped. A worker that is gone is reported by whoever
            // needs its answer.
            let _ = worker.call(|reply| Change::Update(self.no, queue, update, reply));
        }
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        // Larger frames than the port's are dropped: the guest must not be told that they pass.
        mtu <= self.card.mtu && self.config().set_mtu(mtu)
    }

    fn announce(&self, mac: [u8; 6]) {
        // A RARP request for itself (RFC 903), as QEMU sends where it can: switches on the way
        // learn where the guest is now.
        let mut frame = [0u8; SHORTEST];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&mac);
        frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        frame[22..28].copy_from_slice(&mac);
        frame[32..38].copy_from_slice(&mac);
        if let Some(worker) = self.workers.first() {
            let _ = worker.post(Change::Inject(self.no, Box::from(frame)));
        }
    }

    fn settings(&self) -> Settings {
        let mtu = self.config().card().mtu;
        let mut settings = Settings {
            mtu: (mtu != self.card.mtu).then_some(mtu),
            ..Settings::default()
        };
        if let Egress::Guest(queues) = &*self.egress {
            (settings.pairs, settings.offloads) = (queues.pairs(), queues.offloads());
        }
        settings
    }

    fn restore(&self, settings: &Settings) -> bool {
        if let Some(mtu) = settings.mtu {
            // If the port's is smaller now, the guest has read that other one long ago.
            let _ = self.set_mtu(mtu);
        }
        if let Egress::Guest(queues) = &*self.egress {
            if let Some(pairs) = settings.pairs.filter(|n| (1..=self.card.pairs).contains(n)) {
                queues.set_limit(pairs);
            }
            if let Some(offloads) = settings.offloads {
                queues.set_offloads(offloads & self.accepted.load(Relaxed));
            }
        }
        false
    }

    fn disconnected(&self) {
        *self.config() = NetConfig::new(self.card);
        self.accepted.store(0, Relaxed);
        self.reset();
    }
}

#[cfg(test)]
mod tests;
