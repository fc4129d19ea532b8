//! The data plane as a whole: workers, ports, uplinks, the FDB.
//!
//! Applying a configuration binds every new socket and opens every new interface before it touches
//! anything old; ports whose session would not change keep it, with their number, their counters
//! and their learned addresses. What ports may do (VLANs, guards) changes for all at once, by new
//! [`Tables`].

mod absent;
mod carry;
mod dropping;
mod look;
mod ports;
mod settings;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use towpath_common::clock::{Clock, Cycles};
use towpath_common::config::{CpuId, Poll};
use towpath_common::control::Routes;
use towpath_common::keep::Keeper;
use towpath_common::worker::{Idle, SPIN, Worker, warn_if_crowded};

use crate::config::Config;
use crate::fdb::{Ageing, Capacity, Fdb, Filter, HashKey, PortNo};
use crate::mirror::Mirrors;
use crate::monitor::{self, Seen};
use crate::plane::{Change, NetPlane, moment};
use crate::service::{
    FdbEntry, FdbFilter, FdbStats, PortStatus, Report, Service, ServiceError, VlanStatus,
    WorkerStatus,
};
use crate::stats::Events;
use crate::status;
use crate::table::Tables;
use carry::Carry;
use look::Lookout;
pub(crate) use ports::{Kind, Running};

/// The data plane.
#[derive(Debug)]
pub struct Host {
    workers: Vec<Worker<Change>>,
    /// Who keeps sessions and interfaces for a successor of this process.
    keeper: Keeper,
    /// What it keeps of counters and addresses.
    carry: Arc<Carry>,
    fdb: Arc<Fdb>,
    clock: Clock,
    /// A predecessor left sessions or interfaces, and no configuration is applied yet.
    follows: AtomicBool,
    /// Held while a configuration is applied.
    applying: Mutex<()>,
    /// Held for moments only: the control thread looks at it.
    ports: Arc<Mutex<Vec<Running>>>,
    mirrors: Arc<Mutex<Mirrors>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    monitor: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State is only ever replaced whole: what a panicking thread left is consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Start the workers; no port is served yet. Sessions, interfaces, addresses and counters are kept
/// by `keeper`, and what a predecessor left with it goes on as soon as the ports are served.
///
/// # Errors
/// [`ServiceError::Worker`] if one cannot start (no such processor).
pub fn start(config: &Config, keeper: Keeper) -> Result<Arc<dyn Service>, ServiceError> {
    Ok(Arc::new(Host::start(config, keeper)?))
}

const fn idle(poll: Poll) -> Idle {
    match poll {
        Poll::Adaptive => Idle::Adaptive(SPIN),
        Poll::Busy => Idle::Busy,
        Poll::Interrupt => Idle::Interrupt,
    }
}

impl Host {
    /// As [`start`].
    ///
    /// # Errors
    /// As [`start`].
    pub fn start(config: &Config, keeper: Keeper) -> Result<Host, ServiceError> {
        let settings = &config.daemon;
        let failed = |index: usize| {
            move |e: io::Error| ServiceError::Worker {
                index,
                source: e.into(),
            }
        };
        let key = HashKey::random().map_err(failed(0))?;
        let capacity = Capacity::try_from(i64::from(config.switch.fdb_size.get()));
        let ageing = Ageing::try_from(i64::from(config.switch.ageing.get()));
        let fdb = Arc::new(Fdb::new(
            key,
            capacity.unwrap_or_default(),
            ageing.unwrap_or_default(),
        ));
        let events = Events::default();
        let idle = idle(settings.poll);
        let cpus = settings.cpus.as_slice();
        let count = cpus.len().max(1);
        let holds = keeper.has_sessions();
        let follows = holds || keeper.has_kind(carry::TAP);
        warn_if_crowded(count);
        let mut workers = Vec::new();
        for index in 0..count {
            let cpu = cpus.get(index).map(|c| usize::from(c.get()));
            let (events, fdb) = (events.clone(), Arc::clone(&fdb));
            let worker = Worker::spawn(index, cpu, idle, move |context| {
                Ok(NetPlane::new(context, fdb, events).holding_uplinks(holds))
            });
            workers.push(worker.map_err(failed(index))?);
        }
        let clock = Clock::new();
        let ports = Arc::<Mutex<Vec<Running>>>::default();
        let carry = Arc::new(Carry::new(
            &keeper,
            Arc::clone(&fdb),
            clock.clone(),
            Arc::clone(&ports),
        ));
        let stop = Arc::new(AtomicBool::new(false));
        let now = Seen {
            at: Instant::now(),
            busy: 0,
            ratio: 0.0,
        };
        let seen = Arc::new(Mutex::new(vec![now; workers.len()]));
        let monitor = monitor::start(
            &workers,
            Arc::clone(&fdb),
            events,
            Arc::clone(&seen),
            Arc::clone(&stop),
            carry.every_turn(),
        );
        Ok(Host {
            workers,
            keeper,
            carry,
            fdb,
            clock,
            follows: AtomicBool::new(follows),
            applying: Mutex::default(),
            ports,
            mirrors: Arc::default(),
            seen,
            stop,
            monitor: Some(monitor),
        })
    }

