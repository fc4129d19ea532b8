//! Memory that changes while rings run: whole tables, slots added and removed, and what becomes of
//! a vring whose own region goes away.

use super::*;
use crate::testing::GuestRegion;
use crate::testing::memory::Sealing;

#[test]
fn tables_and_slots_change_under_load() {
    let bed = Bed::new(2);
    let mut guest = bed.guest(2);
    let Guest { front, inside } = &mut guest;
    let extra = Arc::new(GuestRegion::new(1 << 32, 1 << 20, 9, Sealing::Allowed).unwrap());
    let (first, both) = (
        inside.memory.clone(),
        inside.memory.with(Arc::clone(&extra)),
    );
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..25 {
                front.set_memory(&both).unwrap();
                front.remove_region(&extra).unwrap();
                front.add_region(&extra).unwrap();
                front.set_memory(&first).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut n = 0u32;
        while !done.load(std::sync::atomic::Ordering::SeqCst) || n < 50 {
            for queue in [0, 1] {
                inside.offer(queue, &n.to_ne_bytes());
                inside.offer(queue, &n.to_be_bytes());
            }
            inside.settle(0);
            inside.settle(1);
            n += 1;
        }
    });
    eventually("one region again", || bed.server.status().regions == 1);
}

#[test]
fn new_memory_is_used_as_soon_as_it_is_added() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    guest.echo(0, b"old memory");
    let extra = Arc::new(GuestRegion::new(1 << 32, 1 << 20, 9, Sealing::Allowed).unwrap());
    guest.front.add_region(&extra).unwrap();
    assert_eq!(bed.echo.regions(), 2);
    let driver = SplitDriver::new(
        &GuestMemory::of(vec![Arc::clone(&extra)]),
        16,
        guest.front.features(),
    );
    guest.inside.drivers[0] = driver.unwrap();
    guest.inside.memory = GuestMemory::of(vec![extra]);
    guest.front.stop_queue(0).unwrap();
    guest.start(0);
    guest.echo(0, b"ring and buffers in new memory");
    assert!(guest.front.max_mem_slots().unwrap() >= 32);
}

#[test]
fn a_vring_whose_region_goes_stops_alone_and_runs_again_when_it_is_back() {
    let bed = Bed::new(2);
    let mut neighbour = bed.neighbour();
    let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20), (1 << 30, 1 << 20)]);
    guest.share();
    let regions = guest.memory.regions().to_vec();
    guest.queue(8); // in the first region
    let second = GuestMemory::of(vec![Arc::clone(&regions[1])]);
    guest.queue(8);
    guest.drivers[1] = SplitDriver::new(&second, 8, guest.front.features()).unwrap();
    guest.start(0);
    guest.start(1);
    guest.echo(0, b"both");
    guest.echo(1, b"both");
    let refused = guest.front.remove_region(&regions[0]);
    assert!(refused.is_err(), "a vring stands in it");
    assert!(bed.noted().contains("vring 0"));
    let attached = |bed: &Bed| {
        bed.server
            .status()
            .vrings
            .iter()
            .map(|v| v.3)
            .collect::<Vec<_>>()
    };
    eventually("the one after it to run on", || {
        attached(&bed) == [false, true]
    });
    guest.inside.memory = second;
    guest.echo(1, b"undisturbed");
    neighbour.is_well();
    guest.front.add_region(&regions[0]).unwrap();
    guest.inside.memory = GuestMemory::of(regions);
    guest.echo(0, b"back again");
}

#[test]
fn a_table_without_the_rings_is_survived() {
    let bed = Bed::new(1);
    let mut guest = bed.guest(1);
    guest.echo(0, b"here");
    let elsewhere = GuestMemory::with_regions(&[(1 << 40, 1 << 20)]).unwrap();
    assert!(guest.front.set_memory(&elsewhere).is_err());
    assert!(bed.noted().contains("is not inside one memory region"));
    guest.share();
    guest.echo(0, b"and here again");
}

#[test]
fn buffers_in_removed_memory_break_that_ring_alone() {
    let bed = Bed::new(2);
    let mut guest = Guest::new(bed.front(everything()), &[(0, 1 << 20)]);
    let extra = Arc::new(GuestRegion::new(1 << 30, 1 << 20, 9, Sealing::Allowed).unwrap());
    guest.inside.memory = guest.memory.with(Arc::clone(&extra));
    guest.share();
    for queue in 0..2 {
        guest.queue(8);
        guest.start(queue);
    }
    guest.front.remove_region(&extra).unwrap();
    let gone = Segment::readable(extra.gpa(), 16);
    let token = guest.drivers[0].chain(&[gone], Form::Direct).unwrap();
    guest.drivers[0].post(token);
    guest.drivers[0].publish().unwrap();
    assert!(guest.drivers[0].events().broken(SOON).unwrap());
    assert_eq!(bed.echo.broken()[0].1.name(), "bad_address");
    guest.echo(1, b"this ring is honest");
}
