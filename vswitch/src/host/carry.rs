//! What a switch carries over to a successor besides its sessions: interfaces, counters, addresses.
//!
//! Interfaces are kept by their descriptors, so one made by the daemon does not vanish with it.
//! Counters and addresses are written to ledgers: counters each second and before they are shown,
//! so that nobody sees one go back; addresses each second. After a planned restart nothing is
//! missing. A killed daemon's successor lacks what was counted in the last second and not shown to
//! anybody, and addresses learned in that second, which are learned again from their next frame.
//! Allowances of rate limits and holds on addresses that moved too often begin anew.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towpath_common::clock::Clock;
use towpath_common::config::Name;
use towpath_common::keep::{KeepError, Keeper, Kept, Ledger, Place};
use towpath_common::stats::Counters as _;
use tracing::{info, warn};

use super::dropping::{self, Dropping};
use super::{Host, Kind, Running, lock};
use crate::config;
use crate::discard::Discard;
use crate::fdb::{Counters, Fdb, PortNo};
use crate::mac::Mac;
use crate::plane::{Change, moment};
use crate::port::tap::Tap;
use crate::service::ServiceError;
use crate::stats::{Carried, PortShared, QueueCounters};
use crate::vlan::Vid;

/// Version of what this build writes into both ledgers, and the newest it reads; what says none is
/// of the first. A field that is new has a default, and what it does not know it leaves; one that
/// changes its meaning makes a new version.
const VERSION: u32 = 1;
/// Turns of the monitor, a quarter of a second each, between two versions of the ledgers.
const TURNS: u32 = 4;
/// The kind of an interface's document.
pub(super) const TAP: &str = "tap";

/// Counters of one port.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    connections: u64,
    /// By queue: values by their names.
    queues: Vec<BTreeMap<String, u64>>,
    /// By queue: times the ring broke, by reason.
    broken: Vec<BTreeMap<String, u64>>,
    discards: BTreeMap<String, u64>,
    /// By VLAN: frames and bytes received, frames and bytes sent.
    vlans: BTreeMap<u16, [u64; 4]>,
}

/// What a ledger says first, whatever its version.
#[derive(Debug, Deserialize)]
struct Stamp {
    #[serde(default = "first")]
    version: u32,
}

/// The version of a ledger that names none.
const fn first() -> u32 {
    1
}

/// Counters of all ports, by name, and of the table of addresses.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Book {
    version: u32,
    ports: BTreeMap<String, Page>,
    fdb: BTreeMap<String, u64>,
}

/// The learned addresses.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Addresses {
    version: u32,
    /// Names of ports.
    ports: Vec<String>,
    /// VLAN, address, place in `ports`, seconds since it was seen.
    entries: Vec<(u16, [u8; 6], u16, u32)>,
}

/// Both ledgers, and what a predecessor wrote.
#[derive(Debug)]
pub(super) struct Carry {
    fdb: Arc<Fdb>,
    clock: Clock,
    ports: Arc<Mutex<Vec<Running>>>,
    counters: Mutex<Option<Ledger>>,
    addresses: Mutex<Option<Ledger>>,
    /// All that a predecessor wrote is taken up: before that, to write would lose it.
    open: AtomicBool,
    /// Of ports that are not served yet.
    pages: Mutex<BTreeMap<String, Page>>,
    known: Mutex<Option<Addresses>>,
    /// Where interfaces are kept that are about to be served.
    taps: Mutex<BTreeMap<String, Place>>,
}

/// What is written in a ledger; nothing, in one that is new.
fn read<T: DeserializeOwned + Default>(text: &[u8]) -> Result<T, KeepError> {
    if text.is_empty() {
        return Ok(T::default());
    }
    let Stamp { version } = serde_json::from_slice(text)?;
    if version > VERSION {
        let why = format!("it has version {version}, this build reads up to {VERSION}");
        return Err(KeepError::Unfit(why));
    }
    Ok(serde_json::from_slice(text)?)
}

/// A ledger, and what it said.
fn open<T: DeserializeOwned + Default>(keeper: &Keeper, name: &str) -> (Option<Ledger>, T) {
    match Ledger::open(keeper, name) {
        Ok(None) => (None, T::default()),
        Ok(Some((ledger, text))) => {
            let said = read(&text).unwrap_or_else(|error| {
                warn!(name, %error, "what a predecessor wrote down is lost");
                T::default()
            });
            (Some(ledger), said)
        }
        Err(error) => {
            warn!(name, %error, "a successor will begin with nothing");
            (None, T::default())
        }
    }
}

impl Carry {
    pub(super) fn new(
        keeper: &Keeper,
        fdb: Arc<Fdb>,
        clock: Clock,
        ports: Arc<Mutex<Vec<Running>>>,
    ) -> Carry {
        let (counters, book) = open::<Book>(keeper, "counters");
        let (addresses, known) = open::<Addresses>(keeper, "addresses");
        fdb.set_counters(counters_of(&book.fdb));
        Carry {
            fdb,
            clock,
            ports,
            counters: Mutex::new(counters),
            addresses: Mutex::new(addresses),
            open: AtomicBool::new(false),
            pages: Mutex::new(book.ports),
            known: Mutex::new(Some(known)),
            taps: Mutex::default(),
        }
    }

