//! Workers as sessions and the host drive them: changes in, counters out.

use std::os::fd::AsFd;
use std::sync::mpsc::channel;

use towpath_common::testing::bed::eventually;
use towpath_common::worker::{Idle, Worker};

use super::*;
use crate::fdb::{Ageing, Capacity, HashKey};
use crate::guard::{GuardConfig, Guards};
use crate::mirror::Mirrors;
use crate::net::NetHeader;
use crate::port::memory::{Memory, Wire};
use crate::stats::VlanCounters;
use crate::table::Port;
use crate::vlan::{Mode, Vid};

const PORT: PortNo = PortNo(0);

/// A worker without ports, and a second handle of what wakes it.
fn worker(index: usize) -> (Worker<Change>, Poller) {
    let key = HashKey::from_words([1, 2, 3, 5, 7, 11]);
    let fdb = Fdb::new(key, Capacity::default(), Ageing::default());
    let (tell, told) = channel();
    let worker = Worker::spawn(index, None, Idle::Interrupt, move |context| {
        tell.send(context.poller.clone()).unwrap();
        Ok(NetPlane::new(context, Arc::new(fdb), Events::default()))
    });
    (worker.unwrap(), told.recv().unwrap())
}

fn add_port(worker: &Worker<Change>, shared: &Arc<PortShared>) {
    let new = NewPort {
        no: PORT,
        name: "p".into(),
        share: Share::default(),
        shared: Arc::clone(shared),
    };
    let added = worker.handle().call(|reply| Change::AddPort(new, reply));
    assert_eq!(added, Ok(true));
}

/// Tables with that port alone: what comes from it goes nowhere.
fn set_tables(worker: &Worker<Change>, shared: &Arc<PortShared>) {
    let mode = Mode::Access { pvid: Vid::DEFAULT };
    let port = Port {
        no: PORT,
        name: "p".into(),
        uplink: true,
        isolated: false,
        max_frame: 1514,
        guards: Arc::new(Guards::new(&GuardConfig::default(), &[])),
        egress: Arc::new(Egress::Uplink(Box::default())),
        shared: Arc::clone(shared),
        vlans: Arc::new(VlanCounters::new(&mode, 2)),
        mode,
    };
    let tables = Arc::new(Tables::new([port], Mirrors::default()));
    let set = |reply| Change::Tables(tables, reply);
    drop(worker.handle().call(set).unwrap());
}

fn add_uplink(worker: &Worker<Change>, queue: u16) -> (Wire, bool) {
    let (ours, wire) = Memory::new(Offloads::ALL, 1514, 8).unwrap();
    let add = |reply| Change::AddUplink(PORT, queue, Box::new(ours), reply);
    (wire, worker.handle().call(add).unwrap())
}

#[test]
fn each_queue_of_an_uplink_counts_what_came_from_it() {
    let shared = Arc::new(PortShared::new(6, 2));
    let workers = [worker(0).0, worker(1).0];
    let mut wires = Vec::new();
    for queue in 0..3u16 {
        let worker = &workers[usize::from(queue) % 2];
        if queue < 2 {
            add_port(worker, &shared);
            set_tables(worker, &shared);
        }
        let (wire, added) = add_uplink(worker, queue);
        assert!(added);
        for n in 0..=queue {
            assert!(wire.push(NetHeader::default(), &[u8::try_from(n).unwrap(); 60]));
        }
        wires.push(wire);
    }
    let counted = || [1, 3, 5].map(|at: usize| shared.queues[at].counters.snapshot().frames);
    eventually("all counted", || counted() == [1, 2, 3]);
}

#[test]
fn what_is_refused_or_removed_wakes_no_worker() {
    let (worker, poller) = worker(0);
    let (wire, added) = add_uplink(&worker, 0);
    assert!(!added, "there is no such port");
    poller.add(wire.as_fd()).expect("not polled");
    poller.remove(wire.as_fd());
    add_port(&worker, &Arc::new(PortShared::new(2, 1)));
    let (wire, added) = add_uplink(&worker, 0);
    assert!(added && poller.add(wire.as_fd()).is_err(), "polled");
    let remove = |reply| Change::RemovePort(PORT, reply);
    assert_eq!(worker.handle().call(remove), Ok(()));
    poller.add(wire.as_fd()).expect("not polled any more");
}
