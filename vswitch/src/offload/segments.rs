//! Cutting a segmented frame (GSO) into frames of their own: TCP and UDP, IPv4 and IPv6.
//!
//! Each segment gets the headers of the whole frame, changed as Linux changes them
//! (`tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`): IP and UDP lengths; IPv4
//! identifier one higher each time, header checksum; TCP sequence number; CWR in the first only,
//! FIN and PSH in the last only; checksums.

use arrayvec::ArrayVec;

use super::checksum::Sum;
use super::cut;
use super::layout::{IPV6, Layout, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM};
use crate::discard::Discard;
use crate::net::{NEEDS_CSUM, NetHeader, Offloads};

/// Longest headers, in bytes: with two tags, IPv4 and TCP at their longest take 142, and IPv6 with
/// TCP leaves 134 for extension headers.
pub const MAX_HEADERS: usize = 256;

/// TCP flags (RFC 9293, 3.1; RFC 3168).
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The segments of a frame, from the first to the last.
#[derive(Debug)]
pub struct Segments<'a> {
    /// Of the whole frame.
    headers: &'a [u8],
    layout: Layout,
    /// Not yet cut.
    rest: &'a [u8],
    size: usize,
    /// Segments given.
    given: u16,
    /// Segments to come.
    left: usize,
    /// Sum of the addresses and the protocol.
    pseudo: Sum,
    /// Leave the checksum to the receiver.
    partial: bool,
}

/// One segment: a frame in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The virtio-net header to go with it: all zero, or a partial checksum for who takes one.
    pub header: NetHeader,
    /// All headers, from the destination address on.
    pub headers: ArrayVec<u8, MAX_HEADERS>,
    /// What follows the headers.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Length of the frame, in bytes.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a frame has headers")]
    pub fn len(&self) -> usize {
        self.headers.len() + self.payload.len()
    }

    /// Write the whole frame to the beginning of `out`; gives its length, or nothing if `out` is
    /// too small.
    #[inline]
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let (headers, rest) = out.split_at_mut_checked(self.headers.len())?;
        let payload = rest.get_mut(..self.payload.len())?;
        headers.copy_from_slice(&self.headers);
        payload.copy_from_slice(self.payload);
        Some(self.len())
    }
}

impl<'a> Segments<'a> {
    /// The segments of `frame`, for a receiver that `accepts` partial checksums or nothing. The
    /// header is one that [`super::validate`] gave, shifted if a tag was pushed or popped.
    ///
    /// # Errors
    /// [`Discard::BadHeader`] if the frame is not segmented, or is not what the header says;
    /// [`Discard::TooBigForReceiver`] if its headers are too long, or its IPv6 destination is a
    /// station on the way, so that the checksum cannot be made anew.
    pub fn new(
        header: NetHeader,
        frame: &'a [u8],
        accepts: Offloads,
    ) -> Result<Segments<'a>, Discard> {
        let layout = Layout::parse(frame).map_err(|_| Discard::BadHeader)?;
        if !layout.fits(header.gso_type) || layout.transport != usize::from(header.csum_start) {
            return Err(Discard::BadHeader);
        }
        let left = cut(header, layout.payload, frame.len())?;
        let (headers, rest) = frame
            .split_at_checked(layout.payload)
            .ok_or(Discard::BadHeader)?;
        let size = usize::from(header.gso_size);
        // The length fields of a segment must hold its length.
        if layout.payload - layout.network + size.min(rest.len()) > usize::from(u16::MAX) {
            return Err(Discard::BadHeader);
        }
        if layout.routed || headers.len() > MAX_HEADERS {
            return Err(Discard::TooBigForReceiver);
        }
        let addresses = if layout.v6 {
            layout.network + 8..layout.network + IPV6
        } else {
            layout.network + 12..layout.network + 20
        };
        let addresses = headers.get(addresses).ok_or(Discard::BadHeader)?;
        Ok(Segments {
            headers,
            layout,
            rest,
            size,
            given: 0,
            left,
            pseudo: Sum::of(addresses).with_u16(u16::from(layout.protocol)),
            partial: accepts.has(Offloads::CSUM),
        })
    }

    /// Network and transport headers of the next segment, with `payload` behind them.
    fn edit(&self, headers: &mut [u8], payload: &[u8]) {
        let layout = self.layout;
        let behind_network = headers.len() - layout.transport + payload.len();
        if layout.v6 {
            // Extension headers count as payload.
            let length = headers.len() - layout.network - IPV6 + payload.len();
            put(headers, layout.network + 4, narrow(length));
        } else {
            let length = headers.len() - layout.network + payload.len();
            put(headers, layout.network + 2, narrow(length));
            let id = get(headers, layout.network + 4).wrapping_add(self.given);
            put(headers, layout.network + 4, id);
            put(headers, layout.network + 10, 0);
            let ip = headers.get(layout.network..layout.transport);
            let sum = Sum::of(ip.unwrap_or_default()).checksum();
            put(headers, layout.network + 10, sum);
        }
        let checksum_at = match layout.protocol {
            UDP => {
                put(headers, layout.transport + 4, narrow(behind_network));
                layout.transport + UDP_CHECKSUM
            }
            _ => {
                self.edit_tcp(headers);
                layout.transport + TCP_CHECKSUM
            }
        };
        let pseudo = self.pseudo.with_u16(narrow(behind_network));
        let checksum = if self.partial {
            pseudo.fold()
        } else {
            put(headers, checksum_at, 0);
            let transport = headers.get(layout.transport..).unwrap_or_default();
            pseudo.with(transport).with(payload).nonzero_checksum()
        };
        put(headers, checksum_at, checksum);
    }

    /// Sequence number and flags.
    fn edit_tcp(&self, headers: &mut [u8]) {
        let at = self.layout.transport;
        if let Some(field) = headers.get_mut(at + 4..).and_then(<[u8]>::first_chunk_mut) {
            let before = u32::from(self.given) * u32::from(narrow(self.size));
            *field = u32::from_be_bytes(*field)
                .wrapping_add(before)
                .to_be_bytes();
        }
        if let Some(flags) = headers.get_mut(at + 13) {
            if self.given > 0 {
                *flags &= !CWR;
            }
            if self.left > 1 {
                *flags &= !(FIN | PSH);
            }
        }
    }

    fn header(&self) -> NetHeader {
        if !self.partial {
            return NetHeader::default();
        }
        NetHeader {
            flags: NEEDS_CSUM,
            csum_start: narrow(self.layout.transport),
            csum_offset: narrow(match self.layout.protocol {
                TCP => TCP_CHECKSUM,
                _ => UDP_CHECKSUM,
            }),
            ..NetHeader::default()
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.left == 0 {
            return None;
        }
        let (payload, rest) = self.rest.split_at(self.size.min(self.rest.len()));
        // They are at most so long, see `new`.
        let mut headers = ArrayVec::try_from(self.headers).unwrap_or_default();
        self.edit(&mut headers, payload);
        let header = self.header();
        self.rest = rest;
        self.left -= 1;
        self.given += 1;
        Some(Segment {
            header,
            headers,
            payload,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Segments<'_> {}

fn get(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.map_or(0, |field| u16::from_be_bytes(*field))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = value.to_be_bytes();
    }
}

/// A length that [`Segments::new`] found to fit.
fn narrow(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