    /// Let all workers forward by the ports there are now.
    fn publish(&self) {
        let mirrors = lock(&self.mirrors).clone();
        let tables = Tables::new(lock(&self.ports).iter().map(Running::table), mirrors);
        let tables = Arc::new(tables);
        for worker in &self.workers {
            // The old tables come back, so that none is dropped on a worker. A dead one has none.
            let _ = worker
                .handle()
                .call(|reply| Change::Tables(Arc::clone(&tables), reply));
        }
    }

    fn filter(&self, filter: &FdbFilter) -> Option<Filter> {
        let port = match &filter.port {
            None => None,
            Some(name) => {
                let ports = lock(&self.ports);
                // A port that is not there has no addresses.
                Some(ports.iter().find(|p| p.name() == name).map(|p| p.no)?)
            }
        };
        Some(Filter {
            vid: filter.vlan,
            port,
            mac: filter.mac,
            statics: true,
        })
    }

    fn now_s(&self) -> u32 {
        moment(&self.clock, self.clock.now()).seconds
    }
}

impl Service for Host {
    fn apply(&self, config: &Config) -> Result<Report, ServiceError> {
        let _one_at_a_time = lock(&self.applying);
        self.apply_ports(config)
    }

    fn retry(&self) {
        self.retry_uplinks();
    }

    fn ports(&self) -> Vec<PortStatus> {
        let mirrors = lock(&self.mirrors).clone();
        let ports = lock(&self.ports);
        let learned = |no: PortNo| self.fdb.count(no).into();
        let all = ports
            .iter()
            .map(|p| status::port(p, mirrors.role(p.no), learned(p.no), self.workers.len()))
            .collect();
        drop(ports);
        // What was shown once is not counted again by a successor.
        self.carry.write();
        all
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let seen = lock(&self.seen).clone();
        let ports = lock(&self.ports);
        let status = |(index, (worker, seen)): (usize, (&Worker<Change>, Seen))| WorkerStatus {
            index,
            cpu: worker
                .cpu()
                .and_then(|c| CpuId::try_from(i64::try_from(c).ok()?).ok()),
            steps: worker.pulse().beats(),
            busy_ratio: seen.ratio,
            busy_ns: worker.rate().ns(Cycles(worker.pulse().busy())),
            sleeps: worker.pulse().sleeps(),
            queues: status::queues_of(&ports, index, self.workers.len()),
        };
        let workers = self.workers.iter().zip(seen).enumerate();
        workers.map(status).collect()
    }

    fn vlans(&self) -> Vec<VlanStatus> {
        let addresses = self.fdb.snapshot(self.now_s());
        status::vlans(&lock(&self.ports), &addresses)
    }

