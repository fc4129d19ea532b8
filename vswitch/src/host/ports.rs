//! Ports and uplinks as they run, and how one set of them becomes another.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use towpath_common::config::{Name, SocketMode};
use towpath_common::keep::{Keeper, Place};
use towpath_common::lease::Lease;
use towpath_common::sandbox::landlock::hinted;
use towpath_common::sched::Share;
use towpath_common::session::{Endpoint, Keeping, Listening, Mode, Server};
use towpath_common::worker::{Handle, Worker};
use tracing::error;

use super::absent::Down;
use super::settings::{mirrors_of, share, undo, uplink_guards};
use super::{Host, absent, lock};
use crate::config::{self, Config};
use crate::device::NetDevice;
use crate::egress::{Egress, GuestEgress};
use crate::fdb::{Filter, PortNo};
use crate::features::Card;
use crate::guard::{GuardConfig, Guards};
use crate::head::ETHERNET;
use crate::plane::{Change, NewPort};
use crate::port::Uplink;
use crate::port::tap::Tap;
use crate::service::{Report, ServiceError};
use crate::stats::{Carried, PortShared, VlanCounters};
use crate::table::Port;
use crate::vlan::{self, Vid};

/// A port or uplink being served.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its number, as long as it runs.
    pub(crate) no: PortNo,
    pub(crate) kind: Kind,
    pub(crate) egress: Arc<Egress>,
    pub(crate) guards: Arc<Guards>,
    pub(crate) shared: Arc<PortShared>,
    /// Counters of the VLANs it has.
    pub(super) vlans: Arc<VlanCounters>,
    /// Those of VLANs it had, as long as workers may count there.
    pub(super) outdated: Vec<Arc<VlanCounters>>,
    /// Sessions of earlier servers of the same port.
    pub(crate) connections: u64,
}

/// What is behind a port.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A virtual machine.
    Guest(config::Port, Option<Server>),
    /// The host's network; with the MTU of the interface.
    Uplink(config::Uplink, u32, Place),
}

