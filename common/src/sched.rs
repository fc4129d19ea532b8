//! Who is served next: credits in cycles, UNDER before OVER, caps, after Xen's credit scheduler.
//!
//! A worker serves many entities (a disk, a port, or one queue of it). Each has a [`Weight`], its
//! share when the worker is contended, and perhaps a [`Cap`], its limit even when it is not.
//! Serving costs cycles, measured by whoever serves, and cycles are paid with credits.
//!
//! **Credits.** An entity with credit left is UNDER, one in debt is OVER. A pass offers service
//! once to every UNDER entity that has work, in turn. Only when none of them had work are OVER
//! entities looked at: the epoch ends, everybody earns credit in proportion to its weight, until
//! at least one entity with work is UNDER again, and the pass goes on. So the worker never idles
//! while somebody has work, entities that always have work get service exactly by weight (debts
//! are carried, whoever overran waits longer), and light or idle entities in between do not
//! distort the ratio: nothing depends on how much of its share anybody leaves unused.
//!
//! An epoch hands out [`PERIOD`] cycles' worth over the entities that wait, so a light-weight
//! entity waits for its heavier neighbours about a period at most. Xen's 10 to 30 ms suit virtual
//! CPUs; a disk request takes 10 to 100 µs, and a stall of 10 ms is what users call a hiccup. A
//! shorter period than 1 ms would be used up by the bursts of a few entities, and then every pass
//! would end an epoch; that costs time and gains no smoothness.
//!
//! **Idle entities** cost nothing: they earn lazily. `earned` counts, per unit of weight, all that
//! was handed out so far; who may be served is always up to date, others catch up when they may be
//! served again, and keep of it at most their share of one period: nobody hoards, and all who wake
//! together cannot keep the others waiting for longer than a period. While the whole worker is
//! idle, time itself pays, so that old debts do not outlast an idle night.
//!
//! **Caps** are separate: an account that fills at cap per cent of the time that passes and holds
//! [`CAP_BURST`] at most. An entity that overdraws it is parked, whether or not the core is idle,
//! until the account is half full again. In any window of length `t` it gets at most
//! `cap * (t + CAP_BURST + a pass)` and one service, in the long run exactly the cap. The account
//! is short so that a capped entity pauses for fractions of a millisecond, not for most of 10 ms.
//!
//! **Finding work.** The scheduler visits entities that were announced by [`Scheduler::wake`] and
//! not found idle since: bits in a few words. A worker that polls its rings announces those whose
//! index moved, one that waits for notifications those that were kicked. Any order, any number of
//! times; announcing an entity that turns out idle costs one empty service, which is not charged.
//! An entity that nobody need ask, because it will be heard of, is left out of those asked by
//! [`Scheduler::doze`], so that a thousand idle ones cost the busy one beside them nothing.

use std::fmt;
use std::time::Duration;

use crate::clock::{Cycles, Rate};

mod account;
mod bits;
mod share;

use account::{Entity, Limits};
use bits::{Bits, WORDS, ones};
pub use share::{Cap, SchedError, Share, Weight};

/// What an epoch hands out, in time of one core. See the module's theory for the choice.
pub const PERIOD: Duration = Duration::from_millis(1);

/// How much time a capped entity's account covers: what it may use at once after a pause.
pub const CAP_BURST: Duration = Duration::from_micros(250);

/// Idle time shorter than this pays no debts: looking at everybody's account would cost a worker
/// that polls more than the debts matter.
pub const IDLE_GRAIN: Duration = Duration::from_micros(100);

/// The longest single service that is charged in full. Longer is a stall of the machine (a
/// preempted worker, a stopped guest), and to charge it whole would mute an entity for minutes.
pub const MAX_CHARGE: Duration = Duration::from_millis(100);

/// Entities a worker can have: 64 disks with 16 queues each. Bounds the bitmaps that each pass
/// scans, 16 words.
pub const MAX_ENTITIES: usize = 1024;

/// Names an entity of one scheduler; small numbers, reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(u16);

impl EntityId {
    /// Less than [`MAX_ENTITIES`]: fit to index an array of one's own.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What came of an offer of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do. Costs nothing, and there are no more offers until the next wake.
    Idle,
    /// Work was done at this cost (zero, if it will be charged later). More may be waiting.
    Worked(Cycles),
}