    fn fdb_stats(&self) -> FdbStats {
        let counters = self.fdb.counters();
        FdbStats {
            entries: self.fdb.len() as u64,
            capacity: self.fdb.capacity() as u64,
            statics: self.fdb.statics().into(),
            learned: counters.learned,
            moved: counters.moved,
            aged: counters.aged,
            held: counters.held,
            displaced: counters.displaced,
            flushed: counters.flushed,
            refused: counters.refused,
        }
    }

    fn fdb(&self, filter: &FdbFilter) -> Vec<FdbEntry> {
        let Some(wanted) = self.filter(filter) else {
            return Vec::new();
        };
        let entries = self.fdb.snapshot(self.now_s());
        let ports = lock(&self.ports);
        let name = |no: PortNo| ports.iter().find(|p| p.no == no).map(|p| p.name().clone());
        entries
            .into_iter()
            .filter(|e| wanted.vid.is_none_or(|vid| vid == e.vid))
            .filter(|e| wanted.mac.is_none_or(|mac| mac == e.mac))
            .filter(|e| wanted.port.is_none_or(|port| port == e.port))
            .filter_map(|e| {
                Some(FdbEntry {
                    vlan: e.vid,
                    mac: e.mac,
                    port: name(e.port)?,
                    is_static: e.is_static,
                    held: e.is_held,
                    age_seconds: e.age_s,
                })
            })
            .collect()
    }

    fn fdb_flush(&self, filter: &FdbFilter) -> u64 {
        let Some(filter) = self.filter(filter) else {
            return 0;
        };
        let statics = false;
        self.fdb.flush(&Filter { statics, ..filter }) as u64
    }

    fn routes(&self) -> Routes {
        let lookout = Lookout {
            workers: self.workers.iter().map(Worker::handle).collect(),
            fdb: Arc::clone(&self.fdb),
            clock: self.clock.clone(),
            ports: Arc::clone(&self.ports),
            mirrors: Arc::clone(&self.mirrors),
        };
        lookout.routes()
    }

    fn release(&self, name: &str) -> bool {
        let ports = lock(&self.ports);
        let server = ports.iter().find_map(|port| match &port.kind {
            Kind::Guest(config, Some(server)) if config.name.as_str() == name => Some(server),
            _ => None,
        });
        let held = server.filter(|server| server.status().quarantined);
        held.inspect(|server| server.release()).is_some()
    }

    fn drain(&self) {
        if self.keeper.keeps() {
            self.leave();
            // Nobody uses what is left of the ports, and guests wait until this process has ended.
            lock(&self.ports).clear();
            return;
        }
        let all: Vec<Running> = lock(&self.ports).drain(..).collect();
        for mut port in all {
            self.stop_port(&mut port);
        }
        self.publish();
    }
}

impl Host {
    /// Leave everything to a successor of this process.
    fn leave(&self) {
        // First nobody sends, then nobody receives: no frame is lost.
        for worker in &self.workers {
            // A dead worker forwards nothing.
            let _ = worker.handle().call(Change::Pause);
        }
        let mut servers = Vec::new();
        for port in lock(&self.ports).iter_mut() {
            match &mut port.kind {
                Kind::Guest(_, server) => {
                    let server = server.take();
                    // Counted before it is gone: a counter does not go back.
                    let sessions = server.as_ref().map_or(0, |s| s.status().sessions);
                    port.connections += sessions;
                    servers.extend(server);
                }
                // What is kept at the old place stays there.
                Kind::Uplink(_, _, place) => *place = self.keeper.place(),
            }
        }
        for server in servers {
            server.leave();
        }
        self.carry.close();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !lock(&self.ports).is_empty() {
            self.drain();
        }
        self.stop.store(true, Relaxed);
        if let Some(monitor) = self.monitor.take() {
            monitor.thread().unpark();
            let _ = monitor.join();
        }
    }
}

#[cfg(test)]
mod tests;
