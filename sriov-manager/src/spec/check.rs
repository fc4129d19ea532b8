//! Rules that tie the parts of a file together, and the way from tables to a [`Spec`].

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use toml::Spanned;
use towpath_common::config::{ConfigError, Document, Place, SocketPath};
use towpath_common::control::Access;

use super::table::{DaemonTable, File, MacChoice, PfTable, VfTable};
use super::{
    DEFAULT_CONTROL, DEFAULT_LEASES, DEFAULT_STATE, MAX_PFS, MAX_POOLS, Match, PfSpec, Pool,
    Settings, Spec, VfSpec,
};
use crate::attribute::{Attributes, Rates, Tag};
use crate::kernel::DEADLINE;
use crate::nvme::Resources;
use crate::values::{Driver, Mac, Qos, Rate, VfIndex, Vlan, VlanProtocol};

/// Half a minute, so that drift is not noticed by users first.
const DRIFT_INTERVAL: i64 = 30;
/// What a VF of a pool is bound to.
const VFIO: &str = "vfio-pci";

/// Makes a [`Spec`] of `file`, or says what is wrong with it.
pub(super) fn check(document: &Document, file: File) -> Result<Spec, ConfigError> {
    let mut checker = Checker {
        document,
        macs: Unique::new("mac", "give each VF its own address"),
        pools: Vec::new(),
    };
    let daemon = settings(document, file.daemon, file.control)?;
    let pools = checker.pools(file.pools)?;
    let mut matches = Unique::new("match", "describe each PF once");
    let mut pfs = Vec::new();
    for (count, pf) in file.pfs.into_iter().enumerate() {
        let place = document.place(pf.span());
        if count == MAX_PFS {
            return Err(invalid(place, format!("more than {MAX_PFS} PFs")));
        }
        let matching = pf.get_ref().matching.get_ref();
        if *matching == Match::default() {
            let place = document.place(pf.get_ref().matching.span());
            let message = "match is empty: give address, mac, vendor, device, driver or name";
            return Err(invalid(place, message));
        }
        matches.claim(&place, format!("{matching:?}"))?;
        pfs.push(checker.pf(place, pf.into_inner())?);
    }
    Ok(Spec {
        daemon,
        group_type: file.iommu.group_type,
        pools,
        pfs,
    })
}

/// A path that means the same to the daemon and to every command, wherever each is started.
fn absolute<T>(
    document: &Document,
    key: &str,
    written: Option<Spanned<T>>,
    path: impl Fn(&T) -> &Path,
) -> Result<Option<T>, ConfigError> {
    let Some(written) = written else {
        return Ok(None);
    };
    let (place, value) = (document.place(written.span()), written.into_inner());
    if path(&value).is_absolute() {
        return Ok(Some(value));
    }
    let message = format!(
        "{key} {:?} is not absolute: the daemon and the commands are started in different \
         directories; write the whole path",
        path(&value)
    );
    Err(invalid(place, message))
}

fn settings(
    document: &Document,
    table: DaemonTable,
    access: Access,
) -> Result<Settings, ConfigError> {
    let deadline = i64::try_from(DEADLINE.as_secs()).unwrap_or(i64::MAX);
    let value = |error: towpath_common::config::ValueError| {
        invalid(document.place(0..0), error.to_string())
    };
    let settings = Settings {
        control: absolute(document, "control", table.control, SocketPath::as_path)?
            .unwrap_or_else(|| SocketPath::literal(DEFAULT_CONTROL)),
        leases: absolute(document, "leases", table.leases, SocketPath::as_path)?
            .unwrap_or_else(|| SocketPath::literal(DEFAULT_LEASES)),
        state: absolute(document, "state", table.state, PathBuf::as_path)?
            .unwrap_or_else(|| DEFAULT_STATE.into()),
        access,
        drift: table.drift,
        drift_interval: match table.drift_interval {
            Some(interval) => interval,
            None => DRIFT_INTERVAL.try_into().map_err(value)?,
        },
        write_deadline: match table.write_deadline {
            Some(seconds) => seconds,
            None => deadline.try_into().map_err(value)?,
        },
        log: table.log,
    };
    if settings.control == settings.leases {
        let message = format!("control and leases are both \"{}\"", settings.control);
        return Err(invalid(document.place(0..0), message));
    }
    Ok(settings)
}

