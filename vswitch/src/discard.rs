//! Why a frame was dropped: every reason has a name and a counter.

/// A reason to drop a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Discard {
    /// Shorter than a virtio-net header and an Ethernet header.
    Runt,
    /// Longer than the port's largest frame.
    Giant,
    /// The virtio-net header asks for what was not negotiated or contradicts the frame.
    BadHeader,
    /// Source address is a group address or zero.
    BadSource,
    /// Destination 01:80:c2:00:00:00 to 0f, which no bridge forwards.
    LinkLocal,
    /// A tag on an access port.
    TaggedOnAccess,
    /// A service tag (802.1ad), a reserved VLAN id, or a tag cut short.
    BadTag,
    /// A tag within a tag, to a port that gets the VLAN untagged: it would read as the outer one.
    NestedTag,
    /// A VLAN the ingress port does not carry.
    VlanNotAllowed,
    /// An untagged frame on a trunk without a native VLAN.
    UntaggedOnTrunk,
    /// The source address is not the port's own.
    SourceGuard,
    /// The port has as many source addresses as it may.
    MacLimit,
    /// A bridge protocol frame from a port that must not send any.
    BpduGuard,
    /// More broadcast frames than the port may send.
    BroadcastStorm,
    /// More multicast frames than the port may send.
    MulticastStorm,
    /// More frames to unknown addresses than the port may send.
    UnknownStorm,
    /// Over the port's rate limit.
    RateLimit,
    /// The destination is on the port the frame came from.
    Hairpin,
    /// One of the two ports is isolated, and the other no uplink.
    Isolated,
    /// No port to send to: the VLAN has no other member.
    NoMember,
    /// The receiving port is down: no front-end, no driver, or not enabled.
    PortDown,
    /// The receiver has no buffers.
    ReceiverFull,
    /// The receiver's buffers are too small for the frame.
    ReceiverSmall,
    /// The frame is larger than the receiver takes and cannot be segmented.
    TooBigForReceiver,
    /// The frame is to be cut into more segments than the receiver's ring has entries.
    TooManySegments,
    /// The sending ring is disabled (vhost-user: its frames are consumed and dropped).
    RingDisabled,
}

impl Discard {
    /// Number of reasons.
    pub const COUNT: usize = Discard::NAMES.len();

    /// Short names for metrics, by [`Discard::index`].
    pub const NAMES: [&'static str; 26] = [
        "runt",
        "giant",
        "bad_header",
        "bad_source",
        "link_local",
        "tagged_on_access",
        "bad_tag",
        "nested_tag",
        "vlan_not_allowed",
        "untagged_on_trunk",
        "source_guard",
        "mac_limit",
        "bpdu_guard",
        "broadcast_storm",
        "multicast_storm",
        "unknown_storm",
        "rate_limit",
        "hairpin",
        "isolated",
        "no_member",
        "port_down",
        "receiver_full",
        "receiver_small",
        "too_big_for_receiver",
        "too_many_segments",
        "ring_disabled",
    ];

    /// A small number for tables of counters.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// A short name for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_name() {
        assert_eq!(Discard::RingDisabled.index() + 1, Discard::COUNT);
        assert_eq!(Discard::ReceiverFull.name(), "receiver_full");
    }
}