    /// What the monitor does each time it looks.
    pub(super) fn every_turn(self: &Arc<Self>) -> impl FnMut() + Send + 'static {
        let carry = Arc::clone(self);
        let mut turn = 0;
        let mut dropping = Dropping::default();
        move || {
            let ports = lock(&carry.ports);
            for port in ports.iter() {
                if let Kind::Guest(_, Some(server)) = &port.kind {
                    server.refresh();
                }
            }
            let counted = ports
                .iter()
                .map(|port| (port.name(), port.shared.discards()));
            let drops = dropping.look(counted, Instant::now());
            drop(ports);
            dropping::tell(&drops);
            turn += 1;
            if turn == TURNS {
                turn = 0;
                carry.write();
                carry.write_addresses();
            }
        }
    }

    /// Write the counters down as they are.
    pub(super) fn write(&self) {
        let mut ledger = lock(&self.counters);
        let Some(open) = ledger.as_mut().filter(|_| self.open.load(Relaxed)) else {
            return;
        };
        let ports = {
            let ports = lock(&self.ports);
            let pages = ports
                .iter()
                .map(|port| (port.name().to_string(), page(port)));
            pages.collect()
        };
        let fdb = values_of(&self.fdb.counters());
        let version = VERSION;
        put(
            open,
            &Book {
                version,
                ports,
                fdb,
            },
        );
    }

    fn write_addresses(&self) {
        let mut ledger = lock(&self.addresses);
        if let Some(open) = ledger.as_mut().filter(|_| self.open.load(Relaxed)) {
            put(open, &self.addresses());
        }
    }

    fn addresses(&self) -> Addresses {
        let ports = lock(&self.ports);
        let names: Vec<(PortNo, String)> = ports
            .iter()
            .map(|port| (port.no, port.name().to_string()))
            .collect();
        drop(ports);
        let place = |no: PortNo| {
            let at = names.iter().position(|(number, _)| *number == no)?;
            u16::try_from(at).ok()
        };
        let now_s = moment(&self.clock, self.clock.now()).seconds;
        let all = self.fdb.snapshot(now_s).into_iter();
        let learned = all.filter(|entry| !entry.is_static);
        let entries = learned.filter_map(|entry| {
            let at = place(entry.port)?;
            Some((entry.vid.get(), entry.mac.0, at, entry.age_s))
        });
        Addresses {
            version: VERSION,
            entries: entries.collect(),
            ports: names.into_iter().map(|(_, name)| name).collect(),
        }
    }

    /// Write everything down for the last time.
    pub(super) fn close(&self) {
        self.write();
        self.write_addresses();
        *lock(&self.counters) = None;
        *lock(&self.addresses) = None;
    }

    /// Before the first frame: learn what a predecessor knew. Ports get their numbers in the order
    /// of `names`.
    pub(super) fn recall(&self, names: &[&Name]) {
        let Some(known) = lock(&self.known).take() else {
            return;
        };
        let number = |name: &String| {
            let at = names.iter().position(|have| have.as_str() == name)?;
            u16::try_from(at).ok().map(PortNo)
        };
        let numbers: Vec<Option<PortNo>> = known.ports.iter().map(number).collect();
        let now_s = moment(&self.clock, self.clock.now()).seconds;
        let before = self.fdb.counters();
        let mut learned = 0;
        for (vid, mac, port, age) in known.entries {
            let port = numbers.get(usize::from(port)).copied().flatten();
            if let (Some(vid), Some(port)) = (Vid::new(vid), port) {
                let hash = self.fdb.hash(vid, Mac(mac));
                self.fdb
                    .learn(hash, port, now_s.wrapping_sub(age), u32::MAX);
                learned += 1;
            }
        }
        self.fdb.set_counters(before);
        if learned > 0 {
            info!(addresses = learned, "addresses of a predecessor are known");
        }
    }
}

fn put(ledger: &mut Ledger, what: &impl Serialize) {
    let text = serde_json::to_vec(what).map_err(KeepError::from);
    if let Err(error) = text.and_then(|text| ledger.write(&text)) {
        warn!(%error, "counters or addresses cannot be written down");
    }
}

fn page(port: &Running) -> Page {
    let sessions = match &port.kind {
        Kind::Guest(_, Some(server)) => server.status().sessions,
        _ => 0,
    };
    let named = |counters: &QueueCounters| {
        counters
            .iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    };
    let queues = port.shared.queues.iter();
    let nonzero = |(name, count): (&str, u64)| (count > 0).then(|| (name.to_owned(), count));
    let broken = queues
        .clone()
        .map(|q| q.violations().into_iter().filter_map(nonzero).collect());
    let names = Discard::NAMES.into_iter();
    let vlans = port.carried().into_iter().map(|(vid, c)| {
        (
            vid.get(),
            [c.rx_frames, c.rx_bytes, c.tx_frames, c.tx_bytes],
        )
    });
    Page {
        connections: port.connections + sessions,
        queues: queues.map(|q| named(&q.counters.snapshot())).collect(),
        broken: broken.collect(),
        discards: names
            .zip(port.shared.discards())
            .filter_map(nonzero)
            .collect(),
        vlans: vlans.collect(),
    }
}