/// How busy a worker was since the scheduler began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Cycles spent on work.
    pub busy: Cycles,
    /// Cycles that passed.
    pub elapsed: Cycles,
}

impl Load {
    /// The load between an earlier reading and this one.
    pub fn since(self, earlier: Load) -> Load {
        Load {
            busy: self.busy - earlier.busy,
            elapsed: self.elapsed - earlier.elapsed,
        }
    }

    /// Busy time as a fraction of all time, 0 to 1.
    pub fn ratio(self) -> f64 {
        (self.busy.get() as f64 / self.elapsed.get().max(1) as f64).min(1.0)
    }
}

/// Decides whom a worker serves. One per worker, owned by it; no locks, and no heap after `new`.
///
/// ```
/// use towpath_common::clock::{Cycles, Rate};
/// use towpath_common::sched::{Outcome, Scheduler, Share};
///
/// let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
/// let disk = sched.add(Share::default(), Cycles::ZERO)?;
/// let mut requests = 3;
/// sched.wake(disk);
/// while sched.pass(Cycles(10), |_| match requests {
///     0 => Outcome::Idle,
///     _ => { requests -= 1; Outcome::Worked(Cycles(2_000)) }
/// }) {}
/// assert_eq!(sched.consumed(disk), Cycles(6_000));
/// # Ok::<(), towpath_common::sched::SchedError>(())
/// ```
#[derive(Debug)]
pub struct Scheduler {
    entities: Vec<Option<Entity>>,
    /// Words of the bitmaps that were ever used; a pass looks at no others.
    words: usize,
    /// Added, and not removed since.
    members: Bits,
    /// Announced, and not found idle since.
    ready: Bits,
    /// Not announced with all others.
    dozing: Bits,
    /// In debt, as of when it was last looked at.
    over: Bits,
    /// Over its cap; not served before the account has recovered.
    parked: Bits,
    /// No parked entity recovers before this.
    next_release: Cycles,
    /// When the last pass began.
    now: Cycles,
    /// Where the next pass starts, so that nobody is always first.
    cursor: usize,
    /// Credit earned so far per unit of weight; wraps.
    earned: u64,
    /// Since when nobody has had work.
    idle_from: Option<Cycles>,
    /// The sum of all weights.
    weights: u64,
    busy: Cycles,
    began: Cycles,
    limits: Limits,
}

impl Scheduler {
    /// A scheduler with no entities, for a clock of this rate, that begins `now`.
    pub fn new(rate: Rate, now: Cycles) -> Scheduler {
        let limits = Limits::new(rate);
        let mut entities = Vec::new();
        entities.resize_with(MAX_ENTITIES, || None);
        Scheduler {
            entities,
            words: 1,
            members: Bits::default(),
            ready: Bits::default(),
            dozing: Bits::default(),
            over: Bits::default(),
            parked: Bits::default(),
            next_release: Cycles::MAX,
            now,
            cursor: 0,
            earned: 0,
            idle_from: None,
            weights: 0,
            busy: Cycles::ZERO,
            began: now,
            limits,
        }
    }

    /// Takes in an entity; it has no debts and no savings.
    ///
    /// # Errors
    /// [`SchedError::Full`] beyond [`MAX_ENTITIES`].
    pub fn add(&mut self, share: Share, now: Cycles) -> Result<EntityId, SchedError> {
        let full = SchedError::Full(MAX_ENTITIES);
        let index = self.entities.iter().position(Option::is_none).ok_or(full)?;
        let id = EntityId(u16::try_from(index).map_err(|_| full)?);
        self.entities[index] = Some(Entity::new(share, self.earned, now, &self.limits));
        self.members.put(index, true);
        self.words = self.words.max(index / 64 + 1);
        self.weights += u64::from(share.weight.get());
        Ok(id)
    }

    /// Lets an entity go. Its id may be given to another; unknown ids are ignored.
    pub fn remove(&mut self, id: EntityId) {
        if let Some(entity) = self.entities.get_mut(id.index()).and_then(Option::take) {
            self.weights -= u64::from(entity.weight());
            self.members.put(id.index(), false);
            self.ready.put(id.index(), false);
            self.dozing.put(id.index(), false);
            self.over.put(id.index(), false);
            self.parked.put(id.index(), false);
        }
    }

