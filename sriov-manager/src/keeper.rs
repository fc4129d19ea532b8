//! Keeps the host as it is wanted: at the start, when the kernel reports a device, from time to
//! time; and ends leases whose owners have ended.
//!
//! A PF that this daemon has not brought to where it should be yet is applied: at boot, and when a
//! card appears. One that it has is watched: what differs later is drift, reported or repaired as
//! the policy says. Nothing that is refused is tried in another way; it is reported, and tried
//! again when something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::apply::{ApplyError, Outcome, apply, recover};
use crate::events;
use crate::inventory::{Inventory, scan};
use crate::kernel::Machine;
use crate::lease::Broker;
use crate::plan::{Plan, Step};
use crate::spec::Drift;

/// After an event, others follow: a card with VFs makes hundreds within this time.
const SETTLE: Duration = Duration::from_millis(300);
/// What could not be done is tried again after so long, even if nobody looks for drift.
const RETRY: Duration = Duration::from_secs(60);
/// The watchdog is fed from here, so no sleep is longer.
const LONGEST: Duration = Duration::from_secs(5);

/// What the keeper found and did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What was there at the last look.
    pub inventory: Inventory,
    /// What was still to be done then: steps that the policy does not carry out, and refusals.
    pub left: Plan,
    /// Steps that undo what others changed, of PFs that were as wanted.
    pub drift: Vec<Step>,
    /// The last failure of each PF.
    pub failures: BTreeMap<PciAddr, String>,
    /// Since the start.
    pub counters: Counters,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Looks at the host.
    pub looks: u64,
    /// Looks that failed.
    pub failed_looks: u64,
    /// Applies that ended with everything as wanted.
    pub applied: u64,
    /// Applies that were rolled back.
    pub rolled_back: u64,
    /// Applies that could not be rolled back.
    pub stuck: u64,
    /// Steps carried out because somebody else had changed something.
    pub repaired: u64,
    /// Events of the kernel.
    pub events: u64,
}

