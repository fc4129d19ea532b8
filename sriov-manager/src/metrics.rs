//! What Prometheus sees. Names and labels are a promise to dashboards; [`FAMILIES`] is the whole.

use towpath_common::control::Exposition;
use towpath_common::families;

use crate::inventory::{Inventory, Pf, Vf};
use crate::keeper::Report;
use crate::lease::{Broker, Phase, Shown};

families! {
    VFS: Gauge "towpath_sriov_vfs" "VFs of a PF.";
    VFS_MOST: Gauge "towpath_sriov_vfs_most" "VFs that a PF can have.";
    IN_USE: Gauge "towpath_sriov_vfs_in_use" "VFs of a PF that somebody uses.";
    WEDGED: Gauge "towpath_sriov_wedged" "1 while a write to a PF does not return.";
    LEFT: Gauge "towpath_sriov_steps_left" "Steps of a PF that are not carried out.";
    DRIFT: Gauge "towpath_sriov_drift" "Settings of a PF that somebody else changed.";
    LACKS: Gauge "towpath_sriov_lacks" "Attributes that VFs of a PF are without.";
    REFUSED: Gauge "towpath_sriov_refusals" "What is refused now, by reason.";
    LEASES: Gauge "towpath_sriov_leases" "Leases of a pool, by phase.";
    GRANTED: Counter "towpath_sriov_leases_granted_total" "Leases granted.";
    DENIED: Counter "towpath_sriov_leases_refused_total" "Requests for a lease that were refused.";
    ENDED: Counter "towpath_sriov_leases_ended_total" "Leases that ended, their VFs free again.";
    UNCLEAN: Counter "towpath_sriov_scrubs_failed_total" "Attempts to free a VF that failed.";
    LOST: Counter "towpath_sriov_leases_lost_total" "Leases whose card was pulled.";
    LOOKS: Counter "towpath_sriov_looks_total" "Looks at the host, by result.";
    APPLIES: Counter "towpath_sriov_applies_total" "Applies, by how they ended.";
    REPAIRED: Counter "towpath_sriov_repaired_total" "Steps that undid a change of somebody else.";
    EVENTS: Counter "towpath_sriov_events_total" "Events of the kernel.";
    PACKETS: Counter "towpath_sriov_vf_packets_total" "Frames of a VF, as its PF counts.";
    BYTES: Counter "towpath_sriov_vf_bytes_total" "Bytes of a VF, as its PF counts.";
    DROPPED: Counter "towpath_sriov_vf_dropped_total" "Frames of a VF that were dropped.";
    BUILD: Gauge "towpath_build_info" "1; the labels name daemon and version.";
}

/// One scrape. `inventory` is of now, for the counters of VFs.
pub fn render(report: &Report, inventory: &Inventory, broker: &Broker) -> String {
    let mut scrape = Exposition::default();
    let version = [
        ("daemon", "sriov-manager"),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    scrape.gauge(&BUILD, &version, 1.0);
    for pf in &inventory.pfs {
        add_pf(&mut scrape, report, pf);
    }
    let mut reasons = std::collections::BTreeMap::<String, u32>::new();
    for refusal in &report.left.refusals {
        *reasons.entry(format!("{:?}", refusal.why)).or_default() += 1;
    }
    for (why, count) in reasons {
        scrape.gauge(&REFUSED, &[("why", &why)], f64::from(count));
    }
    add_leases(&mut scrape, broker);
    let counters = &report.counters;
    scrape.counter(&LOOKS, &[("result", "done")], counters.looks);
    scrape.counter(&LOOKS, &[("result", "failed")], counters.failed_looks);
    scrape.counter(&APPLIES, &[("outcome", "applied")], counters.applied);
    scrape.counter(
        &APPLIES,
        &[("outcome", "rolled_back")],
        counters.rolled_back,
    );
    scrape.counter(&APPLIES, &[("outcome", "stuck")], counters.stuck);
    scrape.counter(&REPAIRED, &[], counters.repaired);
    scrape.counter(&EVENTS, &[], counters.events);
    scrape.render()
}

fn count(items: usize) -> f64 {
    f64::from(u32::try_from(items).unwrap_or(u32::MAX))
}

fn add_pf(scrape: &mut Exposition, report: &Report, pf: &Pf) {
    let address = pf.address.to_string();
    let labels = [("pf", address.as_str())];
    scrape.gauge(&VFS, &labels, f64::from(pf.count()));
    scrape.gauge(&VFS_MOST, &labels, f64::from(pf.total));
    let used = pf.vfs.iter().filter(|vf| vf.is_used()).count();
    scrape.gauge(&IN_USE, &labels, count(used));
    scrape.gauge(
        &WEDGED,
        &labels,
        if pf.wedged.is_some() { 1.0 } else { 0.0 },
    );
    scrape.gauge(&LEFT, &labels, count(report.left.of(pf.address).count()));
    let drifted = report.drift.iter().filter(|step| step.pf == pf.address);
    scrape.gauge(&DRIFT, &labels, count(drifted.count()));
    let lacks = report
        .left
        .lacks
        .iter()
        .filter(|lack| lack.pf == pf.address);
    scrape.gauge(&LACKS, &labels, count(lacks.count()));
    for vf in &pf.vfs {
        add_vf(scrape, &address, vf);
    }
}

fn add_vf(scrape: &mut Exposition, pf: &str, vf: &Vf) {
    let Some(counters) = vf.counters else {
        return;
    };
    let (address, index) = (vf.address.to_string(), vf.index.to_string());
    let (rx, tx) = (("direction", "rx"), ("direction", "tx"));
    let own = [
        ("pf", pf),
        ("vf", index.as_str()),
        ("address", address.as_str()),
    ];
    let with = |direction| [own[0], own[1], own[2], direction];
    scrape.counter(&PACKETS, &with(rx), counters.rx_packets);
    scrape.counter(&PACKETS, &with(tx), counters.tx_packets);
    scrape.counter(&BYTES, &with(rx), counters.rx_bytes);
    scrape.counter(&BYTES, &with(tx), counters.tx_bytes);
    scrape.counter(&DROPPED, &with(rx), counters.rx_dropped);
    scrape.counter(&DROPPED, &with(tx), counters.tx_dropped);
}

/// Whether a lease is in a phase.
type InPhase = fn(&Phase) -> bool;

fn add_leases(scrape: &mut Exposition, broker: &Broker) {
    let leases = broker.leases();
    for pool in &broker.spec().pools {
        let phases: [(&str, InPhase); 3] = [
            ("active", |phase| *phase == Phase::Active),
            ("ending", |phase| matches!(phase, Phase::Ending(_))),
            ("lost", |phase| *phase == Phase::Lost),
        ];
        for (name, is) in phases {
            let own = |shown: &&Shown| shown.lease.pool == pool.name && is(&shown.lease.phase);
            let labels = [("pool", pool.name.as_str()), ("phase", name)];
            scrape.gauge(&LEASES, &labels, count(leases.iter().filter(own).count()));
        }
    }
    let counters = broker.counters();
    scrape.counter(&GRANTED, &[], counters.granted);
    scrape.counter(&DENIED, &[], counters.refused);
    scrape.counter(&ENDED, &[], counters.ended);
    scrape.counter(&UNCLEAN, &[], counters.failed);
    scrape.counter(&LOST, &[], counters.lost);
}