struct Checker<'a> {
    document: &'a Document,
    macs: Unique<Mac>,
    pools: Vec<String>,
}

impl Checker<'_> {
    fn pools(&mut self, tables: Vec<Spanned<Pool>>) -> Result<Vec<Pool>, ConfigError> {
        let mut names = Unique::new("name", "give each pool its own name");
        let mut pools = Vec::new();
        for pool in tables {
            let place = self.document.place(pool.span());
            let pool = pool.into_inner();
            names.claim(&place, pool.name.as_str().to_owned())?;
            if pools.len() == MAX_POOLS {
                return Err(invalid(place, format!("more than {MAX_POOLS} pools")));
            }
            self.pools.push(pool.name.as_str().to_owned());
            pools.push(pool);
        }
        Ok(pools)
    }

    fn pf(&mut self, place: Place, table: PfTable) -> Result<PfSpec, ConfigError> {
        let mut vfs: Vec<(Place, VfSpec)> = Vec::new();
        let mut owners: HashMap<u16, Place> = HashMap::new();
        for vf in table.vf {
            let place = self.document.place(vf.span());
            let vf = vf.into_inner();
            let (first, last) = indexes(&place, &vf)?;
            if last >= table.vfs.get() {
                let message = format!(
                    "VF {last} does not exist: vfs = {} makes {}; raise vfs, or change the index",
                    table.vfs,
                    match table.vfs.get() {
                        0 => "none".to_owned(),
                        count => format!("VFs 0 to {}", count - 1),
                    }
                );
                return Err(invalid(place, message));
            }
            for index in first..=last {
                if let Some(other) = owners.insert(index, place.clone()) {
                    return Err(ConfigError::Conflict {
                        what: format!("VF {index}"),
                        first: other,
                        second: place,
                        fix: "describe each VF once",
                    });
                }
            }
            let one = self.vf(&place, &vf, first != last)?;
            for index in first..=last {
                let index = VfIndex::try_from(i64::from(index));
                let index = index.map_err(|error| invalid(place.clone(), error.to_string()))?;
                let vf = VfSpec {
                    index,
                    ..one.clone()
                };
                vfs.push((place.clone(), vf));
            }
        }
        vfs.sort_by_key(|(_, vf)| vf.index);
        Ok(PfSpec {
            place,
            matching: table.matching.into_inner(),
            vfs: table.vfs,
            autoprobe: table.autoprobe,
            eswitch: table.eswitch,
            required: table.required,
            vf: vfs.into_iter().map(|(_, vf)| vf).collect(),
        })
    }

    fn vf(&mut self, place: &Place, table: &VfTable, many: bool) -> Result<VfSpec, ConfigError> {
        let mut attributes = Attributes {
            tag: self.tag(table)?,
            rates: self.rates(table)?,
            spoof_check: table.spoof_check,
            trust: table.trust,
            link_state: table.link_state,
            rss_query: table.rss_query,
            node_guid: table.node_guid,
            port_guid: table.port_guid,
            ..Attributes::default()
        };
        let mac = table.mac.as_ref();
        if let Some(MacChoice::Fixed(address)) = mac.map(Spanned::get_ref) {
            let place = mac.map_or_else(|| place.clone(), |mac| self.document.place(mac.span()));
            if many {
                let message = "one mac for a range: write mac = \"derived\", or one VF each";
                return Err(invalid(place, message));
            }
            self.macs.claim(&place, *address)?;
            attributes.mac = Some(*address);
        }
        let driver = self.driver(table)?;
        Ok(VfSpec {
            index: VfIndex::MIN,
            attributes,
            derived_mac: mac.map(Spanned::get_ref) == Some(&MacChoice::Derived),
            msix: table.msix,
            resources: self.resources(table)?,
            driver,
            pool: table.pool.as_ref().map(|pool| pool.get_ref().clone()),
        })
    }

    fn resources(&self, table: &VfTable) -> Result<Option<Resources>, ConfigError> {
        let span = match (&table.vq, &table.vi) {
            (None, None) => return Ok(None),
            (Some(vq), Some(vi)) => {
                let (vq, vi) = (vq.get_ref().get(), vi.get_ref().get());
                return Ok(Some(Resources { vq, vi }));
            }
            (Some(vq), None) => vq.span(),
            (None, Some(vi)) => vi.span(),
        };
        let message = "vq and vi belong together: an NVMe VF needs queue pairs and interrupts";
        Err(invalid(self.document.place(span), message))
    }

    fn driver(&self, table: &VfTable) -> Result<Option<Driver>, ConfigError> {
        let driver = table.driver.as_ref();
        let Some(pool) = &table.pool else {
            return Ok(driver.map(|driver| driver.get_ref().clone()));
        };
        let name = pool.get_ref().as_str();
        if !self.pools.iter().any(|known| known == name) {
            let known = self.pools.join(", ");
            let message = format!("there is no pool {name:?}: add a [[pool]]; pools: {known}");
            return Err(invalid(self.document.place(pool.span()), message));
        }
        if let Some(driver) = driver.filter(|driver| !driver.get_ref().is_vfio()) {
            let message = format!(
                "driver \"{}\" cannot be leased: leave driver out, or name a VFIO driver",
                driver.get_ref()
            );
            return Err(invalid(self.document.place(driver.span()), message));
        }
        let vfio = || Driver::try_from(VFIO.to_owned()).ok();
        Ok(driver.map(|driver| driver.get_ref().clone()).or_else(vfio))
    }

    fn tag(&self, table: &VfTable) -> Result<Option<Tag>, ConfigError> {
        let qos = table.qos.as_ref();
        let protocol = table.vlan_protocol.as_ref();
        let Some(vlan) = table.vlan.filter(|vlan| *vlan != Vlan::MIN) else {
            let place = qos.map(Spanned::span).or(protocol.map(Spanned::span));
            return match place {
                Some(span) => {
                    let message = "qos and vlan_protocol belong to a tag: give a vlan of 1 to 4094";
                    Err(invalid(self.document.place(span), message))
                }
                None => Ok(table.vlan.map(|_| Tag::NONE)),
            };
        };
        Ok(Some(Tag {
            vlan,
            qos: qos.map_or(Qos::MIN, |qos| *qos.get_ref()),
            protocol: protocol.map_or(VlanProtocol::Customer, |one| *one.get_ref()),
        }))
    }

    fn rates(&self, table: &VfTable) -> Result<Option<Rates>, ConfigError> {
        if table.min_rate.is_none() && table.max_rate.is_none() {
            return Ok(None);
        }
        let min = table
            .min_rate
            .as_ref()
            .map_or(Rate::MIN, |rate| *rate.get_ref());
        let max = table.max_rate.unwrap_or(Rate::MIN);
        match &table.min_rate {
            Some(written) if max != Rate::MIN && min > max => {
                let message = format!("min_rate {min} is more than max_rate {max}");
                Err(invalid(self.document.place(written.span()), message))
            }
            _ => Ok(Some(Rates { min, max })),
        }
    }
}

/// The indexes that a table speaks of.
fn indexes(place: &Place, table: &VfTable) -> Result<(u16, u16), ConfigError> {
    match (table.index, table.range) {
        (Some(index), None) => Ok((index.get(), index.get())),
        (None, Some(range)) => Ok((range.first.get(), range.last.get())),
        _ => Err(invalid(place.clone(), "give either index or range")),
    }
}

/// Values that only one thing may have.
struct Unique<K> {
    what: &'static str,
    fix: &'static str,
    seen: HashMap<K, Place>,
}

impl<K: Hash + Eq + Debug> Unique<K> {
    fn new(what: &'static str, fix: &'static str) -> Self {
        let seen = HashMap::new();
        Self { what, fix, seen }
    }

    fn claim(&mut self, place: &Place, value: K) -> Result<(), ConfigError> {
        if let Some(first) = self.seen.get(&value) {
            return Err(ConfigError::Conflict {
                what: format!("{} {value:?}", self.what),
                first: first.clone(),
                second: place.clone(),
                fix: self.fix,
            });
        }
        self.seen.insert(value, place.clone());
        Ok(())
    }
}

fn invalid(place: Place, message: impl Into<String>) -> ConfigError {
    let message = message.into();
    ConfigError::Invalid { place, message }
}
