//! A network card whose cable leads back into it: what is sent on a pair arrives on that pair.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::HEADER;
use crate::chain::Burst;
use crate::mem::Mem;
use crate::ring::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_VERSION_1, Ring};
use crate::session::{Attach, Device, DeviceGone, Update};
use crate::testing::bed::SOON;
use crate::testing::feature;

/// Queue pairs it has; the queue after them answers commands with 0.
pub(super) const PAIRS: u16 = 2;

#[derive(Debug, Default)]
struct Card {
    queues: BTreeMap<u16, Attach>,
    mergeable: bool,
}

#[derive(Debug)]
pub(super) struct Loopback {
    card: Arc<Mutex<Card>>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Loopback {
    pub(super) fn new() -> Arc<Self> {
        let (card, stop): (Arc<Mutex<Card>>, Arc<AtomicBool>) = Default::default();
        let (hers, end) = (Arc::clone(&card), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                hers.lock().unwrap_or_else(PoisonError::into_inner).step();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Arc::new(Self {
            card,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }
}

impl Card {
    fn step(&mut self) {
        for pair in 0..PAIRS {
            let (rx, tx) = (2 * pair, 2 * pair + 1);
            let Some(mut tx) = self.queues.remove(&tx).map(|a| (tx, a)) else {
                continue;
            };
            if let Some(rx) = self.queues.get_mut(&rx) {
                while forward(&mut tx.1, rx, self.mergeable) {}
            }
            self.queues.insert(tx.0, tx.1);
        }
        if let Some(control) = self.queues.get_mut(&(2 * PAIRS)) {
            let mut burst = Burst::new();
            control.ring.pop(&mut burst, 1);
            for chain in burst.iter() {
                let ack = chain.last_writable_byte().unwrap();
                assert!(control.ring.mem().write(ack, &[0]));
                control.ring.put(chain.id, 1);
            }
            finish(control);
        }
    }
}

/// One frame from `tx` to `rx`; it waits in the loop's stead for receive buffers.
fn forward(tx: &mut Attach, rx: &mut Attach, mergeable: bool) -> bool {
    let mut burst = Burst::new();
    if tx.ring.pop(&mut burst, 1) == 0 {
        return false;
    }
    let chain = burst.get(0).unwrap();
    let mut bytes = vec![0; usize::try_from(chain.readable_len).unwrap()];
    assert!(chain.read(tx.ring.mem(), &mut bytes));
    tx.ring.put(chain.id, 0);
    finish(tx);
    let mut taken = Vec::new();
    let mut room = 0;
    let deadline = Instant::now() + SOON;
    while room < bytes.len() {
        assert!(Instant::now() < deadline, "no receive buffers");
        let mut burst = Burst::new();
        if rx.ring.pop(&mut burst, 1) == 0 {
            std::thread::yield_now();
            continue;
        }
        room += usize::try_from(burst.get(0).unwrap().writable_len).unwrap();
        taken.push(burst);
    }
    assert!(mergeable || taken.len() == 1, "{} buffers", taken.len());
    let count = u16::try_from(taken.len()).unwrap();
    bytes[HEADER - 2..HEADER].copy_from_slice(&count.to_le_bytes());
    let mut rest = &bytes[..];
    for burst in &taken {
        let chain = burst.get(0).unwrap();
        let before = rest.len();
        for segment in chain.writable {
            let n = rest.len().min(segment.len() as usize);
            assert!(rx.ring.mem().write(*segment, &rest[..n]));
            rest = &rest[n..];
        }
        rx.ring
            .put(chain.id, u32::try_from(before - rest.len()).unwrap());
    }
    finish(rx);
    true
}

fn finish(queue: &mut Attach) {
    if queue.ring.publish()
        && let Some(call) = &queue.call
    {
        rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Device for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn features(&self) -> u64 {
        F_VERSION_1
            | F_INDIRECT_DESC
            | F_EVENT_IDX
            | F_IN_ORDER
            | feature::NET_MODERN
            | feature::NET_OFFLOADS
    }

    fn max_queues(&self) -> u16 {
        2 * PAIRS + 1
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) -> bool {
        // Address, status, pairs, MTU (section 5.1.4).
        let config = [2, 0x54, 0, 0, 0, 1, 1, 0, 2, 0, 0xdc, 5];
        let from = usize::try_from(offset).unwrap();
        let Some(bytes) = config.get(from..from + buf.len()) else {
            return false;
        };
        buf.copy_from_slice(bytes);
        true
    }

    fn write_config(&self, _: u32, _: &[u8]) -> bool {
        false
    }

    fn negotiated(&self, features: u64) {
        self.card.lock().unwrap().mergeable = features & feature::NET_MRG_RXBUF != 0;
    }

    fn memory(&self, _: &Arc<Mem>) {}

    fn attach(&self, queue: u16, attach: Attach) -> Result<(), DeviceGone> {
        self.card.lock().unwrap().queues.insert(queue, attach);
        Ok(())
    }

    fn detach(&self, queue: u16) -> Option<Ring> {
        let attach = self.card.lock().unwrap().queues.remove(&queue)?;
        Some(attach.ring)
    }

    fn update(&self, queue: u16, update: Update) {
        let mut card = self.card.lock().unwrap();
        let Some(attach) = card.queues.get_mut(&queue) else {
            return;
        };
        match update {
            Update::Call(fd) => attach.call = fd,
            Update::Err(fd) => attach.err = fd,
            Update::Enabled(on) => attach.enabled = on,
        }
    }

    fn disconnected(&self) {}
}
