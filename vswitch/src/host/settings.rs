//! What changes without taking a port down: guards, VLANs, shares, static addresses, mirrors.

use std::sync::Arc;

use towpath_common::config::{self as common, Name};
use towpath_common::sched::{Cap, Share, Weight};
use tracing::error;

use super::ports::failed;
use super::{Host, Kind, Running, lock};
use crate::config::{self, Config, Direction};
use crate::fdb::{Ageing, Filter, PortNo};
use crate::guard::{Guards, Side};
use crate::mac::Mac;
use crate::mirror::{Mirrors, Rule};
use crate::plane::Change;
use crate::port::tap::{InterfaceName, Tap};
use crate::service::{Report, ServiceError};
use crate::stats::VlanCounters;
use crate::vlan::Vid;

/// What a port gets of each worker.
pub(super) fn share(weight: common::Weight, cap: Option<common::Cap>, workers: usize) -> Share {
    // A cap over several workers is split evenly: each enforces its part.
    let per_worker = |cap: u32| cap.div_ceil(u32::try_from(workers).unwrap_or(1)).max(1);
    let cap = cap.map(|c| per_worker(c.get()));
    Share {
        weight: Weight::try_from(weight.get()).unwrap_or_default(),
        cap: cap.and_then(|c| Cap::try_from(c).ok()),
    }
}

/// The guards of a port as configured, at work.
fn guards_of(config: &Config, port: &config::Port) -> Guards {
    let addresses: Vec<Mac> = port.addresses().collect();
    Guards::new(&config.guards(port), &addresses)
}

/// The same for an uplink, which is trusted unless it says otherwise.
pub(super) fn uplink_guards(config: &config::Uplink) -> Guards {
    Guards::new(&config.guards.complete(Side::Uplink), &[])
}

/// The configured mirrors, with the numbers that `number` gives to ports.
///
/// # Errors
/// [`ServiceError::Mirrors`], for the one that cannot be.
pub(super) fn mirrors_of(
    config: &Config,
    number: impl Fn(&Name) -> Option<PortNo>,
) -> Result<Mirrors, ServiceError> {
    let rules = config.mirrors.iter().map(|mirror| Rule {
        // One that is gone selects nothing.
        from: mirror.from.iter().filter_map(&number).collect(),
        vlans: mirror.vlans.clone(),
        rx: mirror.direction != Direction::Tx,
        tx: mirror.direction != Direction::Rx,
        to: number(&mirror.to),
        member: mirror.member,
    });
    let rules: Vec<Rule> = rules.collect();
    Mirrors::new(&rules).map_err(|source| ServiceError::Mirrors {
        source: source.into(),
    })
}

/// Interfaces with the MTU that they had.
pub(super) type Resized = Vec<(InterfaceName, u16)>;

/// Give interfaces the MTU back that they had.
pub(super) fn undo(resized: Resized) {
    for (name, mtu) in resized {
        if let Err(error) = Tap::set_mtu(&name, mtu) {
            error!(tap = %name, mtu, %error, "the interface keeps the MTU of a failed reload");
        }
    }
}

impl Host {
    /// Give interfaces that stay the MTU that is configured now, all of them or none.
    pub(super) fn resize(&self, config: &Config) -> Result<Resized, ServiceError> {
        let mut resized = Resized::new();
        // One that is down gets its MTU when it is opened.
        for running in lock(&self.ports).iter().filter(|r| r.works()) {
            let Kind::Uplink(have, mtu, _) = &running.kind else {
                continue;
            };
            let wanted = config.uplinks.iter().find(|u| have.same_interface(u));
            let Some(wanted) = wanted.and_then(|u| u.mtu).map(|mtu| mtu.get()) else {
                continue;
            };
            if u32::from(wanted) == *mtu {
                continue;
            }
            if let Err(error) = Tap::set_mtu(&have.tap, wanted) {
                undo(resized);
                return Err(failed(&have.name, error));
            }
            resized.push((have.tap.clone(), u16::try_from(*mtu).unwrap_or(u16::MAX)));
        }
        Ok(resized)
    }

