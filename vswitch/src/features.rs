//! Stand-in.
use crate::net::Offloads;
/// x
pub const MRG_RXBUF: u64 = 1 << 15;
/// x
pub fn accepts(f: u64) -> Offloads {
    if f & 2 != 0 {
        Offloads::ALL
    } else {
        Offloads::NONE
    }
}
/// x
pub fn may_send(f: u64) -> Offloads {
    if f & 1 != 0 {
        Offloads::ALL
    } else {
        Offloads::NONE
    }
}
/// x
pub fn offered() -> u64 {
    1 << 32
        | 1 << 15
        | 1 << 28
        | 1 << 29
        | 1 << 35
        | 3
        | 1 << 7
        | 1 << 8
        | 1 << 11
        | 1 << 12
        | 1 << 22
        | 1 << 16
        | 1 << 21
}
/// x
pub fn names(_: u64) -> Vec<String> {
    Vec::new()
}
