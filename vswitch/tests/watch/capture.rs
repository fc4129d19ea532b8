//! Captures of a running switch, read back from their files.

use std::thread;

use pcap_file::pcapng::{Block, PcapNgReader};
use towpath_common::testing::net::frame::{Frame, station};
use vswitch::capture::{CaptureStatus, Direction, End, Order, client};

use crate::bed::{Bed, frame, text};

/// Orders a capture, and calls `step` until it has what it wants; its frames.
fn capture(bed: &Bed, order: Order, mut step: impl FnMut()) -> (Vec<Vec<u8>>, CaptureStatus) {
    let control = bed.control();
    let capture = thread::spawn(move || {
        let mut file = Vec::new();
        let status = client::capture(&control, &order, &mut file, std::future::pending());
        (file, status.unwrap())
    });
    while !capture.is_finished() {
        step();
    }
    let (file, status) = capture.join().unwrap();
    let mut reader = PcapNgReader::new(&file[..]).unwrap();
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap().0 {
            frames.push(packet.data.into_owned());
        }
    }
    (frames, status)
}

#[test]
fn frames_are_captured_whole_and_in_order() {
    let (a, b) = (station(1), station(2));
    let bed = Bed::start(&[("a", ""), ("b", "")], "");
    let (mut guest, mut other) = (bed.guest("a"), bed.guest("b"));
    for direction in [Direction::Rx, Direction::Tx] {
        let order = Order {
            ports: vec![if direction == Direction::Rx { "a" } else { "b" }.to_owned()],
            direction: Some(direction),
            mac: Some(text(a).parse().unwrap()),
            count: Some(40),
            ..Order::default()
        };
        let mut number = 0;
        let (frames, status) = capture(&bed, order, || {
            guest.send(&frame(b, a, number, 700)).unwrap();
            number += 1;
            other.expect().unwrap();
        });
        assert_eq!((frames.len(), status.end), (40, Some(End::Count)));
        let numbers = frames.iter().map(|bytes| {
            let frame = Frame::parse(bytes).unwrap();
            assert_eq!((frame.to, frame.from), (b, a));
            frame.number().expect("a frame was spoilt")
        });
        let numbers: Vec<u64> = numbers.collect();
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "{numbers:?}");
    }
}

#[test]
fn what_a_receiver_loses_is_captured() {
    let (a, b) = (station(1), station(2));
    let entry = format!("[[fdb]]\nmac = {:?}\nport = \"b\"\n", text(b));
    let bed = Bed::start(&[("a", ""), ("b", "")], &entry);
    let mut guest = bed.guest("a");
    let order = Order {
        discards: true,
        count: Some(3),
        snaplen: Some(64),
        ..Order::default()
    };
    let (frames, status) = capture(&bed, order, || {
        guest.send(&frame(b, a, 7, 700)).unwrap();
    });
    assert_eq!(status.captured, 3);
    let expected = frame(b, a, 7, 700);
    assert!(frames.iter().all(|bytes| **bytes == expected[..64]));
}
