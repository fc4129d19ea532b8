//! What changes on disks that are being served, their sessions going on: limits and shares.

use std::sync::Arc;

use towpath_common::clock::Rate;
use towpath_common::config::{Cap, Name, Weight};
use towpath_common::sched::{self, Share};
use towpath_common::worker::Worker;

use crate::config::{self, Config, Group, Limit};
use crate::host::{Host, Running, lock};
use crate::plane::Change;
use crate::qos::Throttle;
use crate::service::{GroupStatus, ServiceError, SlowRequest};
use crate::settings::{Settings, Unset};
use crate::status;
use crate::storage::{Storage, mirror_options};

/// A group as it is now.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// As configured.
    configured: Group,
    /// What applies now.
    limit: Limit,
    throttle: Option<Arc<Throttle>>,
}

impl Shared {
    fn new(configured: &Group, limit: Limit, clock: Rate) -> Shared {
        Shared {
            configured: configured.clone(),
            limit,
            throttle: Throttle::new(&limit, clock),
        }
    }
}

/// What limits a disk: as configured, as it is now, and the buckets its workers have.
#[derive(Debug)]
pub(crate) struct Limited {
    pub(crate) limit: Limit,
    pub(crate) throttles: [Option<Arc<Throttle>>; 2],
}

impl Host {
    fn clock(&self) -> Rate {
        self.workers()
            .first()
            .map_or(Rate::NANOSECONDS, Worker::rate)
    }

    /// The groups of `config`; those that did not change keep their buckets and settings.
    pub(crate) fn regroup(&self, config: &Config) -> Vec<Shared> {
        let old = lock(&self.groups);
        let clock = self.clock();
        let shared = |group: &Group| {
            let same = old.iter().find(|s| s.configured == *group);
            let new = || Shared::new(group, group.limit, clock);
            same.cloned().unwrap_or_else(new)
        };
        config.groups.iter().map(shared).collect()
    }

    /// What limits a disk with `limit` of its own in `group`.
    pub(crate) fn limited(&self, limit: Limit, group: Option<&Name>) -> Limited {
        let own = Throttle::new(&limit, self.clock());
        Limited {
            limit,
            throttles: [own, self.group_throttle(group)],
        }
    }

    fn group_throttle(&self, group: Option<&Name>) -> Option<Arc<Throttle>> {
        let groups = lock(&self.groups);
        let shared = groups.iter().find(|s| Some(&s.configured.name) == group)?;
        shared.throttle.clone()
    }

    /// Give a disk the limit `limit`, and the buckets its group has now, if any of it changed.
    pub(crate) fn limit(&self, disk: &mut Running, limit: Limit) {
        let group = self.group_throttle(disk.config.group.as_ref());
        let [own, shared] = &disk.limited.throttles;
        let same_group = match (shared, &group) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if limit == disk.limited.limit && same_group {
            return;
        }
        let own = if limit == disk.limited.limit {
            own.clone()
        } else {
            Throttle::new(&limit, self.clock())
        };
        disk.limited = Limited {
            limit,
            throttles: [own, group],
        };
        for worker in disk.device.workers() {
            let throttles = disk.limited.throttles.clone();
            // A dead worker serves nothing that could be limited.
            let _ = worker.post(Change::Throttle(disk.key, throttles));
        }
    }

    /// Give a disk what changed in its configuration and needs no new session. What was set while
    /// it ran stays, unless the same key changed.
    pub(crate) fn adjust(&self, disk: &mut Running, wanted: &config::Disk) {
        let old = std::mem::replace(&mut disk.config, wanted.clone());
        let limit = kept(&old.limit, &disk.limited.limit, &wanted.limit);
        self.limit(disk, limit);
        let policy = disk.device.disk().policy();
        policy.set_mode(kept(&old.on_error, &policy.mode(), &wanted.on_error));
        if let Storage::Mirror(mirror) = disk.device.disk().storage() {
            mirror.shared().set_options(&mirror_options(wanted));
        }
        if let Some(resident) = disk.device.disk().resident() {
            resident.set_limit(wanted.resident.bytes());
        }
        let weight = kept(&old.weight, &disk.weight, &wanted.weight);
        let cap = kept(&old.cap, &disk.cap, &wanted.cap);
        self.reshare(disk, weight, cap);
    }

    /// Give a disk another weight and cap, if they changed.
    pub(crate) fn reshare(&self, disk: &mut Running, weight: Weight, cap: Option<Cap>) {
        let used = disk.device.workers().len();
        let (old, new) = (share(disk.weight, disk.cap, used), share(weight, cap, used));
        (disk.weight, disk.cap) = (weight, cap);
        if old != new {
            for worker in disk.device.workers() {
                let _ = worker.post(Change::SetShare(disk.key, new));
            }
        }
    }

