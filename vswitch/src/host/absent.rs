//! Uplinks whose interface cannot be opened, or is gone.
//!
//! After a crash, a restart or an upgrade an interface may be away, or held by somebody else. That
//! is the uplink's trouble alone: it is a port like the others, in its place and with its number,
//! but down, and the guests that a predecessor served go on. A daemon that follows nobody does not
//! start instead: that an interface cannot be opened is then most likely a mistake in the
//! configuration.
//!
//! What is down is tried again all the time. One that was left out at the start is opened as a
//! start would, which may make it. One that was deleted while it was served is opened once somebody
//! has made it again: whoever deletes an interface does not want it back at once, and what makes
//! networks would find its name taken. A reload makes it.

use std::sync::Arc;

use tracing::{error, info};

use super::ports::failed;
use super::settings::uplink_guards;
use super::{Host, Kind, Running, lock};
use crate::config::{self, Config};
use crate::egress::Egress;
use crate::events::{UPLINK_BACK, UPLINK_FAILED};
use crate::fdb::PortNo;
use crate::port::tap::Tap;
use crate::service::ServiceError;
use crate::stats::{PortShared, VlanCounters};

/// MTU of an interface that nobody has seen, in bytes: Ethernet's.
const UNSEEN: u16 = 1500;

/// Uplinks that stay down in a reload, with the reason.
pub(super) type Down = Vec<(config::Uplink, String)>;

/// Why an uplink is down, without its name.
pub(super) fn reason(error: ServiceError) -> String {
    match error {
        ServiceError::Port { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// A sentence for each uplink that stays down.
pub(super) fn sentences(down: &Down) -> impl Iterator<Item = String> {
    down.iter()
        .map(|(uplink, why)| format!("uplink {} is down still: {why}", uplink.name))
}

impl Running {
    /// Whether it is an uplink that was left out, and never opened.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(&*self.egress, Egress::Uplink(queues) if queues.is_empty())
    }
}

impl Host {
    /// A port for an uplink that cannot be opened: down, and tried again.
    pub(super) fn start_absent(
        &self,
        no: PortNo,
        config: config::Uplink,
        why: String,
        before: Option<(Arc<PortShared>, u64)>,
    ) -> Running {
        error!(name: UPLINK_FAILED, port = %config.name, error = why,
            "the uplink is down until its interface can be opened");
        let queues = usize::from(config.queues.get()) * 2;
        let (shared, connections) = match before {
            Some((shared, n)) if shared.queues.len() == queues => (shared, n),
            _ => self.new_shared(&config.name, queues),
        };
        shared.fail(Some(why));
        // So that a successor knows that this process was there, guests or not.
        let place = self.keep_taps(&config, &[]);
        let mtu = config.mtu.map_or(UNSEEN, |mtu| mtu.get());
        Running {
            no,
            guards: Arc::new(uplink_guards(&config)),
            vlans: Arc::new(VlanCounters::new(&config.vlans(), self.workers.len())),
            outdated: Vec::new(),
            kind: Kind::Uplink(config, mtu.into(), place),
            egress: Arc::new(Egress::Uplink(Box::default())),
            shared,
            connections,
        }
    }

    /// A sentence for each uplink that does not work and is opened again, but those that stay down.
    pub(super) fn reopened(&self, config: &Config, down: &Down) -> Vec<String> {
        let running = lock(&self.ports);
        let again = running.iter().filter(|r| {
            let wanted = config.uplinks.iter().any(|u| u.name == *r.name());
            wanted && !r.works() && !down.iter().any(|(u, _)| u.name == *r.name())
        });
        let sentence = |r: &Running| format!("uplink {} had failed and was opened again", r.name());
        again.map(sentence).collect()
    }

    /// Try once more to open what is down.
    pub(super) fn retry_uplinks(&self) {
        let Ok(_one_at_a_time) = self.applying.try_lock() else {
            return;
        };
        let down: Vec<(PortNo, config::Uplink, bool)> = {
            let running = lock(&self.ports);
            let down = running.iter().filter(|r| !r.works());
            let uplinks = down.filter_map(|r| match &r.kind {
                Kind::Uplink(config, ..) => Some((r.no, config.clone(), r.is_absent())),
                Kind::Guest(..) => None,
            });
            uplinks.collect()
        };
        for (no, config, absent) in down {
            if !absent && !Tap::exists(&config.tap) {
                continue;
            }
            let opened = self.open(&config);
            match opened.and_then(|taps| self.serve_again(no, &config, taps)) {
                Ok(()) => {
                    info!(name: UPLINK_BACK, port = %config.name, "the uplink is up again");
                }
                Err(error) => self.stays_down(no, &config, reason(error)),
            }
        }
    }

    /// Note why an uplink is down now; say it, if that is another reason than before.
    fn stays_down(&self, no: PortNo, config: &config::Uplink, why: String) {
        let running = lock(&self.ports);
        let Some(port) = running.iter().find(|r| r.no == no) else {
            return;
        };
        if port.shared.failure().as_ref() != Some(&why) {
            error!(name: UPLINK_FAILED, port = %config.name, error = why, "the uplink stays down");
            port.shared.fail(Some(why));
        }
    }

    /// Put the opened interface in the place of the uplink that was down: same number, same
    /// addresses, same counters.
    fn serve_again(
        &self,
        no: PortNo,
        config: &config::Uplink,
        taps: Vec<Tap>,
    ) -> Result<(), ServiceError> {
        let found = {
            let running = lock(&self.ports);
            let port = running.iter().find(|r| r.no == no);
            port.map(|r| (Arc::clone(&r.shared), r.connections))
        };
        let Some(before) = found else {
            return Err(failed(&config.name, "it is served no more"));
        };
        self.forget_port(no);
        let fresh = self.start_uplink(no, config.clone(), taps, Some(before));
        let fresh = fresh.inspect_err(|_| self.forget_port(no))?;
        let mut running = lock(&self.ports);
        let Some(port) = running.iter_mut().find(|r| r.no == no) else {
            // Everything was left to a successor meanwhile.
            drop(running);
            self.forget_port(no);
            return Ok(());
        };
        let before = std::mem::replace(&mut port.kind, fresh.kind);
        port.egress = fresh.egress;
        port.shared = fresh.shared;
        drop(running);
        if let Kind::Uplink(_, _, mut place) = before {
            place.clear();
        }
        self.publish();
        Ok(())
    }
}
