//! Guards as configured: what a machine may not do to others. On by default for ports and off on
//! uplinks; `[switch.guards]` changes them for all ports, `guards` of a port or uplink for one.

pub use crate::guard::{Bound, GuardConfig, GuardTable, MAX_SOURCES, Side};

/// `over` where it speaks, else `table`.
pub(super) fn overlay(table: &GuardTable, over: &GuardTable) -> GuardTable {
    GuardTable {
        bpdu_guard: over.bpdu_guard.or(table.bpdu_guard),
        source_guard: over.source_guard.or(table.source_guard),
        mac_limit: over.mac_limit.or(table.mac_limit),
        broadcast_limit: over.broadcast_limit.or(table.broadcast_limit),
        multicast_limit: over.multicast_limit.or(table.multicast_limit),
        unknown_limit: over.unknown_limit.or(table.unknown_limit),
        packet_rate: over.packet_rate.or(table.packet_rate),
        packet_burst: over.packet_burst.or(table.packet_burst),
        byte_rate: over.byte_rate.or(table.byte_rate),
        byte_burst: over.byte_burst.or(table.byte_burst),
    }
}
