//! Flexible resources of an NVMe controller with SR-IOV: queue pairs (VQ) and interrupts (VI) that
//! the primary controller, the PF, deals out to the secondary ones, its VFs (NVMe base 2.0, 8.26).
//!
//! A secondary controller without at least two queue pairs and one interrupt does not go on line,
//! and no driver can use its VF. While it is on line nothing can be changed; off line, controllers
//! forget what they were given. So a VF is always taken off line, given everything, and put on
//! line. What the primary keeps for itself changes with its next reset, which takes all of the
//! secondary ones off line: that is done before there are any.

use std::io;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::nvme::{IDENTIFY_BYTES, identify, virtualization};

use crate::kernel::{Controllers, WriteError};

/// Structures of Identify: a primary controller's capabilities, and its secondary controllers.
const PRIMARY: u8 = 0x14;
const SECONDARY: u8 = 0x15;
/// The list of secondary controllers has room for so many.
const MAX_SECONDARY: usize = 127;

/// Resources that a controller has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// Queue pairs, the one for administration among them.
    pub vq: u16,
    /// Interrupts.
    pub vi: u16,
}

impl Resources {
    /// What an off-line controller has.
    pub const NONE: Self = Self { vq: 0, vi: 0 };
}

impl std::fmt::Display for Resources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} queue pairs, {} interrupts", self.vq, self.vi)
    }
}

/// Flexible resources of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flexible {
    /// How many there are.
    pub total: u32,
    /// How many of them the primary controller has.
    pub primary: u16,
    /// The most that one secondary controller can have.
    pub most: u16,
    /// They are dealt out in multiples of this.
    pub step: u16,
}

/// What a primary controller has to deal out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// The primary controller's own number.
    pub id: u16,
    /// Queue pairs.
    pub vq: Flexible,
    /// Interrupts.
    pub vi: Flexible,
}

impl Pool {
    /// What the primary controller has of it.
    pub fn primary(&self) -> Resources {
        Resources {
            vq: self.vq.primary,
            vi: self.vi.primary,
        }
    }

    /// Whether there is anything to deal out.
    pub fn is_flexible(&self) -> bool {
        self.vq.total > 0 || self.vi.total > 0
    }
}

/// A secondary controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Secondary {
    /// Its number.
    pub id: u16,
    /// The VF that it is, counted from 1; 0: none.
    pub vf: u16,
    /// Whether it is on line.
    pub online: bool,
    /// What it has.
    pub has: Resources,
}

/// A primary controller with its secondary ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// What there is to deal out.
    pub pool: Pool,
    /// Who may get of it.
    pub secondary: Vec<Secondary>,
}

impl Family {
    /// The controller of VF `index`.
    pub fn of_vf(&self, index: u16) -> Option<&Secondary> {
        let number = index.checked_add(1)?;
        self.secondary.iter().find(|one| one.vf == number)
    }

    /// What VF `index` can work with: nothing, while its controller is off line.
    pub fn resources(&self, index: u16) -> Option<Resources> {
        let one = self.of_vf(index)?;
        Some(if one.online { one.has } else { Resources::NONE })
    }
}

/// What can be done about one controller (NVMe base 2.0, 5.34).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The primary controller has so many from its next reset on.
    Keep(Kind, u16),
    /// A secondary one goes off line.
    Offline,
    /// It gets so many.
    Assign(Kind, u16),
    /// It goes on line.
    Online,
}

/// Which resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Queue pairs.
    Vq = 0,
    /// Interrupts.
    Vi = 1,
}

/// The running kernel's controllers.
#[derive(Clone, Copy, Debug)]
pub struct Admin;

impl Controllers for Admin {
    fn family(&self, controller: &Path) -> io::Result<Family> {
        Ok(Family {
            pool: pool(&*identify(controller, PRIMARY)?),
            secondary: secondary(&*identify(controller, SECONDARY)?),
        })
    }

    fn order(&self, controller: &Path, id: u16, order: Order) -> Result<(), WriteError> {
        let (action, kind, count) = match order {
            Order::Keep(kind, count) => (1, kind, count),
            Order::Offline => (7, Kind::Vq, 0),
            Order::Assign(kind, count) => (8, kind, count),
            Order::Online => (9, Kind::Vq, 0),
        };
        virtualization(controller, id, action, kind as u8, count).map_err(|error| {
            match WriteError::from(&error) {
                WriteError::Refused { errno, .. } => WriteError::Refused {
                    errno,
                    said: error.to_string(),
                },
                wedged @ WriteError::Wedged { .. } => wedged,
            }
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
    bytes.map_or(0, u16::from_le_bytes)
}

/// Primary Controller Capabilities (NVMe base 2.0, figure 282).
fn pool(bytes: &[u8; IDENTIFY_BYTES]) -> Pool {
    let flexible = |at: usize| Flexible {
        total: u32::from(word(bytes, at)) | (u32::from(word(bytes, at + 2)) << 16),
        primary: word(bytes, at + 8),
        most: word(bytes, at + 12),
        step: word(bytes, at + 14),
    };
    Pool {
        id: word(bytes, 0),
        vq: flexible(32),
        vi: flexible(64),
    }
}

/// Secondary Controller List (NVMe base 2.0, figure 283).
fn secondary(bytes: &[u8; IDENTIFY_BYTES]) -> Vec<Secondary> {
    let count = usize::from(bytes[0]).min(MAX_SECONDARY);
    let entries = bytes[32..].chunks_exact(32).take(count);
    let entries = entries.map(|entry| Secondary {
        id: word(entry, 0),
        vf: word(entry, 8),
        online: entry[4] & 1 != 0,
        has: Resources {
            vq: word(entry, 10),
            vi: word(entry, 12),
        },
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_controllers_capabilities_are_read() {
        let mut bytes = [0; IDENTIFY_BYTES];
        let mut put = |at: usize, value: u16| {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        for (at, value) in [
            (0, 3),
            (32, 8),
            (40, 6),
            (44, 4),
            (46, 2),
            (64, 5),
            (66, 1),
            (76, 9),
        ] {
            put(at, value);
        }
        let pool = pool(&bytes);
        let vq = Flexible {
            total: 8,
            primary: 6,
            most: 4,
            step: 2,
        };
        assert_eq!((pool.id, pool.vq), (3, vq));
        assert_eq!((pool.vi.total, pool.vi.most), (0x1_0005, 9));
        assert!(pool.is_flexible());
    }

    #[test]
    fn secondary_controllers_are_told_by_their_vfs() {
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes[0] = 2;
        // Number, state, VF, queue pairs, interrupts.
        for (entry, (id, state, vf, vq, vi)) in
            [(1, 1, 1, 2, 1), (2, 0, 2, 4, 4)].iter().enumerate()
        {
            let at = 32 + 32 * entry;
            (bytes[at], bytes[at + 4], bytes[at + 8]) = (*id, *state, *vf);
            (bytes[at + 10], bytes[at + 12]) = (*vq, *vi);
        }
        let family = Family {
            pool: Pool::default(),
            secondary: secondary(&bytes),
        };
        assert_eq!(family.of_vf(0).unwrap().id, 1);
        assert_eq!(family.resources(0), Some(Resources { vq: 2, vi: 1 }));
        assert_eq!(family.resources(1), Some(Resources::NONE), "off line");
        assert_eq!(family.resources(2), None);
    }

    /// Whatever number a controller claims, the list is as long as its page.
    #[test]
    fn a_list_ends_with_its_page() {
        assert_eq!(secondary(&[0xff; IDENTIFY_BYTES]).len(), MAX_SECONDARY);
    }
}
