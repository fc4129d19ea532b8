//! What forwarding costs on one core: vswitch's switch between guests' rings in one process.
//!
//! The generator's rings, served by the real [`GuestTx`], [`Switch`] and [`GuestRx`], with driver
//! and switch in turns on one processor and only the switch's turns timed. What lies between two
//! cores (misses on rings and buffers) is left out, and so is most of a shared machine's noise: the
//! figure is the path's own work, and says whether a change made it shorter.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use towpath_common::bell::Bell;
use towpath_common::chain::Burst;
use towpath_common::ring::fence;
use towpath_common::session::{Alarm, Attach};
use vswitch::egress::{Egress, GuestEgress};
use vswitch::fdb::{Ageing, Capacity, Fdb, HashKey};
use vswitch::guard::{Bound, GuardConfig, Guards};
use vswitch::mirror::Mirrors;
use vswitch::port::guest::GuestRx;
use vswitch::port::guest_tx::GuestTx;
use vswitch::stats::{Events, PortShared, QueueCounters, VlanCounters};
use vswitch::switch::{Moment, Switch};
use vswitch::table::{Port as Row, PortNo, Tables};
use vswitch::vlan::{Mode, Vid};

use crate::net::copy::ring;
use crate::net::port::{FEATURES, Port};
use crate::net::shape::Shape;

/// Room of the FDB: more than the stations of any row.
const ADDRESSES: i64 = 1 << 18;

/// Ports, and a switch between them.
#[derive(Debug)]
pub struct Bench {
    ports: Vec<Port>,
    queues: Vec<GuestTx>,
    switch: Switch,
    burst: Burst,
    now: Moment,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Frames forwarded.
    pub frames: u64,
    /// In this time, of the switch alone.
    pub time: Duration,
    /// Frames sent that did not arrive.
    pub lost: u64,
}

impl Cost {
    /// Nanoseconds for each frame.
    #[must_use]
    pub fn ns(&self) -> f64 {
        self.time.as_secs_f64() * 1e9 / self.frames.max(1) as f64
    }
}

fn attach(port: &Port, receive: bool) -> Result<Attach> {
    let (memory, queues) = port.parts();
    Ok(Attach {
        ring: ring(memory, queues[usize::from(!receive)])?,
        kick: None,
        call: None,
        err: None,
        enabled: true,
        alarm: Arc::new(Alarm::new(UnixStream::pair()?.0)),
        cell: None,
    })
}

fn row(no: PortNo, port: &Port, mode: Mode) -> Result<Row> {
    let egress = GuestEgress::new(1);
    let (bell, counters) = (Bell::new()?, QueueCounters::default());
    let rx = GuestRx::new(0, attach(port, true)?, bell, counters, FEATURES)?;
    egress
        .install(0, rx)
        .map_err(|_| anyhow!("no receive queue"))?;
    let guards = GuardConfig {
        // Time stands still here, so what is primed would count against one second.
        mac_limit: Bound::OFF,
        unknown_limit: Bound::OFF,
        ..GuardConfig::default()
    };
    Ok(Row {
        no,
        name: format!("p{}", no.0).into(),
        uplink: false,
        isolated: false,
        max_frame: 1514,
        guards: Arc::new(Guards::new(&guards, &[])),
        egress: Arc::new(Egress::Guest(egress)),
        shared: Arc::new(PortShared::new(3, 1)),
        vlans: Arc::new(VlanCounters::new(&mode, 1)),
        mode,
    })
}

impl Bench {
    /// Ports of this shape; those that tag their frames are trunks of the VLAN.
    ///
    /// # Errors
    /// Without memory for them.
    pub fn new(shape: &Shape) -> Result<Self> {
        let capacity = Capacity::try_from(ADDRESSES)?;
        let fdb = Fdb::new(HashKey::random()?, capacity, Ageing::default());
        let mut switch = Switch::new(Arc::new(fdb), 0, Events::default());
        let (mut ports, mut queues, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let vid = shape.tags.iter().flatten().next().copied();
        let vid = Vid::new(vid.unwrap_or(1)).context("a VLAN id")?;
        for index in 0..shape.ports {
            let port = Port::new(index, shape)?;
            let no = PortNo(index);
            let mode = match shape.tags.get(usize::from(index)).copied().flatten() {
                Some(_) => Mode::Trunk {
                    allowed: std::iter::once(vid).collect(),
                    native: None,
                },
                None => Mode::Access { pvid: vid },
            };
            rows.push(row(no, &port, mode)?);
            let (bell, counters) = (Bell::new()?, QueueCounters::default());
            let tx = attach(&port, false)?;
            queues.push(GuestTx::new(no, 1, tx, bell, counters, FEATURES)?);
            ports.push(port);
        }
        drop(switch.set_tables(Arc::new(Tables::new(rows, Mirrors::default()))));
        let mut this = Self {
            ports,
            queues,
            switch,
            burst: Burst::new(),
            now: Moment::default(),
        };
        for port in &mut this.ports {
            port.launch()?;
        }
        // Every address is learnt before anything is timed.
        let pool = this.ports.first().map_or(0, Port::pool);
        let turns = 4 * pool / u64::from(shape.ring) + 16;
        for _ in 0..turns {
            this.turn()?;
        }
        Ok(this)
    }

    /// Every port once: what it sent is forwarded, and it takes what came and sends anew.
    fn turn(&mut self) -> Result<Cost> {
        let mut cost = Cost::default();
        let began = Instant::now();
        for queue in &mut self.queues {
            // A ring at most: several bursts.
            for _ in 0..4 {
                cost.frames += queue.visit(&mut self.switch, &mut self.burst, self.now) as u64;
            }
        }
        fence();
        self.switch.settle();
        self.queues.iter_mut().for_each(GuestTx::settle);
        cost.time = began.elapsed();
        let mut arrived = 0;
        for port in &mut self.ports {
            arrived += port.receive(false)?.buffers;
            port.transmit()?;
        }
        cost.lost = cost.frames.saturating_sub(arrived);
        Ok(cost)
    }

    /// Forwards for about `time`.
    ///
    /// # Errors
    /// If nothing moves.
    pub fn run(&mut self, time: Duration) -> Result<Cost> {
        let began = Instant::now();
        let mut total = Cost::default();
        while began.elapsed() < time {
            let cost = self.turn()?;
            total.frames += cost.frames;
            total.time += cost.time;
            total.lost += cost.lost;
        }
        ensure!(total.frames > 0, "nothing was forwarded");
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_of_every_shape_arrives() {
        let tagged = Shape {
            tags: vec![None, Some(10)],
            ..Shape::plain(2, 256, 60)
        };
        let many = Shape {
            stations: 1000,
            ..Shape::plain(2, 256, 60)
        };
        let mesh = Shape::plain(4, 256, 60);
        for shape in [Shape::plain(2, 256, 60), tagged, many, mesh] {
            let mut bench = Bench::new(&shape).unwrap();
            let cost = bench.run(Duration::from_millis(20)).unwrap();
            assert!(cost.frames > 1000, "{cost:?}");
            assert_eq!(cost.lost, 0, "{shape:?}");
        }
    }
}
