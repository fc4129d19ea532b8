//! A port's VLANs as configured.

pub use super::set::VlanSet;
use crate::vlan::Vid;

/// A port's VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One VLAN, untagged.
    Access {
        /// That VLAN.
        pvid: Vid,
    },
    /// Many VLANs, tagged.
    Trunk {
        /// Those VLANs.
        allowed: VlanSet,
        /// The VLAN of untagged frames, in both directions; allowed even if not in `allowed`.
        native: Option<Vid>,
    },
}

impl Mode {
    /// Whether the port is a member of `vid`.
    #[must_use]
    pub fn carries(&self, vid: Vid) -> bool {
        match self {
            Mode::Access { pvid } => *pvid == vid,
            Mode::Trunk { allowed, native } => allowed.contains(vid) || *native == Some(vid),
        }
    }
}