/// The keeper and what it shares with the control thread.
#[derive(Debug)]
pub struct Keeper {
    broker: Arc<Broker>,
    report: Mutex<Report>,
    settled: Mutex<BTreeSet<PciAddr>>,
    turns: AtomicU64,
    bell: Mutex<UnixStream>,
    woken: UnixStream,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keeper {
    /// A keeper that has not looked yet.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(broker: Arc<Broker>) -> io::Result<Self> {
        let (bell, woken) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self {
            broker,
            report: Mutex::default(),
            settled: Mutex::default(),
            turns: AtomicU64::new(0),
            bell: Mutex::new(bell),
            woken,
        })
    }

    /// What it found last.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Turns of its loop.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Makes it look at once: leases changed, or the configuration.
    pub fn wake(&self) {
        // A full socket wakes it as well.
        let _full = lock(&self.bell).write(&[1]);
    }

    /// Brings every PF where it should be, if it has not been there; says what drifted otherwise.
    ///
    /// # Errors
    /// When the host cannot be looked at, or its lock is kept by somebody else.
    pub fn look(&self, all: bool) -> Result<(), ApplyError> {
        let (_lock, kernel) = self.broker.locked()?;
        let machine = Machine::running(&kernel);
        let state = self.broker.state();
        if let Some(said) = recover(machine, state)? {
            tracing::warn!("{said}");
        }
        let spec = self.broker.spec();
        let mut inventory = scan(machine, &state.known()?)?;
        let (plan, target) = Plan::make(&inventory, &spec);
        let mut report = self.report();
        report.drift.clear();
        report.failures.clear();
        let repair = spec.daemon.drift == Drift::Repair;
        for pf in plan.pfs() {
            let settled = lock(&self.settled).contains(&pf);
            let steps: Vec<Step> = plan.of(pf).cloned().collect();
            if settled && !all {
                for step in &steps {
                    tracing::warn!(name: events::DRIFT, %pf, step = %step.action,
                        why = %step.reason, "drift");
                }
                report.drift.extend(steps.iter().cloned());
                if !repair {
                    continue;
                }
            }
            let count = u64::try_from(steps.len()).unwrap_or(u64::MAX);
            let own = Plan {
                steps,
                refusals: Vec::new(),
                lacks: Vec::new(),
            };
            // One card at a time: what one cannot be, the others are.
            let outcome = apply(machine, state, &inventory, &own, &target)?;
            note(pf, &outcome, &mut report);
            if settled && matches!(outcome, Outcome::Applied { .. }) {
                report.counters.repaired += count;
                report.drift.retain(|step| step.pf != pf);
            }
            inventory = scan(machine, &state.known()?)?;
        }
        self.settle(&inventory, &spec);
        report.left = Plan::make(&inventory, &spec).0;
        for refusal in &report.left.refusals {
            tracing::warn!(why = ?refusal.why, fix = %refusal.fix, "{}", refusal.text);
        }
        for lack in &report.left.lacks {
            tracing::warn!("{lack}");
        }
        report.counters.looks += 1;
        self.broker.notice(&inventory);
        report.inventory = inventory;
        *lock(&self.report) = report;
        Ok(())
    }

    /// PFs that are as wanted count as settled, until they are pulled.
    fn settle(&self, inventory: &Inventory, spec: &crate::spec::Spec) {
        let (plan, target) = Plan::make(inventory, spec);
        let open: BTreeSet<PciAddr> = plan
            .pfs()
            .into_iter()
            .chain(plan.refusals.iter().filter_map(|refusal| refusal.pf))
            .collect();
        let mut settled = lock(&self.settled);
        settled.retain(|pf| inventory.pf(*pf).is_some());
        let there = target.pfs.iter().map(|pf| pf.address);
        settled.extend(there.filter(|pf| !open.contains(pf)));
    }

    /// Runs until the process ends.
    pub fn run(&self) {
        let events = events();
        if let Err(error) = &events {
            tracing::warn!(%error, "the kernel's events cannot be heard: cards are found late");
        }
        let events = events.ok();
        let mut due = Instant::now() + self.interval();
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            self.broker.sweep();
            let wait = due.saturating_duration_since(Instant::now()).min(LONGEST);
            if self.wait(events.as_ref(), wait) {
                due = due.min(Instant::now() + SETTLE);
            }
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + self.interval();
            if let Err(error) = self.look(false) {
                lock(&self.report).counters.failed_looks += 1;
                tracing::warn!(%error, "this look was in vain");
            }
        }
    }

    fn interval(&self) -> Duration {
        match self.broker.spec().daemon.drift_interval.get() {
            0 => RETRY * 1440,
            seconds => Duration::from_secs(u64::from(seconds)),
        }
    }

    /// Waits for an event, the bell, the end of an owner, or the time; says whether to look.
    fn wait(&self, events: Option<&Socket>, most: Duration) -> bool {
        let owners: Vec<OwnedFd> = self.broker.pidfds();
        let bell = self.woken.as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        let listening = events.map(AsFd::as_fd);
        fds.extend(listening.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.extend(owners.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = Timespec::try_from(most).ok();
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return false;
        }
        let rung = !fds[0].revents().is_empty();
        if rung {
            let _nothing_left = (&self.woken).read(&mut [0; 64]);
        }
        let heard = events.is_some_and(|events| self.drain(events));
        rung || heard
    }

    /// Reads the events that have arrived; says whether one is about PCI or interfaces.
    fn drain(&self, events: &Socket) -> bool {
        let mut ours = false;
        let mut buffer = Vec::with_capacity(16 << 10);
        loop {
            buffer.clear();
            match events.recv(&mut buffer, 0) {
                Ok(_) => {
                    lock(&self.report).counters.events += 1;
                    ours |= is_ours(&buffer);
                    // It may be back before anybody looks, as bare as a new one.
                    if let Some(pulled) = pulled(&buffer) {
                        lock(&self.settled).remove(&pulled);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ours,
                // Some were lost; whatever they were about is looked at.
                Err(_) => return true,
            }
        }
    }
}

fn note(pf: PciAddr, outcome: &Outcome, report: &mut Report) {
    match outcome {
        Outcome::Nothing => {}
        Outcome::Applied { steps, .. } => {
            report.counters.applied += 1;
            tracing::info!(name: events::APPLIED, %pf, steps, "applied");
        }
        Outcome::RolledBack { failure } => {
            report.counters.rolled_back += 1;
            let text = format!("{}: {}", failure.step.action, failure.error);
            tracing::error!(name: events::APPLY_FAILED, %pf, "{text}; rolled back");
            report.failures.insert(pf, text);
        }
        Outcome::Stuck { failure, because } => {
            report.counters.stuck += 1;
            let text = format!("{}: {}; {because}", failure.step.action, failure.error);
            tracing::error!(name: events::APPLY_FAILED, %pf, "{text}");
            report.failures.insert(pf, text);
        }
    }
}

/// The kernel's own events, not udev's.
fn events() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
    socket.bind(&SocketAddr::new(0, 1))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Whether an event is about a PCI function or an interface that came, went or changed its driver.
fn is_ours(event: &[u8]) -> bool {
    let mut parts = event.split(|byte| *byte == 0);
    parts.any(|part| matches!(part, b"SUBSYSTEM=pci" | b"SUBSYSTEM=net"))
}

/// The PCI function that an event says is gone.
fn pulled(event: &[u8]) -> Option<PciAddr> {
    let parts = || event.split(|byte| *byte == 0);
    let says = |word: &[u8]| parts().any(|part| part == word);
    if !says(b"ACTION=remove") || !says(b"SUBSYSTEM=pci") {
        return None;
    }
    let name = parts().find_map(|part| part.strip_prefix(b"PCI_SLOT_NAME="))?;
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_is_gone_is_named() {
        let event = |action: &str, subsystem: &str| {
            let at = "0000:01:00.0";
            format!(
                "{action}@/devices/pci/{at}\0ACTION={action}\0SUBSYSTEM={subsystem}\0\
                 PCI_SLOT_NAME={at}\0"
            )
        };
        let pulled = |text: String| pulled(text.as_bytes()).map(|pf| pf.to_string());
        assert_eq!(pulled(event("remove", "pci")).unwrap(), "0000:01:00.0");
        assert_eq!(pulled(event("add", "pci")), None);
        assert_eq!(pulled(event("remove", "net")), None);
        assert_eq!(pulled("ACTION=remove\0SUBSYSTEM=pci\0".to_owned()), None);
    }

    #[test]
    fn events_of_pci_and_interfaces_are_ours() {
        assert!(is_ours(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=pci\0"));
        assert!(is_ours(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=net\0"));
        assert!(!is_ours(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=block\0"));
    }

    #[test]
    fn events_can_be_listened_to() {
        events().unwrap();
    }
}