    pub(crate) fn tune_disk(&self, name: &str, settings: &Settings) -> Result<(), ServiceError> {
        let _one_at_a_time = lock(&self.applying);
        let mut disks = lock(&self.disks);
        let disk = find(&mut disks, name)?;
        let limit = settings.limit(disk.limited.limit);
        let limit = limit.map_err(ServiceError::Setting)?;
        let cap = disk.cap.filter(|_| !settings.unset.contains(&Unset::Cap));
        let weight = settings.weight.unwrap_or(disk.weight);
        self.limit(disk, limit);
        self.reshare(disk, weight, settings.cap.or(cap));
        if let Some(mode) = settings.on_error {
            disk.device.disk().policy().set_mode(mode);
        }
        Ok(())
    }

    pub(crate) fn tune_group(&self, name: &str, settings: &Settings) -> Result<(), ServiceError> {
        let _one_at_a_time = lock(&self.applying);
        if settings.is_for_disks() {
            let why = "weight, cap and on-error are settings of disks, not of groups";
            return Err(ServiceError::Setting(why));
        }
        {
            let mut groups = lock(&self.groups);
            let known: Vec<&str> = groups.iter().map(|s| s.configured.name.as_str()).collect();
            let unknown = ServiceError::unknown("group", name, &known);
            let shared = groups
                .iter_mut()
                .find(|s| s.configured.name.as_str() == name)
                .ok_or(unknown)?;
            let limit = settings.limit(shared.limit);
            let limit = limit.map_err(ServiceError::Setting)?;
            *shared = Shared::new(&shared.configured, limit, self.clock());
        }
        for disk in lock(&self.disks).iter_mut() {
            self.limit(disk, disk.limited.limit);
        }
        Ok(())
    }

    pub(crate) fn clear_disk(&self, name: &str) -> Result<(), ServiceError> {
        let mut disks = lock(&self.disks);
        let disk = find(&mut disks, name)?;
        disk.device.disk().clear_failures();
        if let Some(server) = &disk.server {
            // So that a successor does not know better.
            server.refresh();
        }
        tracing::warn!(name: crate::events::FAILURES_CLEARED, disk = name,
            "failures were cleared by an operator");
        Ok(())
    }

    pub(crate) fn slowest(&self, name: Option<&str>) -> Result<Vec<SlowRequest>, ServiceError> {
        // Handles first: a worker may take its time to answer, and the lock is for moments.
        let asked: Vec<_> = {
            let mut disks = lock(&self.disks);
            if let Some(name) = name {
                find(&mut disks, name)?;
            }
            let wanted = |d: &&Running| name.is_none_or(|name| d.config.name.as_str() == name);
            let ask = |d: &Running| (d.config.name.clone(), d.key, Arc::clone(&d.device));
            disks.iter().filter(wanted).map(ask).collect()
        };
        let mut all = Vec::new();
        for (name, key, device) in asked {
            for worker in device.workers() {
                // A worker that does not know the disk any more has nothing to tell.
                if let Ok((now, slow)) = worker.call(|reply| Change::Slow(key, reply)) {
                    let shown = |t| status::slow(&name, t, now, self.clock());
                    all.extend(slow.iter().map(shown));
                }
            }
        }
        all.sort_by_key(|request| std::cmp::Reverse(request.total_ns));
        Ok(all)
    }

    pub(crate) fn group_status(&self) -> Vec<GroupStatus> {
        let disks = lock(&self.disks);
        let members = |group: &Name| {
            let here = disks
                .iter()
                .filter(|d| d.config.group.as_ref() == Some(group));
            here.map(|d| d.config.name.clone()).collect()
        };
        let status = |shared: &Shared| GroupStatus {
            name: shared.configured.name.clone(),
            limit: shared.limit,
            disks: members(&shared.configured.name),
        };
        lock(&self.groups).iter().map(status).collect()
    }
}

/// What a value is after a reload: as set by hand, unless the configuration changed it.
fn kept<T: Copy + PartialEq>(configured: &T, now: &T, wanted: &T) -> T {
    if configured == wanted { *now } else { *wanted }
}

/// The weight and cap of a disk on each of its `workers`.
pub(crate) fn share(weight: Weight, cap: Option<Cap>, workers: usize) -> Share {
    // A cap over several workers is split evenly: each enforces its part.
    let per_worker = |cap: u32| cap.div_ceil(u32::try_from(workers).unwrap_or(1)).max(1);
    let cap = cap.map(|c| per_worker(c.get()));
    Share {
        weight: sched::Weight::try_from(weight.get()).unwrap_or_default(),
        cap: cap.and_then(|c| sched::Cap::try_from(c).ok()),
    }
}

/// The disk called `name`.
pub(crate) fn find<'a>(
    disks: &'a mut [Running],
    name: &str,
) -> Result<&'a mut Running, ServiceError> {
    let known: Vec<&str> = disks.iter().map(|d| d.config.name.as_str()).collect();
    let unknown = ServiceError::unknown("disk", name, &known);
    disks
        .iter_mut()
        .find(|d| d.config.name.as_str() == name)
        .ok_or(unknown)
}
