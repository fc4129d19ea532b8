//! What can be changed while a disk or group is served: as a body of the API, and as the words
//! after `vblk disk set NAME`. It lasts until the disk's keys in the file change, or the daemon
//! ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::argument::{Edit, Syntax, read};
use towpath_common::config::{Cap, Weight};

use crate::config::{Bandwidth, Iops, Limit, OnError};

/// Changes; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Iops>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<Iops>,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Bytes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<Bandwidth>,
    /// Share of the worker's time; not of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Most of a core; not of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<Cap>,
    /// What becomes of requests that the storage failed; not of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// What is to have no value any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unset: Vec<Unset>,
}

/// A setting that can be without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unset {
    /// No limit of requests; its burst goes with it.
    Iops,
    /// The default burst.
    IopsBurst,
    /// No limit of bytes; its burst goes with it.
    Bandwidth,
    /// The default burst.
    BandwidthBurst,
    /// No cap.
    Cap,
}

/// The words of the command line.
const WORDS: Syntax = Syntax {
    first: "setting",
    texts: &["bandwidth", "bandwidth-burst", "on-error"],
    lists: &[],
    numbers: &["iops", "iops-burst", "weight", "cap"],
    switches: &[],
    flags: &[],
};

impl Settings {
    /// From `key=value` words; `key=` takes a value away.
    ///
    /// # Errors
    /// A sentence that names the word and what is known here.
    pub fn of_words(words: &[String]) -> Result<Settings, String> {
        if let Some(word) = words.iter().find(|word| !word.contains('=')) {
            return Err(format!("{word:?} is no setting; write KEY=VALUE"));
        }
        let Edit { set, unset } = WORDS.edit(&words.join(","))?;
        if let Some(word) = set.get("setting") {
            let known = WORDS.texts.iter().chain(WORDS.numbers);
            let known: Vec<String> = known.map(|key| format!("{key}=")).collect();
            return Err(format!("{word} is no setting; use {}", known.join(", ")));
        }
        let unset = unset.into_iter().map(toml::Value::String).collect();
        let unset = [("unset".to_owned(), toml::Value::Array(unset))];
        read(set.into_iter().chain(unset).collect())
    }

    /// `limit` with these changes.
    ///
    /// # Errors
    /// What would be wrong with it.
    pub fn limit(&self, mut limit: Limit) -> Result<Limit, &'static str> {
        for unset in &self.unset {
            match unset {
                Unset::Iops => (limit.iops, limit.iops_burst) = (None, None),
                Unset::IopsBurst => limit.iops_burst = None,
                Unset::Bandwidth => (limit.bandwidth, limit.bandwidth_burst) = (None, None),
                Unset::BandwidthBurst => limit.bandwidth_burst = None,
                Unset::Cap => {}
            }
        }
        limit.iops = self.iops.or(limit.iops);
        limit.iops_burst = self.iops_burst.or(limit.iops_burst);
        limit.bandwidth = self.bandwidth.or(limit.bandwidth);
        limit.bandwidth_burst = self.bandwidth_burst.or(limit.bandwidth_burst);
        limit.mistake().map_or(Ok(limit), Err)
    }

    /// Whether there is something that only a disk has.
    #[must_use]
    pub fn is_for_disks(&self) -> bool {
        let cap = self.cap.is_some() || self.unset.contains(&Unset::Cap);
        self.weight.is_some() || cap || self.on_error.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Settings, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Settings::of_words(&words)
    }

    #[test]
    fn words_are_settings() {
        let settings = words("iops=500 bandwidth=10M weight=7 cap= iops-burst=").unwrap();
        let expected = Settings {
            iops: Some("500".parse().unwrap()),
            bandwidth: Some("10M".parse().unwrap()),
            weight: Some("7".parse().unwrap()),
            unset: vec![Unset::Cap, Unset::IopsBurst],
            ..Settings::default()
        };
        assert_eq!(settings, expected);
        assert!(settings.is_for_disks());
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), expected);
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (line, message) in [
            ("iops", "\"iops\" is no setting; write KEY=VALUE"),
            ("iops=0", "iops must be 1 to 100000000, not 0"),
            ("bandwidth=1", "write at least 4K"),
            ("size=4", "size=4"),
            ("weight=", "unknown variant `weight`"),
        ] {
            let error = words(line).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_limit_takes_its_burst_with_it_and_a_burst_needs_a_limit() {
        let limit = words("iops=5 iops-burst=50")
            .unwrap()
            .limit(Limit::default());
        let limit = limit.unwrap();
        assert_eq!(limit.iops_burst.unwrap().get(), 50);
        let limit = words("iops= bandwidth=4K").unwrap().limit(limit).unwrap();
        assert_eq!((limit.iops, limit.iops_burst), (None, None));
        let mistake = words("iops-burst=5").unwrap().limit(limit).unwrap_err();
        assert!(mistake.contains("set iops"), "{mistake}");
    }
}
