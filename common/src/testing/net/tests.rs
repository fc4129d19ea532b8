//! The network client against a card whose cable leads back into it.

use super::frame::{BROADCAST, TPID, TPID_SERVICE, number, numbered, station};
use super::*;
use crate::session::{Endpoint, Mode, Server};
use crate::testing::bed::{SOON, Scratch};
use crate::testing::{Listener, feature};

mod loopback;

use loopback::Loopback;

struct Bed {
    _server: Server,
    dir: Scratch,
}

impl Bed {
    fn new(mode: Mode) -> Self {
        let dir = Scratch::new();
        let path = dir.path().join("s");
        let endpoint = Endpoint { path, mode };
        let server = Server::start(endpoint.listen().unwrap(), Loopback::new()).unwrap();
        Self {
            _server: server,
            dir,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("s")
    }

    fn client(&self, options: NetOptions) -> NetClient {
        NetClient::connect(&self.path(), options).unwrap()
    }
}

/// Sends numbered frames of many lengths on the first pair and takes them back.
fn round_trips(client: &mut NetClient, longest: usize) {
    let header = Header {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 6,
        ..Header::default()
    };
    for (i, len) in (0..).zip([20, 46, 100, 1486, 1500, 1525, 1526, 9000, 14000]) {
        if len > longest {
            break;
        }
        let frame = Frame::new(BROADCAST, station(1)).vlan(7).numbered(i, len);
        client.send_with(header, &frame.bytes()).unwrap();
        let got = client.expect().unwrap();
        let parsed = Frame::parse(&got.frame).unwrap();
        assert_eq!((parsed.number(), parsed), (Some(i), frame));
        let expected = Header {
            num_buffers: got.header.num_buffers,
            ..header
        };
        assert_eq!(got.header, expected);
    }
    client.flush().unwrap();
    assert!(client.poll().unwrap().is_none());
}

#[test]
fn frames_come_back_in_every_framing_and_with_every_ring_feature() {
    let bed = Bed::new(Mode::Server);
    let buffers = [(64, 1536, u32::MAX), (128, 200, 64), (8, 65562, u32::MAX)];
    for (features, forms) in [
        (0, &[Form::Direct, Form::Indirect][..]),
        (feature::IN_ORDER, &[Form::Indirect]),
    ] {
        for form in forms {
            for cut in [Cut::Whole, Cut::Header, Cut::Pieces(100)] {
                for (rx_slots, rx_buffer, rx_piece) in buffers {
                    let shape = Shape {
                        rx_slots: if *form == Form::Direct {
                            rx_slots.min(60)
                        } else {
                            rx_slots
                        },
                        rx_buffer: rx_buffer.max(if *form == Form::Direct { 300 } else { 0 }),
                        rx_piece,
                        cut,
                        form: *form,
                        ..Shape::default()
                    };
                    let options = NetOptions {
                        shape,
                        queue_size: 512,
                        ..NetOptions::default()
                    };
                    round_trips(&mut bed.client(options.with(features)), 14_000);
                }
            }
        }
    }
    let options = NetOptions {
        shape: Shape {
            rx_slots: 16,
            rx_buffer: 16 << 10,
            ..Shape::default()
        },
        ..NetOptions::default()
    };
    let plain = feature::NET_MRG_RXBUF | feature::EVENT_IDX | feature::INDIRECT_DESC;
    round_trips(&mut bed.client(options.without(plain)), 14_000);
}

#[test]
fn a_client_back_end_is_waited_for_and_a_session_goes_on_over_a_second_connection() {
    let dir = Scratch::new();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    let endpoint = Endpoint {
        path,
        mode: Mode::Client,
    };
    let _server = Server::start(endpoint.listen().unwrap(), Loopback::new()).unwrap();
    let raw = listener.accept(SOON).unwrap();
    let mut client = NetClient::over(raw, NetOptions::default()).unwrap();
    round_trips(&mut client, 4000);
    for queue in 0..2 {
        client.frontend().stop_queue(queue).unwrap();
    }
    let mut client = client.reconnect(|| listener.accept(SOON)).unwrap();
    round_trips(&mut client, 4000);
}

#[test]
fn pairs_are_apart_and_the_control_queue_answers() {
    let bed = Bed::new(Mode::Server);
    let options = NetOptions {
        pairs: loopback::PAIRS.into(),
        control: Some(u32::from(2 * loopback::PAIRS)),
        ..NetOptions::default()
    };
    let mut client = bed.client(options.with(feature::NET_CTRL_VQ));
    assert_eq!(client.max_pairs().unwrap(), loopback::PAIRS);
    assert_eq!(client.mtu().unwrap(), 1500);
    assert_eq!(client.mac().unwrap(), [2, 0x54, 0, 0, 0, 1]);
    assert_eq!(client.control().unwrap().use_pairs(2).unwrap(), 0);
    for (index, pair) in client.pairs().iter_mut().enumerate() {
        let frame = Frame::new(BROADCAST, station(9)).numbered(index as u64, 64);
        pair.send(&frame.bytes(), SOON).unwrap();
    }
    for (index, pair) in client.pairs().iter_mut().enumerate() {
        let got = pair.receive(SOON).unwrap().unwrap();
        let number = Frame::parse(&got.frame).unwrap().number();
        assert_eq!(number, Some(index as u64));
        assert!(pair.poll().unwrap().is_none());
    }
}

#[test]
fn buffers_that_are_held_are_not_on_offer() {
    let bed = Bed::new(Mode::Server);
    let shape = Shape {
        rx_slots: 4,
        ..Shape::default()
    };
    let mut client = bed.client(NetOptions {
        shape,
        ..NetOptions::default()
    });
    let pair = client.pair().unwrap();
    pair.hold(true).unwrap();
    for number in 0..4 {
        let frame = Frame::new(BROADCAST, station(9)).numbered(number, 64);
        pair.send(&frame.bytes(), SOON).unwrap();
        assert!(pair.receive(SOON).unwrap().is_some());
    }
    assert_eq!(pair.rx().in_flight(), 0);
    pair.hold(false).unwrap();
    assert_eq!(pair.rx().in_flight(), 4);
    round_trips(&mut client, 4000);
}

#[test]
fn a_device_that_miscounts_buffers_is_found_out() {
    let memory = GuestMemory::new(8 << 20).unwrap();
    let features = feature::VERSION_1 | feature::NET_MRG_RXBUF;
    let ring = || SplitDriver::new(&memory, 256, features).unwrap();
    for (count, written) in [(0, 100), (2, 100), (1, 11), (1, 1537), (1, 0)] {
        let mut pair = NetPair::new(
            [ring(), ring()],
            &memory,
            features,
            Shape {
                rx_slots: 4,
                tx_slots: 1,
                ..Shape::default()
            },
        )
        .unwrap();
        let header = Header {
            num_buffers: count,
            ..Header::default()
        };
        memory.write(pair.rx_at[0], &header.bytes()).unwrap();
        // A used element by hand: head 0, and the index after it.
        let used = pair.rx.places()[2];
        let element = [0u32.to_le_bytes(), u32::to_le_bytes(written)].concat();
        memory.write(used + 4, &element).unwrap();
        memory.write(used + 2, &1u16.to_le_bytes()).unwrap();
        let polled = pair.poll();
        assert!(
            matches!(polled, Err(Error::Device(_))),
            "{count} {written}: {polled:?}"
        );
    }
}

#[test]
fn a_numbered_payload_is_known_and_any_fault_in_it_is_found() {
    for len in [20, 21, 46, 1500, 65000] {
        let mut payload = numbered(77, len);
        assert_eq!(number(&payload), Some(77));
        payload.extend([0, 0]);
        assert_eq!(number(&payload), Some(77));
        payload.push(1);
        assert_eq!(number(&payload), None);
        payload.truncate(len);
        for at in 0..len.min(200) {
            payload[at] ^= 4;
            assert_eq!(number(&payload), None, "byte {at} of {len}");
            payload[at] ^= 4;
        }
        assert_eq!(number(&payload[..len - 1]), None);
    }
}

#[test]
fn a_frame_is_its_bytes_and_a_header_too() {
    let frame = Frame::new(station(1), station(2))
        .tag(TPID_SERVICE, 0xe064)
        .tag(TPID, 5)
        .ethertype(0x0800)
        .payload(b"abc");
    let bytes = frame.bytes();
    assert_eq!(bytes[12..22], [0x88, 0xa8, 0xe0, 0x64, 0x81, 0, 0, 5, 8, 0]);
    assert_eq!(Frame::parse(&bytes), Some(frame));
    assert!((0..22).all(|len| Frame::parse(&bytes[..len]).is_none()));
    let bytes = [1, 0x81, 2, 0, 3, 0, 4, 0, 5, 0, 6, 1];
    let header = Header::parse(&bytes);
    assert_eq!((header.gso_size, header.num_buffers), (3, 0x0106));
    assert_eq!(header.bytes(), bytes);
}
