//! In-flight tables the front-end keeps (INFLIGHT_SHMFD): what a back-end held when it went is what
//! the next one gets, in the order it came.

use super::*;
use crate::testing::echo::Conduct;

const SIZE: u16 = 16;

/// A guest whose queues stand on a table of the front-end's.
fn tracked(bed: &Bed) -> (Guest, crate::testing::frontend::Inflight) {
    let mut guest = bed.guest(0);
    let table = guest.front.get_inflight(2, SIZE).unwrap();
    guest.front.set_inflight(&table).unwrap();
    for queue in 0..2 {
        guest.queue(SIZE);
        guest.start(queue);
    }
    (guest, table)
}

fn rejoin(bed: &Bed, guest: Guest, table: &crate::testing::frontend::Inflight) -> Guest {
    let Guest { front, inside } = guest;
    drop(front);
    let mut guest = Guest {
        front: bed.front(everything()),
        inside,
    };
    guest.share();
    guest.front.set_inflight(table).unwrap();
    for queue in 0..2 {
        guest.start(queue);
    }
    guest
}

#[test]
fn after_a_crash_exactly_what_was_in_flight_comes_again_in_order() {
    let bed = Bed::new(2);
    let (mut guest, table) = tracked(&bed);
    for n in 0..5u8 {
        guest.echo(0, &[n]);
    }
    bed.echo.conduct(Conduct::Hold);
    for n in 10..18u8 {
        guest.offer(0, &[n]);
    }
    guest.offer(1, b"the other queue");
    eventually("nine in flight", || bed.echo.seen() == 5 + 9);
    let seen = bed.echo.take_seen();
    let head_of = |byte: u8| seen.iter().find(|s| s.0 == 0 && s.2 == [byte]).unwrap().1;
    // Some come back, out of order, before the end.
    for byte in [14, 10, 17] {
        assert!(bed.echo.finish(0, head_of(byte)));
    }
    assert_eq!(bed.echo.lose(), 6);
    bed.echo.conduct(Conduct::Answer);
    let mut guest = rejoin(&bed, guest, &table);
    guest.settle(0);
    guest.settle(1);
    let mut again = bed.echo.take_seen();
    again.sort_by_key(|s| s.0); // stable: the order within a queue stays
    let bytes: Vec<Vec<u8>> = again.into_iter().map(|s| s.2).collect();
    let expected: [&[u8]; 6] = [&[11], &[12], &[13], &[15], &[16], b"the other queue"];
    assert_eq!(bytes, expected);
    guest.echo(0, b"and on it goes");
}

#[test]
fn a_hang_up_drains_so_nothing_comes_again() {
    let bed = Bed::new(2);
    let (mut guest, table) = tracked(&bed);
    bed.echo.conduct(Conduct::Hold);
    guest.offer(0, b"in flight at the hang-up");
    eventually("it is in flight", || bed.echo.seen() == 1);
    let mut guest = rejoin(&bed, guest, &table);
    assert_eq!(guest.reap(0), 1);
    bed.echo.conduct(Conduct::Answer);
    guest.echo(0, b"next");
    assert_eq!(bed.echo.seen(), 2);
}

#[test]
fn twice_crashed_is_once_crashed() {
    let bed = Bed::new(2);
    let (mut guest, table) = tracked(&bed);
    bed.echo.conduct(Conduct::Hold);
    for n in 0..4u8 {
        guest.offer(0, &[n]);
    }
    for round in 1..=3 {
        eventually("four in flight", || bed.echo.seen() == 4 * round);
        assert_eq!(bed.echo.lose(), 4);
        guest = rejoin(&bed, guest, &table);
    }
    eventually("four in flight", || bed.echo.seen() == 16);
    bed.echo.conduct(Conduct::Answer);
    guest.settle(0);
    let order: Vec<u8> = bed.echo.take_seen().into_iter().map(|s| s.2[0]).collect();
    assert_eq!(order, [0, 1, 2, 3].repeat(4));
}

#[test]
fn a_table_from_a_hostile_front_end_does_no_harm() {
    let bed = Bed::new(2);
    for fill in [0xffu8, 0x01, 0x80] {
        let mut guest = bed.guest(0);
        let table = guest.front.get_inflight(2, SIZE).unwrap();
        let junk = vec![fill; usize::try_from(table.size).unwrap()];
        rustix::io::pwrite(&table.file, &junk, table.offset).unwrap();
        guest.front.set_inflight(&table).unwrap();
        guest.queue(SIZE);
        // Its version, sizes and heads are nonsense: refused, or heads that the rings then judge.
        for what in [
            Request::SET_VRING_NUM,
            Request::SET_VRING_ADDR,
            Request::SET_VRING_KICK,
            Request::SET_VRING_ENABLE,
        ] {
            let _ = guest.say(0, what);
        }
        drop(guest);
        bed.end();
    }
    bed.guest(1).echo(0, b"the next guest");
}

#[test]
fn tables_out_of_range_are_refused_with_their_numbers() {
    let bed = Bed::new(2);
    let mut front = bed.front(everything());
    let mut table = front.get_inflight(2, SIZE).unwrap();
    for (queues, size, offset, reason) in [
        (65535, 16, 0, "65535 queues of 16"),
        (2, 40000, 0, "2 queues of 40000"),
        (2, 16, 4, "at 4"),
        (2, 16, 1 << 40, "at 1099511627776"),
    ] {
        (table.queues, table.queue_size, table.offset) = (queues, size, offset);
        assert!(front.set_inflight(&table).is_err());
        eventually(reason, || {
            let why = bed.server.status().last_error;
            why.is_some_and(|why| why.contains(reason))
        });
    }
    for _ in 0..20 {
        let table = front.get_inflight(2, SIZE).unwrap();
        front.set_inflight(&table).unwrap();
        front.set_inflight(&table).unwrap();
    }
}
