//! Keeps the leases: grants, ends, and brings them over a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::access::{self, Peer, has_ended};
use super::error::{Counters, LeaseError};
use super::hand::{self, How, Opened};
use super::pick::pick;
use super::{Granted, Lease, Phase, Request, Shown};
use crate::address::PciAddr;
use crate::apply::{ApplyError, Lock, LockError, Run, State, StateError};
use crate::attribute::{Attributes, Key};
use crate::events;
use crate::inventory::{Inventory, Known, scan};
use crate::kernel::{Kernel, Machine, Sysfs, Writer};
use crate::plan::plan;
use crate::spec::Spec;
use crate::target::{PfTarget, Target, VfTarget};

/// Most leases at once: more than the VFs of any host.
pub const MAX_LEASES: usize = 65_536;
/// How long a request waits for whoever is changing the host's VFs.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Where leases are kept.
const FILE: &str = "leases.json";

/// The leases of this host.
#[derive(Debug)]
pub struct Broker {
    state: State,
    program: PathBuf,
    spec: Mutex<Spec>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    leases: BTreeMap<PciAddr, Lease>,
    /// Of active leases; readable once the owner has ended.
    pidfds: BTreeMap<PciAddr, OwnedFd>,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// The leases in `state`, as an earlier process left them. Owners that ended meanwhile are
    /// noticed at the first [`Broker::sweep`].
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn open(state: State, program: PathBuf, spec: Spec) -> Result<Self, StateError> {
        let leases: BTreeMap<PciAddr, Lease> = state.load(FILE)?;
        let mut pidfds = BTreeMap::new();
        for (vf, lease) in &leases {
            match access::watch(lease.process.pid) {
                Ok((process, pidfd)) if process == lease.process => {
                    pidfds.insert(*vf, pidfd);
                }
                _ => {}
            }
        }
        let held = Held {
            leases,
            pidfds,
            counters: Counters::default(),
        };
        Ok(Self {
            state,
            program,
            spec: Mutex::new(spec),
            held: Mutex::new(held),
        })
    }

    /// Another configuration is in force.
    pub fn reload(&self, spec: Spec) {
        *lock(&self.spec) = spec;
    }

    /// The configuration in force.
    pub fn spec(&self) -> Spec {
        lock(&self.spec).clone()
    }

    /// The state directory.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What has happened since the start.
    pub fn counters(&self) -> Counters {
        lock(&self.held).counters
    }

    /// All leases.
    pub fn leases(&self) -> Vec<Shown> {
        let held = lock(&self.held);
        let shown = |(address, lease): (&PciAddr, &Lease)| Shown {
            address: *address,
            lease: lease.clone(),
        };
        held.leases.iter().map(shown).collect()
    }

    /// Copies of the pidfds of active leases, to wait on.
    pub fn pidfds(&self) -> Vec<OwnedFd> {
        let held = lock(&self.held);
        let copies = held.pidfds.values().map(OwnedFd::try_clone);
        copies.filter_map(Result::ok).collect()
    }

    /// The lock of this host, waited for a little, and files to write to under it.
    ///
    /// # Errors
    /// When somebody else keeps it.
    pub fn locked(&self) -> Result<(Lock, Sysfs), ApplyError> {
        let give_up = Instant::now() + LOCK_PATIENCE;
        let lock = loop {
            match self.state.lock() {
                Err(LockError::Taken { .. }) if Instant::now() < give_up => {
                    thread::sleep(LOCK_RETRY);
                }
                locked => break locked?,
            }
        };
        let deadline = self.spec().daemon.deadline();
        let writer = Writer::new(self.program.clone())
            .deadline(deadline)
            .hold(lock.share()?);
        Ok((lock, Sysfs::new("/", writer)))
    }

    /// Gives a VF to `peer`.
    ///
    /// # Errors
    /// [`LeaseError`]; nothing is leased then.
    pub fn grant(&self, request: &Request, peer: Peer) -> Result<(Granted, Opened), LeaseError> {
        let granted = self.try_grant(request, peer);
        let mut held = lock(&self.held);
        match &granted {
            Ok(_) => held.counters.granted += 1,
            Err(_) => held.counters.refused += 1,
        }
        granted
    }

