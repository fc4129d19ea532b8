//! Access and trunk ports: which VLAN a received frame belongs to, and how a VLAN's frames leave.
//!
//! | received | access | trunk |
//! |---|---|---|
//! | untagged, or priority tag (VLAN id 0) | the PVID | the native VLAN, or dropped |
//! | tag of an allowed VLAN | dropped | that VLAN |
//! | tag of the native VLAN | dropped | that VLAN |
//! | any other tag | dropped | dropped |
//! | VLAN id 4095, TPID 0x88a8, a priority tag before another tag | dropped | dropped |
//!
//! That is 802.1Q, 8.6.2 (ingress filtering on) with "admit only untagged and priority-tagged" on
//! access ports, and on trunks "admit all" or, without a native VLAN, "admit only tagged".
//! Frames leave an access port untagged, and a trunk tagged, those of its native VLAN untagged.
//! A port is a member of exactly the VLANs it takes frames of.
//!
//! Beyond the standard, tags within tags: a guest may use them inside a trunk's VLAN, and they pass
//! untouched. But where the outer tag is taken off, the next one would be read as the VLAN by
//! whoever receives the frame, which is how frames hop between VLANs. So a frame with a tag in
//! its tag leaves only tagged ([`Egress::tci`]), and a priority tag, which is always taken off, may
//! not hide another tag. An access port's guest cannot send tags at all, not even in vain.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TPID, Tag, Vid, VlanSet, is_tpid};
use crate::discard::Discard;

/// Most VLANs of a trunk for each of which something is done ([`Mode::few`]).
const MANY: usize = 64;

/// A port's VLANs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
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

/// What a received frame is, as far as VLANs go: one word, since it is made and looked at for every
/// frame, and a struct of small fields would be put together in memory each time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Class(NonZeroU32);

impl Class {
    /// A frame of `vid`; `pcp_dei` has its priority and drop eligibility in the upper four bits, as
    /// in a TCI; `nested`: another tag follows the one that was read.
    #[inline]
    #[must_use]
    pub fn new(vid: Vid, pcp_dei: u16, nested: bool) -> Class {
        let word = u32::from(pcp_dei & 0xf000) | u32::from(nested) << 16;
        Class(NonZeroU32::from(NonZeroU16::from(vid)) | word)
    }

    /// All of it in one word, never zero.
    #[inline]
    #[must_use]
    pub fn word(self) -> u32 {
        self.0.get()
    }

    /// Its VLAN.
    #[inline]
    #[must_use]
    pub fn vid(self) -> Vid {
        #[expect(clippy::cast_possible_truncation, reason = "12 bits")]
        Vid::new(self.0.get() as u16 & 0x0fff).unwrap_or(Vid::DEFAULT)
    }

    /// Priority and drop eligibility, in the upper four bits, as in a TCI.
    #[inline]
    #[must_use]
    pub fn pcp_dei(self) -> u16 {
        self.tci() & 0xf000
    }

    /// The TCI of its tag, if it had one.
    #[inline]
    #[must_use]
    pub fn tci(self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        {
            self.0.get() as u16
        }
    }

    /// Another tag follows the one that was read.
    #[inline]
    #[must_use]
    pub fn nested(self) -> bool {
        self.0.get() >> 16 != 0
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Class")
            .field("vid", &self.vid())
            .field("pcp_dei", &self.pcp_dei())
            .field("nested", &self.nested())
            .finish()
    }
}

/// How frames of a VLAN leave a port that is a member of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Without a tag.
    Untagged,
    /// With a tag of TPID 0x8100.
    Tagged,
}

impl Default for Mode {
    /// An access port in VLAN 1.
    fn default() -> Mode {
        Mode::Access { pvid: Vid::DEFAULT }
    }
}

impl Mode {
    /// The class of a frame that begins with `tag`, or with none, followed by `ethertype`.
    ///
    /// # Errors
    /// [`Discard::BadTag`], [`Discard::TaggedOnAccess`], [`Discard::VlanNotAllowed`],
    /// [`Discard::UntaggedOnTrunk`].
    #[inline]
    pub fn classify(&self, tag: Option<Tag>, ethertype: u16) -> Result<Class, Discard> {
        let nested = is_tpid(ethertype);
        let Some(tag) = tag else {
            // A TPID that was not read as a tag belongs to one that is cut short.
            return self.untagged(0, nested);
        };
        let pcp_dei = tag.tci & 0xf000;
        if tag.tpid != TPID {
            return Err(Discard::BadTag);
        }
        match (Vid::new(tag.vid_bits()), self) {
            (Some(_), Mode::Access { .. }) => Err(Discard::TaggedOnAccess),
            (Some(vid), Mode::Trunk { allowed, native }) => {
                if !allowed.contains(vid) && *native != Some(vid) {
                    return Err(Discard::VlanNotAllowed);
                }
                Ok(Class::new(vid, pcp_dei, nested))
            }
            (None, _) if tag.vid_bits() == 0 => self.untagged(pcp_dei, nested),
            (None, _) => Err(Discard::BadTag),
        }
    }

    /// The class of a frame that names no VLAN.
    #[inline]
    fn untagged(&self, pcp_dei: u16, nested: bool) -> Result<Class, Discard> {
        let vid = match self {
            _ if nested => return Err(Discard::BadTag),
            Mode::Access { pvid } => *pvid,
            Mode::Trunk { native, .. } => native.ok_or(Discard::UntaggedOnTrunk)?,
        };
        Ok(Class::new(vid, pcp_dei, nested))
    }

    /// How frames of `vid` leave; `None` if the port is not a member.
    #[inline]
    #[must_use]
    pub fn egress(&self, vid: Vid) -> Option<Egress> {
        match self {
            Mode::Access { pvid } => (*pvid == vid).then_some(Egress::Untagged),
            Mode::Trunk { native, .. } if *native == Some(vid) => Some(Egress::Untagged),
            Mode::Trunk { allowed, .. } => allowed.contains(vid).then_some(Egress::Tagged),
        }
    }

    /// The VLANs the port is a member of.
    #[must_use]
    pub fn members(&self) -> VlanSet {
        match self {
            Mode::Access { pvid } => [*pvid].into_iter().collect(),
            Mode::Trunk { allowed, native } => allowed.iter().chain(*native).collect(),
        }
    }

    /// The VLANs for each of which something may be done: all those of [`Mode::members`], or, if
    /// there are more than 64, the native one alone.
    #[must_use]
    pub fn few(&self) -> VlanSet {
        match self {
            Mode::Trunk { allowed, native } if allowed.len() > MANY => {
                native.iter().copied().collect()
            }
            mode => mode.members(),
        }
    }
}

impl Egress {
    /// The TCI of the tag that a frame leaves with, or `None` if it leaves without one.
    ///
    /// # Errors
    /// [`Discard::NestedTag`]: it would leave without a tag and has another one inside.
    #[inline]
    pub fn tci(self, class: Class) -> Result<Option<u16>, Discard> {
        match self {
            Egress::Tagged => Ok(Some(class.tci())),
            Egress::Untagged if class.nested() => Err(Discard::NestedTag),
            Egress::Untagged => Ok(None),
        }
    }
}