impl Page {
    /// Go on counting from here; no worker counts yet.
    fn give_to(&self, shared: &PortShared) {
        use towpath_common::stats::Counters;
        for (queue, values) in shared.queues.iter().zip(&self.queues) {
            let cells = QueueCounters::cells();
            for (name, cell) in QueueCounters::NAMES.iter().zip(cells.as_ref()) {
                let value = values.get(*name).copied().unwrap_or(0);
                cell.store(value, std::sync::atomic::Ordering::Relaxed);
            }
            queue.counters.publish(&QueueCounters::load(&cells));
        }
        for (queue, reasons) in shared.queues.iter().zip(&self.broken) {
            queue.recall(|name| reasons.get(name).copied().unwrap_or(0));
        }
        if let Some(first) = shared.discards.first() {
            first.recall(|name| self.discards.get(name).copied().unwrap_or(0));
        }
        shared.remember(self.vlans.iter().filter_map(|(vid, values)| {
            let [rx_frames, rx_bytes, tx_frames, tx_bytes] = *values;
            let carried = Carried {
                rx_frames,
                rx_bytes,
                tx_frames,
                tx_bytes,
            };
            Some((Vid::new(*vid)?, carried))
        }));
    }
}

/// The table's counters by name.
fn values_of(counters: &Counters) -> BTreeMap<String, u64> {
    let all = counters.named().into_iter();
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn counters_of(values: &BTreeMap<String, u64>) -> Counters {
    Counters::from_named(|name| values.get(name).copied().unwrap_or(0))
}

impl Host {
    /// Published counters for a port that begins, or goes on where a predecessor's was.
    pub(super) fn new_shared(&self, name: &Name, queues: usize) -> (Arc<PortShared>, u64) {
        let shared = PortShared::new(queues, self.workers.len());
        let page = lock(&self.carry.pages).remove(name.as_str());
        let connections = page.map_or(0, |page| {
            page.give_to(&shared);
            page.connections
        });
        (Arc::new(shared), connections)
    }

    /// Open an interface, or take it over from a predecessor.
    pub(super) fn open(&self, config: &config::Uplink) -> Result<Vec<Tap>, ServiceError> {
        let mtu = config.mtu.map(|mtu| mtu.get());
        let failed = |e| super::ports::failed(&config.name, e);
        if let Some((mut place, mut kept)) = self.keeper.claim(TAP, config.tap.as_str()) {
            let queues = config.queues.get();
            let fds = (0..queues).map(|queue| kept.take(&format!("queue.{queue}")));
            let fds: Option<Vec<OwnedFd>> = fds.collect();
            let all = kept.body::<u16>().is_ok_and(|had| had == queues);
            if let Some(fds) = fds.filter(|_| all) {
                match Tap::over(&config.tap, fds, mtu) {
                    Ok(taps) => {
                        lock(&self.carry.taps).insert(config.tap.to_string(), place);
                        return Ok(taps);
                    }
                    Err(error) => {
                        warn!(tap = %config.tap, %error, "a predecessor's interface is gone");
                    }
                }
            }
            drop(kept);
            place.clear();
        }
        Tap::open(&config.tap, config.queues.get(), mtu).map_err(failed)
    }

    /// Keep an interface for a successor.
    pub(super) fn keep_taps(&self, config: &config::Uplink, taps: &[Tap]) -> Place {
        let place = lock(&self.carry.taps).remove(config.tap.as_str());
        let mut place = place.unwrap_or_else(|| self.keeper.place());
        let queues = u16::try_from(taps.len()).unwrap_or(u16::MAX);
        let kept = Kept::new(TAP, config.tap.as_str(), &queues).and_then(|mut kept| {
            for (queue, tap) in taps.iter().enumerate() {
                kept.keep(format!("queue.{queue}"), tap.fd())?;
            }
            place.put(&kept)
        });
        if let Err(error) = kept {
            warn!(tap = %config.tap, %error, "a restart will take the interface down");
        }
        place
    }

    /// All ports are known to all workers: sessions of a predecessor go on, and once they are back,
    /// the host's network.
    pub(super) fn go_on(&self) {
        self.carry.open.store(true, Relaxed);
        for port in lock(&self.ports).iter() {
            if let Kind::Guest(_, Some(server)) = &port.kind {
                server.go();
            }
        }
        if !self.keeper.muster().wait() {
            warn!("sessions are not back yet: what comes for them is lost");
        }
        for worker in &self.workers {
            // A dead worker has no uplinks.
            let _ = worker.handle().post(Change::ReleaseUplinks);
        }
        for (place, kept) in self.keeper.claim_rest(|_| false) {
            warn!(
                kind = kept.kind(),
                name = kept.name(),
                "left by a predecessor, not wanted"
            );
            kept.abandon(place);
        }
    }
}

#[cfg(test)]
mod tests;
