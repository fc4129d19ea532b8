//! What offloads cost in software, beside a bare copy of the same frame in the same run.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Parser;
use vswitch::net::{GSO_NONE, GSO_TCPV4, NEEDS_CSUM, NetHeader, Offloads};
use vswitch::offload::{Segments, Sum, complete_checksum, validate};

/// Nanoseconds per frame of checks, checksums and segmentation.
#[derive(Debug, Parser)]
struct Options {
    /// Windows of half a millisecond for each case; the shortest counts, and the median.
    #[arg(long, default_value_t = 400)]
    windows: usize,
}

/// Longest headers here: Ethernet, IPv4, TCP with timestamps.
const HEADERS: usize = 66;
/// The longest TCP frame over IPv4.
const LONGEST: usize = 14 + 65_535;

const WHOLE: NetHeader = NetHeader {
    flags: NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 66,
    gso_size: 1448,
    csum_start: 34,
    csum_offset: 16,
};

const PARTIAL: NetHeader = NetHeader {
    gso_type: GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    ..WHOLE
};

/// A TCP frame over IPv4 of this length.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[23] = 6;
    frame[46] = 0x80;
    let payload = frame[HEADERS..].iter_mut();
    payload
        .zip((0..=250).cycle())
        .for_each(|(byte, i)| *byte = i);
    frame
}

/// Shortest and median time of one call.
fn time(options: &Options, name: &str, mut f: impl FnMut()) {
    const WINDOW: Duration = Duration::from_micros(500);
    let mut all: Vec<f64> = (0..options.windows.max(1))
        .map(|_| {
            let (start, mut calls) = (Instant::now(), 0u32);
            while start.elapsed() < WINDOW {
                (0..4).for_each(|_| f());
                calls += 4;
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    println!("{name:38} {:10.1} {:10.1}", all[0], all[all.len() / 2]);
}

fn main() -> Result<()> {
    let options = Options::parse();
    let whole = frame(LONGEST);
    let mut out = vec![0; LONGEST];
    println!("{:38} {:>10} {:>10}", "ns", "shortest", "median");
    for (name, header, len) in [
        ("check: no offload", NetHeader::default(), 60),
        ("check: partial checksum", PARTIAL, 1514),
        ("check: segmented", WHOLE, LONGEST),
    ] {
        let head = &whole[..len.min(128)];
        time(&options, name, || {
            let checked = validate(black_box(header), len, black_box(head), Offloads::ALL);
            let _ = black_box(checked);
        });
    }
    for len in [74, 1514, 9014, LONGEST] {
        let mut frame = frame(len);
        time(&options, &format!("copy {len}"), || {
            out[..len].copy_from_slice(black_box(&whole[..len]));
            black_box(&out);
        });
        time(&options, &format!("sum {len}"), || {
            black_box(Sum::of(black_box(&whole[..len])));
        });
        time(&options, &format!("complete a checksum {len}"), || {
            let _ = black_box(complete_checksum(black_box(PARTIAL), &mut frame));
        });
    }
    for (size, accepts, name) in [
        (1448, Offloads::NONE, "cut 64 KiB in 46, checksums"),
        (1448, Offloads::CSUM, "cut 64 KiB in 46, partial checksums"),
        (64, Offloads::NONE, "cut 64 KiB in 1024, checksums"),
    ] {
        let header = NetHeader {
            gso_size: size,
            ..WHOLE
        };
        Segments::new(header, &whole, accepts).map_err(|why| anyhow!("{why:?}"))?;
        time(&options, name, || {
            let segments = Segments::new(black_box(header), black_box(&whole), accepts);
            for segment in segments.into_iter().flatten() {
                black_box(segment.write(&mut out));
            }
        });
    }
    Ok(())
}
