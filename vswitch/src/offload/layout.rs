//! Where the headers of a TCP or UDP frame stand.

use crate::net::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use crate::vlan::{TPID, TPID_SERVICE};

/// Length of an Ethernet header without tags, in bytes.
pub(super) const ETHERNET: usize = 14;
/// IP protocol numbers.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// Where the checksum stands in the transport headers (RFC 9293, 3.1; RFC 768).
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;
/// Length of the fixed headers, in bytes.
pub(super) const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
pub(super) const TCP_HEADER: usize = 20;
pub(super) const UDP_HEADER: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Most VLAN tags before the IP header: a customer's in a service tag.
const MAX_TAGS: usize = 2;
/// Most IPv6 extension headers: each may stand once, destination options twice (RFC 8200, 4.1).
const MAX_EXTENSIONS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Where the headers of a TCP or UDP frame stand, in bytes from the start of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Start of the IP header.
    pub(super) network: usize,
    /// Start of the TCP or UDP header.
    pub(super) transport: usize,
    /// Start of the payload: the length of all headers.
    pub(super) payload: usize,
    /// IPv6, not IPv4.
    pub(super) v6: bool,
    /// [`TCP`] or [`UDP`].
    pub(super) protocol: u8,
    /// The destination in the IPv6 header is not the final one, which the checksum is made with.
    pub(super) routed: bool,
}

/// Why there is no layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The headers go on beyond the bytes at hand.
    Short,
    /// Not TCP or UDP over IP, a fragment, or headers that contradict themselves.
    Bad,
}

fn byte(head: &[u8], at: usize) -> Result<u8, Trouble> {
    head.get(at).copied().ok_or(Trouble::Short)
}

fn word(head: &[u8], at: usize) -> Result<u16, Trouble> {
    Ok(u16::from_be_bytes([byte(head, at)?, byte(head, at + 1)?]))
}

/// Where the EtherType of the payload stands: behind up to two tags.
pub(super) fn ethertype_at(head: &[u8]) -> Result<usize, Trouble> {
    let mut at = ETHERNET - 2;
    for _ in 0..MAX_TAGS {
        if !matches!(word(head, at)?, TPID | TPID_SERVICE) {
            break;
        }
        at += 4;
    }
    Ok(at)
}

impl Layout {
    /// Of the frame that starts with `head`.
    pub(super) fn parse(head: &[u8]) -> Result<Layout, Trouble> {
        let at = ethertype_at(head)?;
        let network = at + 2;
        let (v6, (protocol, transport, routed)) = match word(head, at)? {
            ETHERTYPE_IPV4 => (false, ipv4(head, network)?),
            ETHERTYPE_IPV6 => (true, ipv6(head, network)?),
            _ => return Err(Trouble::Bad),
        };
        let length = match protocol {
            TCP => match usize::from(byte(head, transport + 12)? >> 4) * 4 {
                length if length >= TCP_HEADER => length,
                _ => return Err(Trouble::Bad),
            },
            UDP => UDP_HEADER,
            _ => return Err(Trouble::Bad),
        };
        Ok(Layout {
            network,
            transport,
            payload: transport + length,
            v6,
            protocol,
            routed,
        })
    }

    /// Whether a frame laid out so may have this GSO type.
    pub(super) fn fits(&self, gso_type: u8) -> bool {
        match gso_type & !GSO_ECN {
            GSO_TCPV4 => self.protocol == TCP && !self.v6,
            GSO_TCPV6 => self.protocol == TCP && self.v6,
            GSO_UDP_L4 => self.protocol == UDP,
            _ => false,
        }
    }
}

/// Protocol, start of the next header, and false.
fn ipv4(head: &[u8], at: usize) -> Result<(u8, usize, bool), Trouble> {
    let first = byte(head, at)?;
    let length = usize::from(first & 0xf) * 4;
    // More fragments, or a fragment's offset.
    let fragment = word(head, at + 6)? & 0x3fff != 0;
    if first >> 4 != 4 || length < IPV4 || fragment {
        return Err(Trouble::Bad);
    }
    Ok((byte(head, at + 9)?, at + length, false))
}

/// Protocol, start of its header, and whether there are more stations on the way.
///
/// Passes over the extension headers that Linux segments with (`ipv6_gso_pull_exthdrs`).
fn ipv6(head: &[u8], at: usize) -> Result<(u8, usize, bool), Trouble> {
    if byte(head, at)? >> 4 != 6 {
        return Err(Trouble::Bad);
    }
    let mut protocol = byte(head, at + 6)?;
    let mut next = at + IPV6;
    let mut routed = false;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            break;
        }
        routed |= protocol == ROUTING && byte(head, next + 3)? != 0;
        protocol = byte(head, next)?;
        next += (usize::from(byte(head, next + 1)?) + 1) * 8;
    }
    Ok((protocol, next, routed))
}
