//! An engine that fails on demand: wraps any other and makes it short, refuse, delay, reorder and
//! lie, by a script or by a seed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::{Completion, Completions, DiskId, Engine, Guest, MemId, Op, Token, Verb};
use crate::disk::Disk;

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Only so many bytes are moved.
    Short(u64),
    /// It is not done, and ends with this errno.
    Fail(Errno),
    /// It is not taken: `push` says EAGAIN.
    Refuse,
    /// It is not done, and does not end before [`Faulty::let_go`].
    Hang,
}

/// How often things go wrong, in 256ths.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chances {
    /// [`Fault::Short`] by a random length, in whole sectors.
    pub short: u8,
    /// [`Fault::Fail`] with EAGAIN or EINTR.
    pub transient: u8,
    /// [`Fault::Fail`] with EIO, ENOSPC or ETIMEDOUT.
    pub hard: u8,
    /// [`Fault::Refuse`].
    pub refuse: u8,
    /// A completion is held back for up to seven calls of `reap`, and overtaken meanwhile.
    pub delay: u8,
}

/// An operation as it was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What.
    pub verb: Verb,
    /// Where.
    pub offset: u64,
    /// How much.
    pub len: u64,
    /// Durable.
    pub durable: bool,
}

/// The wrapper.
#[derive(Debug)]
pub struct Faulty<E> {
    inner: E,
    /// Faults of the next operations of each verb; before chance has a say.
    script: VecDeque<(Verb, Fault)>,
    chances: Chances,
    state: u64,
    /// Completions not told of yet, and for how many calls.
    held: Vec<(u64, Completion)>,
    hung: Vec<Completion>,
    /// All that was pushed and taken.
    pub seen: Vec<Seen>,
}

impl<E: Engine> Faulty<E> {
    /// An engine that does as `inner` does.
    pub fn new(inner: E) -> Faulty<E> {
        Faulty {
            inner,
            script: VecDeque::new(),
            chances: Chances::default(),
            state: 0,
            held: Vec::new(),
            hung: Vec::new(),
            seen: Vec::new(),
        }
    }

    /// Let the next operation of `verb` that no earlier script line is for meet `fault`.
    pub fn script(mut self, verb: Verb, fault: Fault) -> Faulty<E> {
        self.script.push_back((verb, fault));
        self
    }

    /// Let things go wrong at random.
    pub fn chances(mut self, chances: Chances, seed: u64) -> Faulty<E> {
        self.chances = chances;
        self.state = seed;
        self
    }

    /// Add to the script of an engine in use.
    pub fn expect(&mut self, verb: Verb, fault: Fault) {
        self.script.push_back((verb, fault));
    }

    /// Let what hangs end, with EIO.
    pub fn let_go(&mut self) {
        self.held.extend(self.hung.drain(..).map(|one| (0, one)));
    }

    /// The engine inside.
    pub fn inner_mut(&mut self) -> &mut E {
        &mut self.inner
    }

    /// The next number of splitmix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn hit(&mut self, chance: u8) -> bool {
        self.random() % 256 < u64::from(chance)
    }

    fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.random()).unwrap_or(0) % count
    }

    fn fault(&mut self, op: &Op<'_>) -> Fault {
        if let Some(line) = self.script.iter().position(|(verb, _)| *verb == op.verb) {
            return self
                .script
                .remove(line)
                .map_or(Fault::None, |(_, fault)| fault);
        }
        let transfer = matches!(op.verb, Verb::Read | Verb::Write);
        if self.hit(self.chances.refuse) {
            Fault::Refuse
        } else if self.hit(self.chances.transient) {
            let both = [Errno::AGAIN, Errno::INTR];
            Fault::Fail(both[usize::from(self.hit(128))])
        } else if self.hit(self.chances.hard) {
            let all = [Errno::IO, Errno::NOSPC, Errno::TIMEDOUT];
            Fault::Fail(all[self.pick(all.len())])
        } else if transfer && op.len > 512 && self.hit(self.chances.short) {
            Fault::Short((1 + self.random() % (op.len / 512 - 1).max(1)) * 512)
        } else {
            Fault::None
        }
    }
}

impl<E: Engine> Engine for Faulty<E> {
    fn push(&mut self, token: Token, op: &Op<'_>) -> Result<(), Errno> {
        let mut op = *op;
        let fault = self.fault(&op);
        if fault == Fault::Refuse {
            return Err(Errno::AGAIN);
        }
        self.seen.push(Seen {
            verb: op.verb,
            offset: op.offset,
            len: op.len,
            durable: op.durable,
        });
        if fault == Fault::Hang {
            let result = -Errno::IO.raw_os_error();
            self.hung.push(Completion { token, result });
            return Ok(());
        }
        let result = match fault {
            Fault::Short(0) => 0,
            Fault::Fail(errno) => -errno.raw_os_error(),
            Fault::Short(n) => {
                op.len = op.len.min(n);
                return self.inner.push(token, &op);
            }
            Fault::None | Fault::Refuse | Fault::Hang => return self.inner.push(token, &op),
        };
        self.held.push((0, Completion { token, result }));
        Ok(())
    }

    fn submit(&mut self) -> usize {
        self.inner.submit()
    }

    fn reap(&mut self, done: &mut Completions) {
        loop {
            let mut batch = Completions::new();
            self.inner.reap(&mut batch);
            for one in &batch {
                let late = self.hit(self.chances.delay);
                let calls = if late { 1 + self.random() % 7 } else { 0 };
                self.held.push((calls, *one));
            }
            if !batch.is_full() {
                break;
            }
        }
        self.held.retain_mut(|(calls, one)| {
            let keep = *calls > 0 || done.is_full();
            *calls = calls.saturating_sub(1);
            if !keep {
                done.push(*one);
            }
            keep
        });
    }

    fn arm(&mut self) -> bool {
        self.inner.arm() || !self.held.is_empty()
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }

    fn set_disk(&mut self, id: DiskId, disk: Option<&Disk>) -> io::Result<()> {
        self.inner.set_disk(id, disk)
    }

    fn set_file(&mut self, id: DiskId, file: BorrowedFd<'_>) -> io::Result<()> {
        self.inner.set_file(id, file)
    }

    fn set_memory(&mut self, id: MemId, guest: Option<&Guest>) -> io::Result<()> {
        self.inner.set_memory(id, guest)
    }
}