    fn try_grant(&self, request: &Request, peer: Peer) -> Result<(Granted, Opened), LeaseError> {
        let spec = self.spec();
        let pool = spec.pool(request.pool.as_str());
        let pool = pool.ok_or_else(|| LeaseError::NoPool(request.pool.clone()))?;
        if !peer.may(pool) {
            let (uid, pool) = (peer.who.uid, request.pool.clone());
            return Err(LeaseError::Forbidden { uid, pool });
        }
        let (uid, process, pidfd) = owner(request, peer)?;
        let (_lock, kernel) = self.locked()?;
        let machine = Machine::running(&kernel);
        let inventory = look(machine, &self.state)?;
        let (target, _) = Target::resolve(&spec, &inventory);
        let (found, members) = pick(&inventory, &target, request.pool.as_str(), request.numa);
        let Some((pf, vf)) = found.filter(|_| self.leases().len() < MAX_LEASES) else {
            let pool = request.pool.clone();
            let leases = self.leases().into_iter();
            let members = members + leases.filter(|shown| shown.lease.pool == pool).count();
            return Err(LeaseError::Exhausted { pool, members });
        };
        let (pf, address, index, numa) = (pf.address, vf.address, vf.index, vf.numa.or(pf.numa));
        let rest = rest(&target, pf, index);
        let attributes = request.attributes().or(&rest.attributes);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let lease = Lease {
            owner: request.owner.clone(),
            pool: request.pool.clone(),
            pf,
            index,
            process,
            uid,
            since: since.map(|since| since.as_secs()).unwrap_or_default(),
            attributes,
            phase: Phase::Active,
        };
        self.put(address, Some((lease, pidfd)))?;
        let wanted = VfTarget { attributes, ..rest };
        // What the owner asks for by name is nothing to be done without.
        let mut required = required(&target, pf);
        required.extend(request.attributes().each().map(|one| one.key()));
        let state = &self.state;
        let opened = become_so(machine, state, &inventory, pf, index, &wanted, required)
            .and_then(|()| self.hand_over(&kernel, request.how, address, uid));
        match opened {
            Ok((group, opened)) => {
                tracing::info!(name: events::LEASED, vf = %address, owner = %request.owner,
                    pid = process.pid, "leased");
                let granted = Granted {
                    address,
                    pf,
                    index,
                    numa,
                    group,
                    fds: opened.names.clone(),
                    bars: inventory.pf(pf).map_or(0, |pf| pf.room.bars.iter().sum()),
                    attributes,
                };
                Ok((granted, opened))
            }
            Err(error) => {
                // Nobody has it; it goes back the way that every lease goes.
                self.end_locked(machine, address, "the lease failed")?;
                Err(error)
            }
        }
    }

    fn hand_over(
        &self,
        kernel: &dyn Kernel,
        how: How,
        vf: PciAddr,
        uid: u32,
    ) -> Result<(u32, Opened), LeaseError> {
        let number = crate::kernel::link_name(kernel, &vf.file("iommu_group"));
        let group = number.and_then(|number| number.parse().ok());
        let group = group.ok_or_else(|| LeaseError::Refused(format!("{vf} is in no group")))?;
        match how {
            How::Fds => Ok((group, hand::fds(kernel, vf, group)?)),
            How::Node => {
                hand::give(group, uid)?;
                Ok((group, Opened::default()))
            }
        }
    }

    /// Ends a lease now, on an operator's word.
    ///
    /// # Errors
    /// [`LeaseError`]; the lease then stays, and is tried again.
    pub fn release(&self, vf: PciAddr) -> Result<(), LeaseError> {
        if !lock(&self.held).leases.contains_key(&vf) {
            return Err(LeaseError::NotLeased(vf));
        }
        let (_lock, kernel) = self.locked()?;
        let machine = Machine::running(&kernel);
        self.end_locked(machine, vf, "released")
    }

    /// Ends the leases whose owners have ended, and tries again those that could not be ended.
    /// Cheap when there are none.
    pub fn sweep(&self) {
        let over: Vec<PciAddr> = {
            let held = lock(&self.held);
            // A lease whose card is gone is its owner's until that ends, as any other.
            let over = held.leases.iter().filter(|(vf, lease)| {
                let ending = matches!(lease.phase, Phase::Ending(_));
                ending || held.pidfds.get(vf).is_none_or(has_ended)
            });
            over.map(|(vf, _)| *vf).collect()
        };
        if over.is_empty() {
            return;
        }
        let (_lock, kernel) = match self.locked() {
            Ok(locked) => locked,
            Err(error) => {
                tracing::warn!(%error, "leases that are over cannot be ended now");
                return;
            }
        };
        let machine = Machine::running(&kernel);
        for vf in over {
            if let Err(error) = self.end_locked(machine, vf, "its owner has ended") {
                tracing::warn!(%vf, %error, "a lease that is over cannot be ended yet");
            }
        }
    }

    /// Resets and scrubs a VF, and forgets its lease. The host's lock is held.
    fn end_locked(&self, machine: Machine<'_>, vf: PciAddr, why: &str) -> Result<(), LeaseError> {
        let ended = self.try_end(machine, vf);
        match &ended {
            Ok(found) => {
                self.put(vf, None)?;
                let mut held = lock(&self.held);
                held.counters.ended += 1;
                held.counters.lost += u64::from(!found);
                tracing::info!(name: events::LEASE_ENDED, %vf, why, "the lease ended");
            }
            Err(error) => {
                let mut held = lock(&self.held);
                held.counters.failed += 1;
                held.pidfds.remove(&vf);
                if let Some(lease) = held.leases.get_mut(&vf) {
                    lease.phase = Phase::Ending(error.to_string());
                }
                self.state.save(FILE, &held.leases)?;
            }
        }
        ended.map(drop)
    }

