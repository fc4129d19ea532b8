//! A guest's control queue, where the front-end leaves it to us (virtio 1.3, 5.1.6.5).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use towpath_common::bell::Bell;
use towpath_common::chain::{Burst, Chain};
use towpath_common::mem::Mem;
use towpath_common::ring::{Ring, Violation};
use towpath_common::session::{Attach, Update};

use super::line::Line;
use crate::ctrl::{self, Command, Control, MAX_COMMAND};
use crate::egress::Egress;

/// Commands carried out in one visit.
const COMMANDS: usize = 4;

/// A control queue, on the worker that polls it.
#[derive(Debug)]
pub struct GuestCtrl {
    ring: Ring,
    index: u16,
    kick: Option<OwnedFd>,
    line: Line,
    control: Control,
    egress: Arc<Egress>,
    /// Room for a command.
    command: Box<[u8; MAX_COMMAND]>,
}

impl GuestCtrl {
    /// A queue just handed over by its session.
    ///
    /// # Errors
    /// If the call fd cannot be signalled.
    pub fn new(
        index: u16,
        attach: Attach,
        bell: Bell,
        control: Control,
        egress: Arc<Egress>,
    ) -> io::Result<GuestCtrl> {
        let (mut ring, kick, line) = Line::of(attach, bell)?;
        ring.disarm();
        if let Egress::Guest(queues) = &*egress {
            // 5.1.6.5.5: one pair, until the driver asks for more. It lasts until a reset, however
            // often the rings are set up again.
            queues.set_limit(control.pairs());
        }
        Ok(GuestCtrl {
            ring,
            index,
            kick,
            line,
            control,
            egress,
            command: Box::new([0; MAX_COMMAND]),
        })
    }

    /// Give back the ring, for its session, and the bell, which signals nothing any more.
    #[must_use]
    pub fn into_parts(self) -> (Ring, Option<Bell>) {
        (self.ring, self.line.into_bell())
    }

    /// Apply a change that needs no drain.
    pub fn update(&mut self, update: Update) {
        self.line.update(update);
    }

    /// Number of the queue in its device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Readable when the driver kicked.
    #[must_use]
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }

    /// Carry out commands that wait; gives their number.
    #[inline]
    pub fn visit(&mut self, burst: &mut Burst) -> usize {
        let commands = self.ring.pop(burst, COMMANDS);
        if commands > 0 {
            self.carry_out(burst);
        }
        commands
    }

    #[cold]
    fn carry_out(&mut self, burst: &Burst) {
        let mem = Arc::clone(self.ring.mem());
        for chain in burst.iter() {
            let Some(at) = chain.last_writable_byte() else {
                self.ring
                    .latch(Violation::Request("no room for the answer to a command"));
                self.ring.put(chain.id, 0);
                continue;
            };
            let answer = self.answer(&mem, &chain);
            let _ = mem.write(at, &[answer]);
            if let Some(log) = self.ring.log() {
                log.mark(mem.gpa(at), 1);
            }
            self.ring.put(chain.id, 1);
        }
        if self.ring.publish() {
            self.line.notify();
        }
    }

    fn answer(&mut self, mem: &Mem, chain: &Chain<'_>) -> u8 {
        let len = usize::try_from(chain.readable_len).unwrap_or(usize::MAX);
        let Some(bytes) = self.command.get_mut(..len) else {
            return ctrl::ERR;
        };
        if !chain.read(mem, bytes) {
            return ctrl::ERR;
        }
        let Ok(command) = self.control.handle(bytes) else {
            return ctrl::ERR;
        };
        match (command, &*self.egress) {
            (Command::QueuePairs(pairs), Egress::Guest(queues)) => queues.set_limit(pairs),
            (Command::GuestOffloads(bits), Egress::Guest(queues)) => queues.set_offloads(bits),
            _ => {}
        }
        ctrl::OK
    }

    /// Ask for kicks; true if there is work already.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    /// No kicks while we poll.
    pub fn disarm(&mut self) {
        self.ring.disarm();
    }

    /// True if the guest's memory was truncated; the session is hung up then.
    #[must_use]
    pub fn check_poison(&self) -> bool {
        self.line.check_poison(&self.ring)
    }

    /// Why the ring broke, the first time this is asked after it did; the front-end is told too.
    pub fn newly_broken(&mut self) -> Option<Violation> {
        self.line.newly_broken(&self.ring)
    }
}