    /// Changes what an entity is entitled to, from now on: debts stay, a new cap starts with a
    /// full account. Unknown ids are ignored.
    pub fn set_share(&mut self, id: EntityId, share: Share, now: Cycles) {
        let savings = self.savings();
        let Some(Some(entity)) = self.entities.get_mut(id.index()) else {
            return;
        };
        entity.catch_up(self.earned, savings);
        self.weights -= u64::from(entity.weight());
        self.weights += u64::from(share.weight.get());
        entity.set_share(share, now, &self.limits);
        self.parked.put(id.index(), false);
    }

    /// Announces that an entity has, or may have, work. Cheap when it was announced already.
    #[inline]
    pub fn wake(&mut self, id: EntityId) {
        self.dozing.put(id.index(), false);
        if !self.ready.has(id.index()) && self.members.has(id.index()) {
            self.announce(id.index());
        }
    }

    /// Leaves an entity out of [`Scheduler::wake_all`], until the next [`Scheduler::wake`]: the
    /// caller will hear of its work.
    pub fn doze(&mut self, id: EntityId) {
        self.dozing.put(id.index(), true);
    }

    /// Announces every entity that does not doze: for a worker that finds out by asking.
    pub fn wake_all(&mut self) {
        for word in 0..self.words {
            let quiet = self.ready.word(word) | self.dozing.word(word);
            for index in ones(word, self.members.word(word) & !quiet) {
                self.announce(index);
            }
        }
    }

    /// One pass: offers service once to each entity whose turn it is. `false` if nobody who may
    /// be served had work.
    ///
    /// `serve` should do one burst and say what it cost. What it does for others (a system call
    /// shared by several) is better charged with [`Scheduler::charge`] after the pass.
    pub fn pass(&mut self, now: Cycles, mut serve: impl FnMut(EntityId) -> Outcome) -> bool {
        self.now = now;
        if now >= self.next_release {
            self.release(now);
        }
        let idle = self
            .idle_from
            .map_or(Cycles::ZERO, |since| now.since(since));
        if idle >= self.limits.worth_paying() && self.ready.any() {
            self.idle_from = None;
            self.pay_for_idle_time(idle);
        }
        // Each turn of the loop serves somebody or finds at least one entity idle.
        loop {
            if self.offer(&mut serve) {
                self.idle_from = None;
                return true;
            }
            if !self.end_epoch() {
                self.idle_from.get_or_insert(now);
                return false;
            }
        }
    }

    /// Charges a cost that became known after the service. Unknown ids are ignored.
    pub fn charge(&mut self, id: EntityId, cost: Cycles) {
        let index = id.index();
        let Some(Some(entity)) = self.entities.get_mut(index) else {
            return;
        };
        self.busy += cost;
        entity.charge(cost, self.now, &self.limits);
        self.over.put(index, entity.in_debt());
        if let Some(release) = entity.release_time(&self.limits) {
            self.parked.put(index, true);
            self.next_release = self.next_release.min(release);
        }
    }

    /// When a parked entity that has work may run again; a worker with nothing else to do sleeps
    /// until then. `None` if there is no such entity.
    pub fn next_release(&self, now: Cycles) -> Option<Cycles> {
        (0..WORDS)
            .flat_map(|word| ones(word, self.ready.word(word) & self.parked.word(word)))
            .filter_map(|index| self.entities[index].as_ref())
            .map(|entity| entity.release_time(&self.limits).unwrap_or(now).max(now))
            .min()
    }

    /// True while an entity has used up its cap: it is not served before [`Self::next_release`].
    pub fn is_parked(&self, id: EntityId) -> bool {
        self.parked.has(id.index())
    }

    /// Cycles an entity has been charged since it was added; zero for unknown ids.
    pub fn consumed(&self, id: EntityId) -> Cycles {
        self.entities
            .get(id.index())
            .and_then(Option::as_ref)
            .map_or(Cycles::ZERO, Entity::consumed)
    }

    /// True if some entities weigh more than others.
    pub fn weights_differ(&self) -> bool {
        let mut weights = self.entities.iter().flatten().map(Entity::weight);
        let first = weights.next();
        weights.any(|weight| Some(weight) != first)
    }

