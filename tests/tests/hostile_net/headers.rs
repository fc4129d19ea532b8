//! H13: virtio-net headers that lie.

use anyhow::{Context, Result, ensure};
use towpath_common::testing::GuestMemory;
use towpath_common::testing::net::frame::station;
use towpath_common::testing::net::{
    DATA_VALID, Frame, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Header, NEEDS_CSUM,
};

use crate::harness::{MIB, PATIENCE, Scene, VICTIM, WITNESS, with_offloads};

/// Where the transport header of [`segment`] starts.
const TRANSPORT: u16 = 34;

/// A TCP segment over IPv4 with `payload` bytes, as a guest with offloads sends it.
pub(crate) fn segment(payload: usize) -> Frame {
    let total = u16::try_from(40 + payload).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([
        0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    packet.extend((0..payload).map(|i| u8::try_from(i % 251).unwrap_or(0)));
    Frame::new(station(WITNESS), station(VICTIM))
        .ethertype(0x0800)
        .payload(&packet)
}

fn checksum(start: u16, offset: u16) -> Header {
    Header {
        flags: NEEDS_CSUM,
        csum_start: start,
        csum_offset: offset,
        ..Header::default()
    }
}

fn gso(gso_type: u8, gso_size: u16) -> Header {
    Header {
        gso_type,
        gso_size,
        hdr_len: 54,
        ..checksum(TRANSPORT, 16)
    }
}

#[test]
fn h13_checksums_outside_the_frame() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim_with(with_offloads(), &GuestMemory::new(MIB)?)?;
    v.transmits()?;
    scene.forget()?;
    let frame = segment(100).bytes();
    let len = u16::try_from(frame.len())?;
    let wrong = [
        checksum(len, 0),
        checksum(len - 1, 0),
        checksum(len - 17, 16),
        checksum(u16::MAX, 0),
        checksum(u16::MAX, u16::MAX),
        checksum(TRANSPORT, u16::MAX),
        checksum(TRANSPORT, len),
        // Over the addresses: the checksum would rewrite what was decided on.
        checksum(0, 0),
        checksum(0, 6),
        checksum(11, 0),
        checksum(12, 0),
    ];
    for header in wrong {
        let sent = scene.discarded("victim", &[("bad_header", 1)], || {
            v.send_with(header, &frame)
        });
        sent.with_context(|| format!("{header:?}"))?;
    }
    ensure!(
        scene.forget()? == 0,
        "a frame with a bad header was forwarded"
    );
    // One that is right: the witness, which has no offloads, gets it whole.
    v.send_with(checksum(TRANSPORT, 16), &frame)?;
    let got = scene.seen(PATIENCE)?.context("a frame that is right")?;
    let plain = Header {
        num_buffers: got.header.num_buffers,
        ..Header::default()
    };
    ensure!(
        got.header == plain,
        "shown to the witness: {:?}",
        got.header
    );
    ensure!(folded(&got.frame[26..]) == 0xffff, "the checksum is wrong");
    drop(v);
    scene.finish()
}

/// The sum of pseudo-header and segment, all of them in a row if source and destination come first:
/// 0xffff if the checksum was completed.
fn folded(bytes: &[u8]) -> u16 {
    // The partial sum that a guest leaves in the field was 0: the pseudo-header is not in it.
    let segment = &bytes[8..];
    let words = segment.chunks(2).map(|w| {
        let [a, b] = [w[0], w.get(1).copied().unwrap_or(0)];
        u32::from(u16::from_be_bytes([a, b]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap_or(0)
}

#[test]
fn h13_segmentation_that_makes_no_sense() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim_with(with_offloads(), &GuestMemory::new(MIB)?)?;
    v.transmits()?;
    scene.forget()?;
    let frame = segment(4000).bytes();
    let mut wrong = vec![
        gso(GSO_TCPV4, 0),
        gso(GSO_TCPV4, 1),
        // Of another version, another protocol, and of kinds that there are not.
        gso(GSO_TCPV6, 1000),
        gso(GSO_UDP_L4, 1000),
        gso(GSO_UDP_L4 | GSO_ECN, 1000),
        gso(2, 1000),
        gso(3, 1000),
        gso(6, 1000),
        gso(0x7f, 1000),
        gso(0xff, 1000),
        gso(GSO_ECN, 1000),
        // Without a partial checksum there is nothing to segment by.
        Header {
            flags: 0,
            ..gso(GSO_TCPV4, 1000)
        },
        Header {
            csum_start: TRANSPORT + 1,
            ..gso(GSO_TCPV4, 1000)
        },
        Header {
            csum_offset: 6,
            ..gso(GSO_TCPV4, 1000)
        },
    ];
    for header in wrong.drain(..) {
        let sent = scene.discarded("victim", &[("bad_header", 1)], || {
            v.send_with(header, &frame)
        });
        sent.with_context(|| format!("{header:?}"))?;
    }
    ensure!(
        scene.forget()? == 0,
        "a frame with a bad header was forwarded"
    );
    // Headers that are cut off, or longer than the frame, or of another length than they say.
    let cut = [14, 20, 33, 34, 50, 53];
    scene.discarded("victim", &[("bad_header", 6)], || {
        cut.into_iter()
            .try_for_each(|len| v.send_with(gso(GSO_TCPV4, 1000), &frame[..len]))
    })?;
    ensure!(scene.forget()? == 0, "a frame cut off was forwarded");
    // What is only a hint may be anything.
    for hdr_len in [0, 1, 53, 54, 55, 4000, u16::MAX] {
        let header = Header {
            hdr_len,
            num_buffers: 0xabcd,
            flags: NEEDS_CSUM | DATA_VALID | 0xf0,
            ..gso(GSO_TCPV4, 1000)
        };
        v.send_with(header, &frame)?;
        let mut payload = 0;
        for _ in 0..4 {
            let got = scene.seen(PATIENCE)?.context("a segment")?;
            ensure!(got.frame.len() == 54 + 1000, "{} bytes", got.frame.len());
            payload += got.frame.len() - 54;
        }
        ensure!(payload == 4000, "{payload} bytes of payload");
    }
    ensure!(scene.forget()? == 0, "more segments than four");
    v.works()?;
    drop(v);
    scene.finish()
}

#[test]
fn h13_offloads_that_were_not_negotiated() -> Result<()> {
    let scene = Scene::new()?;
    let mut v = scene.victim()?;
    let frame = segment(1000).bytes();
    for header in [
        checksum(TRANSPORT, 16),
        gso(GSO_TCPV4, 500),
        gso(GSO_TCPV6, 500),
    ] {
        scene.discarded("victim", &[("bad_header", 1)], || {
            v.send_with(header, &frame)
        })?;
    }
    ensure!(scene.forget()? == 0, "it was forwarded");
    // Words that mean nothing without an offload are ignored.
    let header = Header {
        gso_size: u16::MAX,
        hdr_len: u16::MAX,
        csum_start: u16::MAX,
        csum_offset: u16::MAX,
        num_buffers: u16::MAX,
        ..Header::default()
    };
    let plain = v.frame(station(WITNESS));
    v.send_with(header, &plain.bytes())?;
    let got = scene.seen(PATIENCE)?.context("a plain frame")?;
    ensure!(got.frame == plain.bytes(), "another frame");
    let shown = Header {
        num_buffers: 1,
        ..Header::default()
    };
    ensure!(
        got.header == shown,
        "{:?} was shown to the witness",
        got.header
    );
    drop(v);
    scene.finish()
}