    /// Give the ports their order, and those that stayed their new settings.
    pub(super) fn settle(&self, config: &Config) -> Result<(), ServiceError> {
        let workers = self.workers.len();
        let mut running = lock(&self.ports);
        for port in running.iter_mut() {
            let before = port.mode();
            let no = port.no;
            let reshare = |old: Share, new: Share| {
                if old != new {
                    for worker in &self.workers {
                        let _ = worker.handle().post(Change::SetShare(no, new));
                    }
                }
            };
            match &mut port.kind {
                Kind::Guest(have, _) => {
                    let wanted = config.ports.iter().find(|p| p.name == have.name);
                    if let Some(wanted) = wanted {
                        let old = share(have.weight, have.cap, workers);
                        reshare(old, share(wanted.weight, wanted.cap, workers));
                        *have = wanted.clone();
                        // Their accounts begin anew; that costs at most one burst too many.
                        port.guards = Arc::new(guards_of(config, wanted));
                    }
                }
                Kind::Uplink(have, mtu, _) => {
                    let wanted = config.uplinks.iter().find(|u| u.name == have.name);
                    if let Some(wanted) = wanted {
                        let old = share(have.weight, have.cap, workers);
                        reshare(old, share(wanted.weight, wanted.cap, workers));
                        *have = wanted.clone();
                        port.guards = Arc::new(uplink_guards(wanted));
                        // Without one, the interface keeps what it has.
                        *mtu = wanted.mtu.map_or(*mtu, |mtu| mtu.get().into());
                    }
                }
            }
            if port.mode() != before {
                let vlans = Arc::new(VlanCounters::new(&port.mode(), workers));
                let old = std::mem::replace(&mut port.vlans, vlans);
                port.outdated.push(old);
            }
        }
        let place = |r: &Running| {
            let ports = config.ports.iter().map(|p| &p.name);
            let mut names = ports.chain(config.uplinks.iter().map(|u| &u.name));
            names.position(|name| name == r.name())
        };
        running.sort_by_key(place);
        let number = |name: &Name| running.iter().find(|r| r.name() == name).map(|r| r.no);
        *lock(&self.mirrors) = mirrors_of(config, number)?;
        Ok(())
    }

    /// The workers have the new tables.
    pub(super) fn settled(&self) {
        let mirrors = lock(&self.mirrors).clone();
        for port in lock(&self.ports).iter_mut() {
            let moved = !port.outdated.is_empty();
            port.fold();
            if moved || mirrors.excludes(port.no) {
                // Nothing is learned any more in a VLAN that the port has left, and what was must
                // not lead there; nor is anything sent by address to a port that gets copies.
                self.fdb.flush(&Filter {
                    port: Some(port.no),
                    ..Filter::default()
                });
            }
        }
    }

    /// The static addresses there are.
    pub(super) fn statics(&self) -> Vec<(Vid, Mac, PortNo)> {
        let all = self.fdb.snapshot(self.now_s()).into_iter();
        let statics = all.filter(|entry| entry.is_static);
        statics.map(|e| (e.vid, e.mac, e.port)).collect()
    }

    /// Enter the static addresses, and forget those that are none any more.
    pub(super) fn set_addresses(&self, config: &Config) -> Report {
        let mut report = Report::default();
        if let Ok(ageing) = Ageing::try_from(i64::from(config.switch.ageing.get())) {
            self.fdb.set_ageing(ageing);
        }
        let running = lock(&self.ports);
        let mut wanted: Vec<_> = config
            .fdb
            .iter()
            .filter_map(|e| {
                let port = running.iter().find(|r| *r.name() == e.port)?;
                Some((e.vlan, e.mac, port.no))
            })
            .collect();
        // The address a port is configured with is at that port, whoever else claims it.
        for port in running.iter() {
            if let Kind::Guest(guest, _) = &port.kind
                && config.guards(guest).source_guard
            {
                for (vid, mac) in own_addresses(guest) {
                    if !wanted.iter().any(|(v, m, _)| (*v, *m) == (vid, mac)) {
                        wanted.push((vid, mac, port.no));
                    }
                }
            }
        }
        drop(running);
        let wants = |vid, mac| wanted.iter().any(|(v, m, _)| (*v, *m) == (vid, mac));
        for entry in self.fdb.snapshot(self.now_s()) {
            if entry.is_static && !wants(entry.vid, entry.mac) {
                self.fdb.forget(entry.vid, entry.mac);
            }
        }
        for (vid, mac, no) in wanted {
            if let Err(e) = self.fdb.set_static(vid, mac, no) {
                report.warnings.push(e.to_string());
            }
        }
        report
    }
}

/// The addresses a guest's port is configured with, in the VLANs it carries; in the native one
/// alone if those are many.
fn own_addresses(port: &config::Port) -> Vec<(Vid, Mac)> {
    let vids: Vec<Vid> = port.vlans().few().iter().collect();
    let pairs = vids
        .iter()
        .flat_map(|vid| port.addresses().map(move |mac| (*vid, mac)));
    pairs.collect()
}