/// A port that is new or changed, with everything opened that can be.
enum Prepared {
    Guest(config::Port, Option<Listening>),
    Uplink(config::Uplink, Vec<Tap>),
    /// An uplink that cannot be opened, and why.
    Absent(config::Uplink, String),
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Running {
    pub(crate) fn name(&self) -> &Name {
        match &self.kind {
            Kind::Guest(config, _) => &config.name,
            Kind::Uplink(config, ..) => &config.name,
        }
    }

    pub(crate) fn mode(&self) -> vlan::Mode {
        match &self.kind {
            Kind::Guest(config, _) => config.vlans(),
            Kind::Uplink(config, ..) => config.vlans(),
        }
    }

    /// Not so if it is an uplink whose interface is gone.
    pub(crate) fn works(&self) -> bool {
        self.shared.failure().is_none()
    }

    /// Whether it is this uplink, working or not, whatever else about it changes.
    fn is(&self, wanted: &config::Uplink) -> bool {
        matches!(&self.kind, Kind::Uplink(have, ..) if have.same_interface(wanted))
    }

    /// Whether it is this uplink and goes on being it.
    fn stays(&self, wanted: &config::Uplink, down: &Down) -> bool {
        self.is(wanted) && (self.works() || down.iter().any(|(u, _)| u.name == wanted.name))
    }

    /// What it carried since its name is configured.
    pub(crate) fn carried(&self) -> BTreeMap<Vid, Carried> {
        let now = self.outdated.iter().chain([&self.vlans]);
        self.shared
            .with_past(now.flat_map(|counters| counters.carried()))
    }

    /// Remember what was counted by VLANs that it had before; no worker counts there any more.
    pub(super) fn fold(&mut self) {
        for counters in self.outdated.drain(..) {
            self.shared.remember(counters.carried());
        }
    }

    /// As the workers' tables have it.
    pub(super) fn table(&self) -> Port {
        let (uplink, isolated, mtu) = match &self.kind {
            Kind::Guest(config, _) => (false, config.isolated, u32::from(config.mtu.get())),
            Kind::Uplink(_, mtu, _) => (true, false, *mtu),
        };
        Port {
            no: self.no,
            name: Arc::from(self.name().as_str()),
            uplink,
            isolated,
            mode: self.mode(),
            max_frame: mtu + u32::try_from(ETHERNET).unwrap_or(14),
            guards: Arc::clone(&self.guards),
            egress: Arc::clone(&self.egress),
            shared: Arc::clone(&self.shared),
            vlans: Arc::clone(&self.vlans),
        }
    }
}

fn listen(config: &config::Port, keeper: &Keeper) -> Result<Listening, ServiceError> {
    let mode = match config.mode {
        SocketMode::Server => Mode::Server,
        SocketMode::Client => Mode::Client,
    };
    let endpoint = Endpoint {
        path: config.socket.as_path().to_owned(),
        mode,
    };
    let listening = endpoint.listen_kept(keeper);
    listening.map_err(|e| failed(&config.name, e))
}

pub(super) fn failed(name: &Name, source: impl Into<Cause>) -> ServiceError {
    ServiceError::Port {
        name: name.clone(),
        source: hinted(source.into()),
    }
}

impl Host {
    /// Make what runs equal to `config`.
    pub(super) fn apply_ports(&self, config: &Config) -> Result<Report, ServiceError> {
        // Numbers come later; whether the mirrors can be is known before anything is touched.
        let names = config.ports.iter().map(|port| &port.name);
        let names: Vec<&Name> = names
            .chain(config.uplinks.iter().map(|u| &u.name))
            .collect();
        mirrors_of(config, |name| {
            let at = names.iter().position(|known| *known == name)?;
            u16::try_from(at).ok().map(PortNo)
        })?;
        let (prepared, down) = self.prepare(config)?;
        self.carry.recall(&names);
        let reopened = self.reopened(config, &down);
        let resized = self.resize(config)?;
        let stays = |r: &Running| match &r.kind {
            Kind::Guest(have, _) => config.ports.iter().any(|p| have.same_session(p)),
            Kind::Uplink(..) => config.uplinks.iter().any(|u| r.stays(u, &down)),
        };
        let gone: Vec<Running> = {
            let mut running = lock(&self.ports);
            let (kept, gone) = running.drain(..).partition(stays);
            *running = kept;
            gone
        };
        // First no frame goes there any more, then it is taken down.
        self.publish();
        let statics = self.statics();
        let mut replaced = Vec::new();
        for mut old in gone {
            self.stop_port(&mut old);
            replaced.push(old);
        }
        if let Err(failure) = self.start_all(prepared, &replaced) {
            // Nothing is expected to fail after `prepare`; if it does, what was is put back.
            self.put_back(replaced);
            undo(resized);
            for (vid, mac, no) in statics {
                // What could be entered once can be again.
                let _ = self.fdb.set_static(vid, mac, no);
            }
            return Err(failure);
        }
        self.settle(config)?;
        self.publish();
        self.settled();
        let mut report = self.set_addresses(config);
        report.warnings.extend(reopened);
        report.warnings.extend(absent::sentences(&down));
        self.go_on();
        self.follows.store(false, Relaxed);
        Ok(report)
    }

