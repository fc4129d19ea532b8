//! The worker's side of an echo device: the rings of all devices on it, visited in turn.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{Change, Conduct, Diary, Key, lock};
use crate::bell::Bell;
use crate::chain::{Burst, Chain};
use crate::clock::Cycles;
use crate::mem::{DirtyLog, Mem};
use crate::ring::Ring;
use crate::session::{Alarm, Attach, Update};
use crate::worker::{Context, Plane};

/// One ring and what belongs to it.
#[derive(Debug)]
struct Queue {
    ring: Ring,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    err: Option<OwnedFd>,
    bell: Bell,
    enabled: bool,
    alarm: Arc<Alarm>,
    diary: Arc<Diary>,
    /// Chains in flight: head, bytes written.
    held: Vec<(u16, u32)>,
    reported: bool,
}

/// The worker's plane: the queues of all devices on it.
#[derive(Debug)]
pub(super) struct Room {
    context: Context,
    queues: BTreeMap<Key, Queue>,
    holding: Vec<u16>,
    burst: Burst,
}

impl Room {
    pub(super) fn new(context: Context) -> Room {
        Room {
            context,
            queues: BTreeMap::new(),
            holding: Vec::new(),
            burst: Burst::new(),
        }
    }

    /// Take a queue out, unwatched.
    fn remove(&mut self, key: Key) -> Option<Queue> {
        let queue = self.queues.remove(&key)?;
        if let Some(kick) = &queue.kick {
            self.context.poller.remove(kick.as_fd());
        }
        Some(queue)
    }
}

/// Signal an eventfd that a front-end may have filled and made blocking.
fn signal(bell: &mut Bell, fd: Option<&OwnedFd>) {
    if bell.aim(fd.map(AsFd::as_fd)).is_ok() {
        bell.ring();
    }
}

/// Copy the readable bytes into the writable part, as far as it reaches; gives how many.
fn echo(mem: &Mem, log: Option<&DirtyLog>, chain: &Chain<'_>, bytes: &[u8]) -> u32 {
    let mut rest = bytes;
    for seg in chain.writable {
        let n = rest.len().min(seg.len() as usize);
        let (now, later) = rest.split_at(n);
        if !mem.write(*seg, now) {
            break;
        }
        if let Some(log) = log {
            log.mark(mem.gpa(*seg), n as u64);
        }
        rest = later;
    }
    u32::try_from(bytes.len() - rest.len()).unwrap_or(u32::MAX)
}

impl Queue {
    fn finish(&mut self) {
        for (head, written) in self.held.drain(..) {
            self.ring.put(head, written);
        }
        if self.ring.publish() {
            signal(&mut self.bell, self.call.as_ref());
        }
    }

    fn finish_one(&mut self, head: u16) -> bool {
        let Some(at) = self.held.iter().position(|(held, _)| *held == head) else {
            return false;
        };
        let (head, written) = self.held.remove(at);
        self.ring.put(head, written);
        if self.ring.publish() {
            signal(&mut self.bell, self.call.as_ref());
        }
        true
    }

    /// One visit; how many chains there were.
    fn visit(&mut self, key: Key, burst: &mut Burst, hold: bool) -> usize {
        let n = self.ring.pop(burst, crate::chain::BURST);
        let mem = Arc::clone(self.ring.mem());
        for chain in burst.iter() {
            // What a guest may claim to send is bounded by its memory, not by this.
            let mut bytes = vec![0; usize::try_from(chain.readable_len.min(1 << 20)).unwrap_or(0)];
            let _ = chain.read(&mem, &mut bytes);
            let written = echo(&mem, self.ring.log(), &chain, &bytes);
            lock(&self.diary.seen).push((key.1, chain.id, bytes));
            self.held.push((chain.id, written));
        }
        if !hold {
            self.finish();
        }
        if let Some(why) = self.ring.broken()
            && !std::mem::replace(&mut self.reported, true)
        {
            lock(&self.diary.broken).push((key.1, why));
            signal(&mut self.bell, self.err.as_ref());
        }
        if mem.poisoned() {
            self.alarm.raise();
        }
        n
    }
}

impl Plane for Room {
    type Change = Change;

    #[expect(clippy::panic, reason = "a test asks for it")]
    fn apply(&mut self, change: Change, _: Cycles) {
        match change {
            Change::Attach(key, attach, diary, reply) => {
                let Attach {
                    ring,
                    kick,
                    call,
                    err,
                    enabled,
                    alarm,
                    ..
                } = *attach;
                // Dropping the reply tells the session that the ring was not taken.
                let Ok(bell) = Bell::new() else { return };
                if let Some(kick) = &kick {
                    let _ = self.context.poller.add(kick.as_fd());
                }
                let queue = Queue {
                    ring,
                    kick,
                    call,
                    err,
                    bell,
                    enabled,
                    alarm,
                    diary,
                    held: Vec::new(),
                    reported: false,
                };
                self.queues.insert(key, queue);
                reply.send(());
            }
            Change::Detach(key, reply) => reply.send(self.remove(key).map(|mut queue| {
                queue.finish();
                queue.ring
            })),
            Change::Update(key, update, reply) => {
                if let Some(queue) = self.queues.get_mut(&key) {
                    match update {
                        Update::Call(fd) => queue.call = fd,
                        Update::Err(fd) => queue.err = fd,
                        Update::Enabled(on) => queue.enabled = on,
                    }
                }
                reply.send(());
            }
            Change::Conduct(device, conduct, reply) => {
                self.holding.retain(|d| *d != device);
                if conduct == Conduct::Hold {
                    self.holding.push(device);
                } else {
                    let mine = self.queues.iter_mut().filter(|(key, _)| key.0 == device);
                    mine.for_each(|(_, queue)| queue.finish());
                }
                reply.send(());
            }
            Change::Finish(key, head, reply) => {
                let queue = self.queues.get_mut(&key);
                reply.send(queue.is_some_and(|queue| queue.finish_one(head)));
            }
            Change::Lose(device, reply) => {
                let keys: Vec<Key> = self.queues.keys().copied().collect();
                let mine = keys.into_iter().filter(|key| key.0 == device);
                let lost: Vec<Queue> = mine.filter_map(|key| self.remove(key)).collect();
                reply.send(lost.iter().map(|queue| queue.held.len()).sum());
            }
            Change::Die => panic!("the test asked the worker to panic"),
        }
    }

    fn step(&mut self, _: Cycles) -> bool {
        let mut worked = false;
        for (key, queue) in &mut self.queues {
            if queue.enabled {
                let hold = self.holding.contains(&key.0);
                worked |= queue.visit(*key, &mut self.burst, hold) > 0;
            }
        }
        worked
    }

    fn arm(&mut self) -> bool {
        let mut work = false;
        for queue in self.queues.values_mut().filter(|queue| queue.enabled) {
            // Without a kick fd there is nothing to wait for: poll.
            let poll = queue.kick.is_none() && queue.ring.broken().is_none();
            work |= queue.ring.arm() | poll;
        }
        work
    }

    fn disarm(&mut self) {
        for queue in self.queues.values_mut() {
            queue.ring.disarm();
        }
    }

    fn housekeep(&mut self, _: Cycles) {}

    fn deadline(&self, _: Cycles) -> Option<Cycles> {
        None
    }
}
