//! One entity's accounts: the credit its weight earns, and the time its cap allows.

use super::{CAP_BURST, IDLE_GRAIN, MAX_CHARGE, PERIOD, Share};
use crate::clock::{Cycles, Rate};

/// Credits are cycles times 2^10, so that an entity of weight 1 among many loses no fractions.
const FRACTION: u32 = 10;

/// A cap account is in hundredths of a cycle, so that a per cent of a cycle is a unit.
const WHOLE: u64 = 100;

/// `length` in credits.
pub(super) fn fixed(length: Cycles) -> u64 {
    length.get().saturating_mul(1 << FRACTION)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The module's constants in the clock's units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Credits of an epoch.
    period: u64,
    cap_burst: Cycles,
    idle_grain: Cycles,
    max_charge: Cycles,
}

impl Limits {
    pub(super) fn new(rate: Rate) -> Limits {
        Limits {
            period: fixed(rate.of(PERIOD)),
            cap_burst: rate.of(CAP_BURST),
            idle_grain: rate.of(IDLE_GRAIN),
            max_charge: rate.of(MAX_CHARGE),
        }
    }

    /// Idle time from which on debts are paid.
    pub(super) fn worth_paying(&self) -> Cycles {
        self.idle_grain
    }

    /// What an epoch gives per unit of weight when entities of `weights` in all share it.
    pub(super) fn epoch(&self, weights: u64) -> u64 {
        (self.period / weights.max(1)).max(1)
    }
}

/// An entity's entitlement and accounts.
#[derive(Clone, Debug)]
pub(super) struct Entity {
    share: Share,
    /// Credits; negative is debt.
    credit: i64,
    /// What had been earned per unit of weight when `credit` was last brought up to date.
    seen: u64,
    /// Hundredths of cycles that the cap allows now; negative is overdrawn.
    allowed: i64,
    /// When `allowed` was last brought up to date.
    filled: Cycles,
    consumed: Cycles,
}

impl Entity {
    pub(super) fn new(share: Share, earned: u64, now: Cycles, limits: &Limits) -> Entity {
        let consumed = Cycles::ZERO;
        let mut entity = Entity {
            share,
            credit: 0,
            seen: earned,
            allowed: 0,
            filled: now,
            consumed,
        };
        entity.set_share(share, now, limits);
        entity
    }

    pub(super) fn weight(&self) -> u16 {
        self.share.weight.get()
    }

    pub(super) fn consumed(&self) -> Cycles {
        self.consumed
    }

    /// Takes a new share; its cap begins with a full account.
    pub(super) fn set_share(&mut self, share: Share, now: Cycles, limits: &Limits) {
        self.share = share;
        self.filled = now;
        self.allowed = self.cap().map_or(0, |cap| full(cap, limits));
    }

    /// Pays for a service.
    pub(super) fn charge(&mut self, cost: Cycles, now: Cycles, limits: &Limits) {
        self.consumed += cost;
        let cost = cost.min(limits.max_charge);
        self.credit = self.credit.saturating_sub_unsigned(fixed(cost));
        if self.cap().is_some() {
            self.fill(now, limits);
            self.allowed = self
                .allowed
                .saturating_sub_unsigned(cost.get().saturating_mul(WHOLE));
        }
    }

    /// Whether the entity is OVER, as of the last [`Entity::catch_up`].
    pub(super) fn in_debt(&self) -> bool {
        self.credit < 0
    }

    /// Adds what was `earned` meanwhile, as long as no more than `savings` per unit of weight
    /// come together.
    pub(super) fn catch_up(&mut self, earned: u64, savings: u64) {
        if earned == self.seen {
            return;
        }
        let weight = u64::from(self.weight());
        let owed = earned.wrapping_sub(self.seen).saturating_mul(weight);
        let most = signed(savings.saturating_mul(weight)).max(self.credit);
        self.credit = self.credit.saturating_add_unsigned(owed).min(most);
        self.seen = earned;
    }

    /// What must be earned per unit of weight until the entity is out of debt.
    pub(super) fn needs(&self) -> u64 {
        self.credit
            .min(0)
            .unsigned_abs()
            .div_ceil(u64::from(self.weight()))
    }

    /// Fills the cap account for the time until `now`.
    pub(super) fn fill(&mut self, now: Cycles, limits: &Limits) {
        if let Some(cap) = self.cap() {
            let filled = now.since(self.filled).get().saturating_mul(cap);
            self.allowed = self
                .allowed
                .saturating_add_unsigned(filled)
                .min(full(cap, limits));
            self.filled = self.filled.max(now);
        }
    }

    /// If the cap account is overdrawn: when it will be half full.
    pub(super) fn release_time(&self, limits: &Limits) -> Option<Cycles> {
        let cap = self.cap().filter(|_| self.allowed < 0)?;
        let missing = (full(cap, limits) / 2)
            .saturating_sub(self.allowed)
            .unsigned_abs();
        Some(self.filled + Cycles(missing.div_ceil(cap)))
    }

    /// The cap in per cent, if it restricts anything on one core.
    fn cap(&self) -> Option<u64> {
        self.share
            .cap
            .map(|cap| u64::from(cap.percent()))
            .filter(|&percent| percent < WHOLE)
    }
}

/// What a cap account holds at most.
fn full(cap: u64, limits: &Limits) -> i64 {
    signed(limits.cap_burst.get().saturating_mul(cap))
}
