//! What may be asked about frames: captures, and why an address is not reached.

use std::sync::{Arc, Mutex};

use towpath_common::clock::Clock;
use towpath_common::control::Routes;
use towpath_common::mailbox::CallError;
use towpath_common::worker::Handle;

use super::{Kind, Running, lock};
use crate::capture::{CaptureId, Captures, Tap, Tapping};
use crate::control;
use crate::fdb::{Fdb, PortNo};
use crate::mac::Mac;
use crate::mirror::Mirrors;
use crate::plane::{Change, moment};
use crate::recent::{Recent, Record};
use crate::status;
use crate::why::api::{Desk, Looking};
use crate::why::{Known, PortView, Snapshot};

/// The data plane, as far as it can be looked at.
pub(super) struct Lookout {
    pub(super) workers: Vec<Handle<Change>>,
    pub(super) fdb: Arc<Fdb>,
    pub(super) clock: Clock,
    pub(super) ports: Arc<Mutex<Vec<Running>>>,
    pub(super) mirrors: Arc<Mutex<Mirrors>>,
}

impl Lookout {
    /// `/v1/captures` and `/v1/why`.
    pub(super) fn routes(self) -> Routes {
        let clock = self.clock.clone();
        let plane = Arc::new(self);
        let captures = Captures::new(Arc::<Lookout>::clone(&plane), clock.clone());
        let desk = Desk::new(plane, clock);
        control::looking(captures, desk)
    }

    fn view(&self, running: &Running, mirrors: &Mirrors) -> PortView {
        let isolated = matches!(&running.kind, Kind::Guest(config, _) if config.isolated);
        let guards = &running.guards;
        PortView {
            number: running.no,
            name: running.name().as_str().to_owned(),
            mode: running.mode(),
            link: status::link(running),
            uplink: matches!(running.kind, Kind::Uplink(..)),
            isolated,
            mirror: mirrors.excludes(running.no),
            macs: match &running.kind {
                Kind::Guest(config, _) => config.addresses().collect(),
                Kind::Uplink(..) => Vec::new(),
            },
            source_guard: guards.has_sources(),
            bpdu_guard: guards.stops_bridge_protocols(),
            mac_limit: guards.mac_limit().into(),
            learned: self.fdb.count(running.no).into(),
        }
    }

    fn recent_of(&self, worker: &Handle<Change>) -> Result<Vec<Record>, CallError> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let ask = |reply| Change::Recent(at, Recent::room(), reply);
            let (records, next) = worker.call(ask)?;
            all.extend(records);
            from = next;
        }
        Ok(all)
    }
}

impl Tapping for Lookout {
    fn workers(&self) -> usize {
        self.workers.len()
    }

    fn port(&self, name: &str) -> Option<PortNo> {
        let ports = lock(&self.ports);
        let found = ports.iter().find(|port| port.name().as_str() == name);
        found.map(|port| port.no)
    }

    fn port_name(&self, port: PortNo) -> Option<String> {
        let ports = lock(&self.ports);
        let found = ports.iter().find(|running| running.no == port);
        found.map(|running| running.name().as_str().to_owned())
    }

    fn tap(&self, worker: usize, tap: Tap) -> Result<(), String> {
        let Some(handle) = self.workers.get(worker) else {
            return Err(format!("there is no worker {worker}"));
        };
        let added = handle.call(|reply| Change::Tap(tap, reply));
        let added = added.map_err(|error| error.to_string())?;
        added.map_err(|_| format!("worker {worker} has no room for another capture"))
    }

    fn untap(&self, worker: usize, id: CaptureId) {
        if let Some(handle) = self.workers.get(worker) {
            // The tap comes back and is dropped here; a dead worker has none.
            let _ = handle.call(|reply| Change::Untap(id, reply));
        }
    }
}

impl Looking for Lookout {
    fn snapshot(&self, mac: Mac) -> Snapshot {
        let now_s = moment(&self.clock, self.clock.now()).seconds;
        let entries = self.fdb.snapshot(now_s).into_iter();
        let known = entries.filter(|entry| entry.mac == mac).map(|entry| Known {
            vid: entry.vid,
            mac: entry.mac,
            port: entry.port,
            is_static: entry.is_static,
            age_seconds: entry.age_s,
            is_held: entry.is_held,
        });
        let known = known.collect();
        let mirrors = lock(&self.mirrors).clone();
        let ports = lock(&self.ports);
        Snapshot {
            ports: ports.iter().map(|port| self.view(port, &mirrors)).collect(),
            known,
        }
    }

    fn recent(&self) -> Vec<Record> {
        let workers = self.workers.iter();
        // A worker that has ended remembers nothing.
        let all = workers.filter_map(|worker| self.recent_of(worker).ok());
        all.flatten().collect()
    }
}
