//! Ports by number: what the tables of the switch are indexed by.

/// A port of the switch: its index in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u16);

impl PortNo {
    /// No port.
    pub const NONE: PortNo = PortNo(0xffff);

    /// As an index.
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