    /// How busy the worker was from the beginning until `now`.
    pub fn load(&self, now: Cycles) -> Load {
        Load {
            busy: self.busy,
            elapsed: now.since(self.began),
        }
    }

    fn announce(&mut self, index: usize) {
        self.ready.put(index, true);
        self.catch_up(index);
    }

    /// Brings an entity that could not be served for a while up to date.
    fn catch_up(&mut self, index: usize) {
        let savings = self.savings();
        if let Some(entity) = &mut self.entities[index] {
            entity.catch_up(self.earned, savings);
            self.over.put(index, entity.in_debt());
        }
    }

    /// What an idle entity may save, per unit of weight: one period for all together.
    fn savings(&self) -> u64 {
        self.limits.epoch(self.weights)
    }

    /// Offers service to every UNDER entity that is ready, from the cursor on and around.
    fn offer(&mut self, serve: &mut impl FnMut(EntityId) -> Outcome) -> bool {
        let (first_word, bit) = (self.cursor / 64, self.cursor % 64);
        let from_cursor = u64::MAX << bit;
        let (mut worked, mut first) = (false, None);
        let words = self.words;
        for step in 0..=words {
            let word = (first_word + step) % words;
            let turn = match step {
                0 => from_cursor,
                n if n == words => !from_cursor,
                _ => u64::MAX,
            };
            for index in ones(word, self.eligible(word) & !self.over.word(word) & turn) {
                let Ok(id) = u16::try_from(index) else {
                    continue;
                };
                first.get_or_insert(index);
                match serve(EntityId(id)) {
                    Outcome::Idle => self.ready.put(index, false),
                    Outcome::Worked(cost) => {
                        worked = true;
                        self.charge(EntityId(id), cost);
                    }
                }
            }
        }
        self.cursor = first.map_or(self.cursor, |index| (index + 1) % MAX_ENTITIES);
        worked
    }

    /// Hands out credit until an entity that waits is UNDER. `false` if nobody waits.
    fn end_epoch(&mut self) -> bool {
        let (mut weights, mut needed) = (0, u64::MAX);
        self.for_each_eligible(|entity, _| {
            weights += u64::from(entity.weight());
            needed = needed.min(entity.needs());
        });
        if weights == 0 {
            return false;
        }
        self.earned = self
            .earned
            .wrapping_add(needed.max(self.limits.epoch(weights)));
        let earned = self.earned;
        self.for_each_eligible(|entity, over| {
            entity.catch_up(earned, u64::MAX);
            *over = entity.in_debt();
        });
        true
    }

    /// While nobody had work, time paid debts at everybody's guaranteed share.
    fn pay_for_idle_time(&mut self, idle: Cycles) {
        let per_weight = account::fixed(idle) / self.weights.max(1);
        self.earned = self.earned.wrapping_add(per_weight);
        for word in 0..self.words {
            ones(word, self.ready.word(word)).for_each(|index| self.catch_up(index));
        }
    }

    /// Visits all that wait for service, with their mark as OVER.
    fn for_each_eligible(&mut self, mut visit: impl FnMut(&mut Entity, &mut bool)) {
        for word in 0..self.words {
            for index in ones(word, self.eligible(word)) {
                if let Some(entity) = &mut self.entities[index] {
                    let mut over = self.over.has(index);
                    visit(entity, &mut over);
                    self.over.put(index, over);
                }
            }
        }
    }

    /// Lets parked entities go whose accounts have recovered.
    fn release(&mut self, now: Cycles) {
        self.next_release = Cycles::MAX;
        for word in 0..WORDS {
            for index in ones(word, self.parked.word(word)) {
                let Some(entity) = &mut self.entities[index] else {
                    continue;
                };
                match entity.release_time(&self.limits) {
                    Some(release) if release > now => {
                        self.next_release = self.next_release.min(release);
                    }
                    _ => {
                        entity.fill(now, &self.limits);
                        self.parked.put(index, false);
                        self.catch_up(index);
                    }
                }
            }
        }
    }

    /// Ready, and not over its cap.
    fn eligible(&self, word: usize) -> u64 {
        self.ready.word(word) & !self.parked.word(word)
    }
}

#[cfg(test)]
mod tests;
