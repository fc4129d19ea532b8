//! What an entity is entitled to: a weight, and perhaps a cap.

use std::fmt;
use std::num::NonZeroU16;

/// Why a share or an entity was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedError {
    /// Not a weight.
    #[error("weight {0} is out of range; use 1 to 65535 (256 is normal)")]
    Weight(u32),
    /// Not a cap.
    #[error("cap {0} is out of range; use 1 to {max} per cent of a core, or none", max = Cap::MAX)]
    Cap(u32),
    /// The worker has all the entities it can take.
    #[error("the worker already serves {0} entities; move some to another worker")]
    Full(usize),
}

/// An entity's share when the worker is contended, relative to the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(NonZeroU16);

impl Weight {
    /// The weight of somebody who did not ask for any: 256, as in Xen.
    pub const DEFAULT: Weight = Weight(NonZeroU16::MIN.saturating_add(255));

    /// The weight as a number, 1 to 65535.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl Default for Weight {
    fn default() -> Self {
        Weight::DEFAULT
    }
}

impl TryFrom<u32> for Weight {
    type Error = SchedError;
    fn try_from(weight: u32) -> Result<Self, SchedError> {
        u16::try_from(weight)
            .ok()
            .and_then(NonZeroU16::new)
            .map(Weight)
            .ok_or(SchedError::Weight(weight))
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The most an entity may use, in per cent of one core. One worker has one core, so 100 and more
/// restrict nothing here; they have a meaning for what is spread over several workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cap(NonZeroU16);

impl Cap {
    /// A hundred cores: more than any daemon has workers.
    pub const MAX: u16 = 10_000;

    /// Per cent of one core, 1 to [`Cap::MAX`].
    pub const fn percent(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u32> for Cap {
    type Error = SchedError;
    fn try_from(percent: u32) -> Result<Self, SchedError> {
        u16::try_from(percent)
            .ok()
            .filter(|&percent| percent <= Cap::MAX)
            .and_then(NonZeroU16::new)
            .map(Cap)
            .ok_or(SchedError::Cap(percent))
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// What an entity is entitled to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its part when the worker is contended.
    pub weight: Weight,
    /// Its limit at all times.
    pub cap: Option<Cap>,
}