    /// Open what is new, touching nothing that runs. Gives what stays down, too.
    fn prepare(&self, config: &Config) -> Result<(Vec<Prepared>, Down), ServiceError> {
        let running = lock(&self.ports);
        let (mut prepared, mut down) = (Vec::new(), Down::new());
        for port in &config.ports {
            let have = |r: &Running| matches!(&r.kind, Kind::Guest(p, _) if p.same_session(port));
            if running.iter().any(have) {
                continue;
            }
            // A socket that a port of ours listens on is free once that one is stopped.
            let ours = |r: &Running| match &r.kind {
                Kind::Guest(p, server) => {
                    let deaf = server.as_ref().is_some_and(|s| s.deaf().is_some());
                    p.socket == port.socket && !deaf
                }
                Kind::Uplink(..) => false,
            };
            let listening = if running.iter().any(ours) {
                None
            } else {
                Some(listen(port, &self.keeper)?)
            };
            prepared.push(Prepared::Guest(port.clone(), listening));
        }
        for uplink in &config.uplinks {
            if running.iter().any(|r| r.stays(uplink, &Down::new())) {
                continue;
            }
            // So is an interface, unless it is gone.
            let same = |have: &config::Uplink| have.tap == uplink.tap;
            let ours = |r: &Running| r.works() && matches!(&r.kind, Kind::Uplink(u, ..) if same(u));
            let taps = if running.iter().any(ours) {
                Vec::new()
            } else {
                match self.open(uplink) {
                    Ok(taps) => taps,
                    Err(error) if running.iter().any(|r| r.is(uplink)) => {
                        down.push((uplink.clone(), absent::reason(error)));
                        continue;
                    }
                    Err(error) if self.follows.load(Relaxed) => {
                        prepared.push(Prepared::Absent(uplink.clone(), absent::reason(error)));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            };
            prepared.push(Prepared::Uplink(uplink.clone(), taps));
        }
        Ok((prepared, down))
    }

    /// Start all that was prepared, or none of it; `replaced` is what ports of the same names did.
    fn start_all(&self, prepared: Vec<Prepared>, replaced: &[Running]) -> Result<(), ServiceError> {
        let mut started = Vec::new();
        for prepared in prepared {
            let name = match &prepared {
                Prepared::Guest(port, _) => &port.name,
                Prepared::Uplink(uplink, _) | Prepared::Absent(uplink, _) => &uplink.name,
            };
            let before = replaced.iter().find(|r| r.name() == name);
            let before = before.map(|r| (Arc::clone(&r.shared), r.connections));
            let no = self.free_number(&started);
            let running = match prepared {
                Prepared::Guest(port, listening) => self.start_guest(no, port, listening, before),
                Prepared::Uplink(uplink, taps) => self.start_uplink(no, uplink, taps, before),
                Prepared::Absent(uplink, why) => Ok(self.start_absent(no, uplink, why, before)),
            };
            match running {
                Ok(port) => started.push(port),
                Err(e) => {
                    self.forget_port(no);
                    for mut port in started {
                        self.stop_port(&mut port);
                    }
                    return Err(e);
                }
            }
        }
        lock(&self.ports).append(&mut started);
        Ok(())
    }

    /// The lowest number that nobody has.
    fn free_number(&self, started: &[Running]) -> PortNo {
        let running = lock(&self.ports);
        let taken = |no: u16| {
            let mut all = running.iter().chain(started);
            all.any(|r| r.no == PortNo(no))
        };
        PortNo((0..u16::MAX).find(|no| !taken(*no)).unwrap_or(u16::MAX))
    }

    fn add_to_workers(
        &self,
        no: PortNo,
        name: &Name,
        share: Share,
        shared: &Arc<PortShared>,
    ) -> Result<(), ServiceError> {
        for worker in &self.workers {
            let new = NewPort {
                no,
                name: Arc::from(name.as_str()),
                share,
                shared: Arc::clone(shared),
            };
            let added = worker.handle().call(|reply| Change::AddPort(new, reply));
            if !added.map_err(|e| failed(name, e))? {
                return Err(failed(name, "no room for another port on a worker"));
            }
        }
        Ok(())
    }

    fn start_guest(
        &self,
        no: PortNo,
        config: config::Port,
        listening: Option<Listening>,
        before: Option<(Arc<PortShared>, u64)>,
    ) -> Result<Running, ServiceError> {
        let listening = match listening {
            Some(listening) => listening,
            None => listen(&config, &self.keeper)?,
        };
        let pairs = config.queues.get();
        // And the control queue.
        let queues = usize::from(pairs) * 2 + 1;
        let card = Card {
            pairs,
            mac: config.mac,
            mtu: config.mtu.get(),
            offloads: config.offloads,
        };
        let (shared, connections) = match before {
            Some((shared, n)) if shared.queues.len() == queues => (shared, n),
            _ => self.new_shared(&config.name, queues),
        };
        let egress = Arc::new(Egress::Guest(GuestEgress::new(pairs)));
        let share = share(config.weight, config.cap, self.workers.len());
        self.add_to_workers(no, &config.name, share, &shared)?;
        let handles: Vec<Handle<Change>> = self.workers.iter().map(Worker::handle).collect();
        let device = Arc::new(NetDevice::new(
            Arc::from(config.name.as_str()),
            no,
            card,
            Arc::clone(&egress),
            Arc::clone(&shared),
            handles,
        ));
        let keeping = Keeping::with(&self.keeper, config.name.as_str());
        let server = Server::start_kept(listening, device, keeping);
        let server = server.map_err(|e| failed(&config.name, e))?;
        Ok(Running {
            no,
            // Set before the first frame, when all ports get their settings.
            guards: Arc::new(Guards::new(&GuardConfig::default(), &[])),
            vlans: Arc::new(VlanCounters::new(&config.vlans(), self.workers.len())),
            outdated: Vec::new(),
            kind: Kind::Guest(config, Some(server)),
            egress,
            shared,
            connections,
        })
    }

    pub(super) fn start_uplink(
        &self,
        no: PortNo,
        config: config::Uplink,
        taps: Vec<Tap>,
        before: Option<(Arc<PortShared>, u64)>,
    ) -> Result<Running, ServiceError> {
        let taps = if taps.is_empty() {
            self.open(&config)?
        } else {
            taps
        };
        let place = self.keep_taps(&config, &taps);
        let queues = taps.len() * 2;
        let (shared, connections) = match before {
            Some((shared, n)) if shared.queues.len() == queues => (shared, n),
            _ => self.new_shared(&config.name, queues),
        };
        shared.fail(None);
        let mtu = taps.first().map_or(0, |tap| tap.mtu().into());
        let twins: io::Result<Vec<_>> = taps.iter().map(Tap::twin).collect();
        let senders = twins.map_err(|e| failed(&config.name, e))?;
        let leases = senders
            .into_iter()
            .map(|tap| Lease::new(Box::new(tap) as Box<dyn Uplink>));
        let egress = Arc::new(Egress::Uplink(leases.collect()));
        let share = share(config.weight, config.cap, self.workers.len());
        self.add_to_workers(no, &config.name, share, &shared)?;
        for (queue, tap) in (0u16..).zip(taps) {
            let at = usize::from(queue) % self.workers.len().max(1);
            let Some(worker) = self.workers.get(at) else {
                continue;
            };
            let added = worker
                .handle()
                .call(|reply| Change::AddUplink(no, queue, Box::new(tap), reply));
            if !added.map_err(|e| failed(&config.name, e))? {
                return Err(failed(&config.name, "the interface cannot be polled"));
            }
        }
        Ok(Running {
            no,
            guards: Arc::new(uplink_guards(&config)),
            vlans: Arc::new(VlanCounters::new(&config.vlans(), self.workers.len())),
            outdated: Vec::new(),
            kind: Kind::Uplink(config, mtu, place),
            egress,
            shared,
            connections,
        })
    }

    /// Take a port down; the tables do not name it any more.
    pub(super) fn stop_port(&self, running: &mut Running) {
        if let Kind::Guest(_, server) = &mut running.kind
            && let Some(server) = server.take()
        {
            running.connections += server.status().sessions;
            server.stop();
        }
        if let Kind::Uplink(_, _, place) = &mut running.kind {
            place.clear();
        }
        self.forget_port(running.no);
        running.outdated.push(Arc::clone(&running.vlans));
        running.fold();
        self.fdb.flush(&Filter {
            port: Some(running.no),
            statics: true,
            ..Filter::default()
        });
    }

    /// Let all workers forget a port, even if only some of them ever knew it.
    pub(super) fn forget_port(&self, no: PortNo) {
        for worker in &self.workers {
            // A dead worker has nothing to remove.
            let handle = worker.handle();
            while let Ok(Some(_)) = handle.call(|reply| Change::RemoveUplink(no, reply)) {}
            let _ = handle.call(|reply| Change::RemovePort(no, reply));
        }
    }

    /// Serve again what was stopped for a configuration that could not be applied.
    fn put_back(&self, replaced: Vec<Running>) {
        for old in replaced {
            let name = old.name().clone();
            let before = Some((old.shared, old.connections));
            let back = match old.kind {
                Kind::Guest(config, _) => self.start_guest(old.no, config, None, before),
                Kind::Uplink(config, ..) => self.start_uplink(old.no, config, Vec::new(), before),
            };
            match back {
                Ok(mut port) => {
                    port.guards = old.guards;
                    lock(&self.ports).push(port);
                }
                Err(error) => {
                    self.forget_port(old.no);
                    error!(port = %name, %error, "port lost by a failed reload");
                }
            }
        }
        self.publish();
    }
}