    /// Whether there was a VF to free.
    fn try_end(&self, machine: Machine<'_>, vf: PciAddr) -> Result<bool, LeaseError> {
        // Without our own lease, so that what is left is what others have.
        let mut known = self.state.known()?;
        known.leases.remove(&vf);
        let inventory = scan(machine, &known).map_err(ApplyError::from)?;
        let Some((pf, found)) = inventory.vf(vf) else {
            return Ok(false);
        };
        if let Some(other) = found.uses.first() {
            return Err(LeaseError::Held(format!("{vf}: {other}; end that first")));
        }
        if let Some(writer) = pf.wedged {
            let text = format!(
                "{} is wedged: process {writer} is stuck in a write",
                pf.label()
            );
            return Err(LeaseError::Held(text));
        }
        if let Some(group) = found.group {
            hand::take_back(group)?;
        }
        let step = |error| LeaseError::Step { vf, error };
        if !found.reset.is_empty() {
            let reset = machine.kernel.write(&vf.file("reset"), "1");
            reset.map_err(|error| step(error.into()))?;
        }
        let (target, _) = Target::resolve(&self.spec(), &inventory);
        let rest = rest(&target, pf.address, found.index);
        let scrubbed = rest.attributes.or(&Attributes::SCRUBBED);
        let attributes = if pf.interface.is_some() {
            scrubbed
        } else {
            Attributes::default()
        };
        let wanted = VfTarget { attributes, ..rest };
        let required = required(&target, pf.address);
        let (state, index) = (&self.state, found.index);
        become_so(
            machine, state, &inventory, pf.address, index, &wanted, required,
        )?;
        Ok(true)
    }

    /// Writes a lease down, or that there is none any more.
    fn put(&self, vf: PciAddr, lease: Option<(Lease, OwnedFd)>) -> Result<(), StateError> {
        let mut held = lock(&self.held);
        match lease {
            Some((lease, pidfd)) => {
                held.leases.insert(vf, lease);
                held.pidfds.insert(vf, pidfd);
            }
            None => {
                held.leases.remove(&vf);
                held.pidfds.remove(&vf);
            }
        }
        self.state.save(FILE, &held.leases)
    }

    /// Marks leases whose VFs are gone, and those whose VFs are back.
    pub fn notice(&self, inventory: &Inventory) {
        let mut held = lock(&self.held);
        let Held { leases, .. } = &mut *held;
        for (vf, lease) in leases.iter_mut() {
            let there = inventory.vf(*vf).is_some_and(|(_, vf)| !vf.is_leaving());
            if !there && lease.phase == Phase::Active {
                tracing::warn!(name: events::CARD_GONE, %vf, owner = %lease.owner,
                    "the card of a lease is gone");
                lease.phase = Phase::Lost;
            }
        }
    }
}

/// User, process and pidfd that a lease is for.
fn owner(
    request: &Request,
    peer: Peer,
) -> Result<(u32, crate::apply::Process, OwnedFd), LeaseError> {
    match request.pid {
        None => Ok((peer.who.uid, peer.process, peer.pidfd)),
        Some(pid) => {
            let (process, pidfd, uid) = peer.instead(pid).map_err(|error| {
                let source = error.into();
                LeaseError::Process { pid, source }
            })?;
            Ok((uid, process, pidfd))
        }
    }
}

fn look(machine: Machine<'_>, state: &State) -> Result<Inventory, LeaseError> {
    let known: Known = state.known()?;
    Ok(scan(machine, &known).map_err(ApplyError::from)?)
}

/// What a VF is while nobody has it.
fn rest(target: &Target, pf: PciAddr, index: u16) -> VfTarget {
    let own = target.pf(pf).and_then(|pf| pf.vfs.get(&index));
    own.cloned().unwrap_or_default()
}

/// What VFs of `pf` may not be without.
fn required(target: &Target, pf: PciAddr) -> BTreeSet<Key> {
    let pf = target.pf(pf);
    pf.map(|pf| pf.required.clone()).unwrap_or_default()
}

/// Makes one VF what `wanted` says, and nothing else.
fn become_so(
    machine: Machine<'_>,
    state: &State,
    inventory: &Inventory,
    pf: PciAddr,
    index: u16,
    wanted: &VfTarget,
    required: BTreeSet<Key>,
) -> Result<(), LeaseError> {
    let target = PfTarget {
        address: pf,
        count: inventory.pf(pf).map_or(0, crate::inventory::Pf::count),
        autoprobe: None,
        eswitch: None,
        group_type: None,
        primary: None,
        required,
        vfs: [(index, wanted.clone())].into(),
    };
    let target = Target { pfs: vec![target] };
    let made = plan(inventory, &target);
    if let Some(refusal) = made.refusals.first() {
        return Err(LeaseError::Refused(format!(
            "{}; {}",
            refusal.text, refusal.fix
        )));
    }
    let mut run = Run::new(machine, state, &target);
    for step in &made.steps {
        run.one(step)?.map_err(|error| {
            let vf = inventory.pf(pf).and_then(|pf| pf.address_of(index));
            let vf = vf.unwrap_or(pf);
            LeaseError::Step { vf, error }
        })?;
    }
    Ok(())
}
