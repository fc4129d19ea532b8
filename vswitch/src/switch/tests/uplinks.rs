//! What uplinks are given and what is counted of it.

use towpath_common::testing::net::frame::{Frame, station};

use super::offloads::{header, tcp};
use super::*;

#[test]
fn each_queue_of_an_uplink_counts_what_its_workers_sent() {
    let mut bed = Bed::new();
    let guest = bed.guest(&Wanted::default());
    let (up, wires) = bed.uplink_queues(&Wanted::default(), Offloads::ALL, 64, 2);
    let mut second = Switch::new(Arc::clone(bed.switch.fdb()), 1, bed.events.clone());
    drop(second.set_tables(Arc::clone(bed.switch.tables())));
    let frame = Frame::new(station(2), station(1)).numbered(1, 60).bytes();
    bed.send(guest, &frame);
    std::mem::swap(&mut bed.switch, &mut second);
    for _ in 0..2 {
        bed.send(guest, &frame);
    }
    let len = u64::try_from(frame.len()).unwrap();
    assert_eq!(bed.counted(up, 0), (1, len));
    assert_eq!(bed.counted(up, 2), (2, 2 * len));
    assert!(wires[0].pop().is_some() && wires[0].pop().is_none());
    assert!(wires[1].pop().is_some() && wires[1].pop().is_some());
}

#[test]
fn a_segmented_frame_that_an_uplink_loses_is_one_frame() {
    let mut bed = Bed::new();
    let guest = bed.guest(&Wanted::default());
    let up = bed.uplink(&Wanted::default(), Offloads::NONE, 3);
    let small = Frame::new(station(2), station(1)).numbered(1, 60).bytes();
    let pair = &mut bed.guests.get_mut(&guest.0).unwrap().pairs[0];
    assert!(pair.queue(Header::default(), &small).unwrap());
    assert!(pair.queue(header(1000, false), &tcp(5000, None)).unwrap());
    pair.publish().unwrap();
    bed.step(guest);
    assert_eq!(bed.wire(up).len(), 3, "the wire holds no more");
    assert_eq!(bed.dropped(), [(up.0, "receiver_full", 1)]);
    let len = u64::try_from(small.len()).unwrap();
    assert_eq!(bed.counted(up, 0), (1, len));
    // The next is not taken for a lost one.
    bed.send(guest, &small);
    assert_eq!(bed.counted(up, 0), (2, 2 * len));
}
