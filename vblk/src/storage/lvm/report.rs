//! What LVM says of a volume group, as the JSON of `lvm fullreport`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{LvmError, Volume, helper};

/// What is asked of each part of the report.
const FIELDS: [(&str, &str); 5] = [
    (
        "vg",
        "vg_name,vg_uuid,vg_seqno,vg_extent_size,vg_attr,vg_lock_type,vg_clustered",
    ),
    ("pv", "pv_name,pv_uuid,pe_start,pv_missing,pv_duplicate"),
    (
        "lv",
        "lv_name,lv_uuid,lv_dm_path,lv_size,lv_layout,lv_role,lv_attr,lv_active,lv_suspended,\
         lv_merging,lv_converting,origin,pool_lv,move_pv",
    ),
    (
        "seg",
        "lv_uuid,segtype,seg_start,seg_size,stripes,stripe_size,seg_le_ranges",
    ),
    ("pvseg", "pv_uuid,lv_uuid,pvseg_start,pvseg_size"),
];

/// A number, which LVM writes as a string.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let bad = || D::Error::custom(format!("{text:?} is no number"));
    text.trim().parse().map_err(|_| bad())
}

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Vg {
    pub(super) vg_uuid: String,
    /// Grows with each change.
    #[serde(deserialize_with = "number")]
    pub(super) vg_seqno: u64,
    #[serde(deserialize_with = "number")]
    pub(super) vg_extent_size: u64,
    pub(super) vg_attr: String,
    pub(super) vg_lock_type: String,
    pub(super) vg_clustered: String,
}

/// A physical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Pv {
    pub(super) pv_name: String,
    pub(super) pv_uuid: String,
    #[serde(deserialize_with = "number")]
    pub(super) pe_start: u64,
    pub(super) pv_missing: String,
    pub(super) pv_duplicate: String,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Lv {
    pub(super) lv_name: String,
    pub(super) lv_uuid: String,
    pub(super) lv_dm_path: String,
    #[serde(deserialize_with = "number")]
    pub(super) lv_size: u64,
    pub(super) lv_layout: String,
    pub(super) lv_role: String,
    pub(super) lv_attr: String,
    pub(super) lv_active: String,
    pub(super) lv_suspended: String,
    pub(super) lv_merging: String,
    pub(super) lv_converting: String,
    pub(super) origin: String,
    pub(super) pool_lv: String,
    pub(super) move_pv: String,
}

impl Lv {
    /// True if `what` is among the comma-separated `list`.
    fn has(list: &str, what: &str) -> bool {
        list.split(',').any(|one| one == what)
    }

    /// True if `layout` is one of its layouts.
    pub(super) fn is(&self, layout: &str) -> bool {
        Lv::has(&self.lv_layout, layout)
    }

    /// True if `role` is one of its roles.
    pub(super) fn plays(&self, role: &str) -> bool {
        Lv::has(&self.lv_role, role)
    }
}

/// A segment of a logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Seg {
    pub(super) lv_uuid: String,
    pub(super) segtype: String,
    #[serde(deserialize_with = "number")]
    pub(super) seg_start: u64,
    #[serde(deserialize_with = "number")]
    pub(super) seg_size: u64,
    #[serde(deserialize_with = "number")]
    pub(super) stripes: u64,
    #[serde(deserialize_with = "number")]
    pub(super) stripe_size: u64,
    /// Extents of what it stands on: `NAME:FIRST-LAST`, with commas between.
    pub(super) seg_le_ranges: String,
}

/// A piece of a physical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct PvSeg {
    pub(super) pv_uuid: String,
    pub(super) lv_uuid: String,
    #[serde(deserialize_with = "number")]
    pub(super) pvseg_start: u64,
    #[serde(deserialize_with = "number")]
    pub(super) pvseg_size: u64,
}

/// A volume group with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Report {
    pub(super) vg: Vec<Vg>,
    pub(super) pv: Vec<Pv>,
    pub(super) lv: Vec<Lv>,
    pub(super) seg: Vec<Seg>,
    pub(super) pvseg: Vec<PvSeg>,
}

impl Report {
    /// The group, and the volume called `name`.
    pub(super) fn find(&self, volume: &Volume) -> Result<(&Vg, &Lv), LvmError> {
        let group = self.vg.first();
        let lv = self.lv.iter().find(|lv| lv.lv_name == volume.lv);
        group.zip(lv).ok_or_else(|| {
            let known = self.lv.iter().filter(|lv| lv.plays("public"));
            let known: Vec<&str> = known.map(|lv| lv.lv_name.as_str()).collect();
            LvmError::Unknown {
                volume: volume.clone(),
                known: known.join(", "),
            }
        })
    }
}

/// Run `lvm` and give its standard output.
pub(super) fn run(words: &[&str]) -> Result<Vec<u8>, LvmError> {
    let what = words.first().copied().unwrap_or_default();
    let failed = |why: String| LvmError::Command {
        what: what.to_owned(),
        why,
    };
    let said = helper::run(words).map_err(|e| failed(e.to_string()))?;
    if said.success {
        return Ok(said.output.into_bytes());
    }
    let lines: Vec<&str> = said
        .error
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    Err(failed(lines.join("; ")))
}

/// Ask LVM about the group `vg`.
pub(super) fn fetch(vg: &str) -> Result<Report, LvmError> {
    let mut words = vec!["fullreport", "--reportformat", "json"];
    words.extend(["--units", "b", "--nosuffix", "--all"]);
    for (part, fields) in FIELDS {
        words.extend(["--configreport", part, "-o", fields]);
    }
    words.push(vg);
    parse(&run(&words)?)
}

/// The report in `json`.
pub(super) fn parse(json: &[u8]) -> Result<Report, LvmError> {
    let odd = |why: String| LvmError::Command {
        what: "fullreport".to_owned(),
        why: format!("its report is not understood: {why}"),
    };
    let mut all: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(|e| odd(e.to_string()))?;
    let report = all.remove("report").unwrap_or_default();
    let mut reports: Vec<Report> =
        serde_json::from_value(report).map_err(|e| odd(e.to_string()))?;
    match (reports.pop(), reports.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(odd("it is about several groups, or none".to_owned())),
    }
}
