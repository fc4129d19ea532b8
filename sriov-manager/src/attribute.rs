//! What a PF's driver can be told about one of its VFs, and what it says of it: the attributes of
//! `ip link set PF vf N …`.
//!
//! [`Attributes`] is both: what is wanted (fields that are not wanted are `None`) and what the
//! kernel reports (fields that it does not report are `None`). The difference of the two, one
//! [`Attribute`] at a time, is what has to be set. No driver implements them all, and the kernel
//! tells only when one is set.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Guid, LinkState, Mac, Qos, Rate, Vlan, VlanProtocol};

/// The tag that a VF's frames get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tag {
    /// 0: none.
    pub vlan: Vlan,
    /// Priority.
    pub qos: Qos,
    /// Kind of the tag.
    pub protocol: VlanProtocol,
}

impl Tag {
    /// No tag.
    pub const NONE: Self = Self {
        vlan: Vlan::MIN,
        qos: Qos::MIN,
        protocol: VlanProtocol::Customer,
    };
}

/// How fast a VF may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// Guaranteed; 0: nothing.
    pub min: Rate,
    /// Limit; 0: none.
    pub max: Rate,
}

impl Rates {
    /// Neither guarantee nor limit.
    pub const NONE: Self = Self {
        min: Rate::MIN,
        max: Rate::MIN,
    };
}

/// Attributes of one VF, wanted or reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attributes {
    /// Its address; zeroes: the VF's driver chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Its rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
    /// Whether it may send from its own address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and receive everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// What it sees of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<LinkState>,
    /// Whether it may read the PF's RSS configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_query: Option<bool>,
    /// InfiniBand node GUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_guid: Option<Guid>,
    /// InfiniBand port GUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_guid: Option<Guid>,
}

/// Attributes by the keys of the specification.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// [`Attributes::mac`].
    Mac,
    /// [`Attributes::tag`].
    Vlan,
    /// [`Attributes::rates`].
    #[serde(alias = "min_rate")]
    MaxRate,
    /// [`Attributes::spoof_check`].
    SpoofCheck,
    /// [`Attributes::trust`].
    Trust,
    /// [`Attributes::link_state`].
    LinkState,
    /// [`Attributes::rss_query`].
    RssQuery,
    /// [`Attributes::node_guid`].
    NodeGuid,
    /// [`Attributes::port_guid`].
    PortGuid,
}

impl Key {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Vlan => "vlan",
            Self::MaxRate => "max_rate",
            Self::SpoofCheck => "spoof_check",
            Self::Trust => "trust",
            Self::LinkState => "link_state",
            Self::RssQuery => "rss_query",
            Self::NodeGuid => "node_guid",
            Self::PortGuid => "port_guid",
        }
    }

    /// Whether a VF without it would be somebody else, or in another network: never done without.
    pub const fn is_identity(self) -> bool {
        matches!(
            self,
            Self::Mac | Self::Vlan | Self::NodeGuid | Self::PortGuid
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One attribute and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attribute {
    /// [`Attributes::mac`].
    Mac(Mac),
    /// [`Attributes::tag`].
    Tag(Tag),
    /// [`Attributes::rates`].
    Rates(Rates),
    /// [`Attributes::spoof_check`].
    SpoofCheck(bool),
    /// [`Attributes::trust`].
    Trust(bool),
    /// [`Attributes::link_state`].
    LinkState(LinkState),
    /// [`Attributes::rss_query`].
    RssQuery(bool),
    /// [`Attributes::node_guid`].
    NodeGuid(Guid),
    /// [`Attributes::port_guid`].
    PortGuid(Guid),
}

impl Attribute {
    /// The key of the specification that is meant.
    pub const fn key(&self) -> Key {
        match self {
            Self::Mac(_) => Key::Mac,
            Self::Tag(_) => Key::Vlan,
            Self::Rates(_) => Key::MaxRate,
            Self::SpoofCheck(_) => Key::SpoofCheck,
            Self::Trust(_) => Key::Trust,
            Self::LinkState(_) => Key::LinkState,
            Self::RssQuery(_) => Key::RssQuery,
            Self::NodeGuid(_) => Key::NodeGuid,
            Self::PortGuid(_) => Key::PortGuid,
        }
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Tag(tag) => {
                write!(
                    f,
                    "vlan {} qos {} proto {}",
                    tag.vlan, tag.qos, tag.protocol
                )
            }
            Self::Rates(rates) => {
                write!(f, "min_rate {} max_rate {} Mbit/s", rates.min, rates.max)
            }
            Self::SpoofCheck(on) => write!(f, "spoof_check {}", on_off(*on)),
            Self::Trust(on) => write!(f, "trust {}", on_off(*on)),
            Self::LinkState(state) => write!(f, "link_state {state}"),
            Self::RssQuery(on) => write!(f, "rss_query {}", on_off(*on)),
            Self::NodeGuid(guid) => write!(f, "node_guid {guid}"),
            Self::PortGuid(guid) => write!(f, "port_guid {guid}"),
        }
    }
}

impl Attributes {
    /// What a VF has that nobody was told anything about.
    pub const SCRUBBED: Self = Self {
        mac: Some(Mac::ZERO),
        tag: Some(Tag::NONE),
        rates: Some(Rates::NONE),
        spoof_check: None,
        trust: Some(false),
        link_state: None,
        rss_query: None,
        node_guid: None,
        port_guid: None,
    };

    /// Every attribute that has a value, in the order in which they are set. The address comes
    /// first, since a VF's driver reads it when it is bound.
    pub fn each(&self) -> impl Iterator<Item = Attribute> + use<> {
        [
            self.mac.map(Attribute::Mac),
            self.tag.map(Attribute::Tag),
            self.rates.map(Attribute::Rates),
            self.spoof_check.map(Attribute::SpoofCheck),
            self.trust.map(Attribute::Trust),
            self.link_state.map(Attribute::LinkState),
            self.rss_query.map(Attribute::RssQuery),
            self.node_guid.map(Attribute::NodeGuid),
            self.port_guid.map(Attribute::PortGuid),
        ]
        .into_iter()
        .flatten()
    }

    /// Sets one.
    pub fn set(&mut self, attribute: Attribute) {
        match attribute {
            Attribute::Mac(mac) => self.mac = Some(mac),
            Attribute::Tag(tag) => self.tag = Some(tag),
            Attribute::Rates(rates) => self.rates = Some(rates),
            Attribute::SpoofCheck(on) => self.spoof_check = Some(on),
            Attribute::Trust(on) => self.trust = Some(on),
            Attribute::LinkState(state) => self.link_state = Some(state),
            Attribute::RssQuery(on) => self.rss_query = Some(on),
            Attribute::NodeGuid(guid) => self.node_guid = Some(guid),
            Attribute::PortGuid(guid) => self.port_guid = Some(guid),
        }
    }

    /// These, and those of `rest` where these have none.
    #[must_use]
    pub fn or(mut self, rest: &Self) -> Self {
        let own: Vec<Key> = self.each().map(|one| one.key()).collect();
        for attribute in rest.each() {
            if !own.contains(&attribute.key()) {
                self.set(attribute);
            }
        }
        self
    }

    /// Whether `attribute` is what is reported here.
    pub fn holds(&self, attribute: &Attribute) -> bool {
        match *attribute {
            Attribute::Mac(mac) => self.mac == Some(mac),
            Attribute::Tag(tag) => self.tag == Some(tag),
            Attribute::Rates(rates) => self.rates == Some(rates),
            Attribute::SpoofCheck(on) => self.spoof_check == Some(on),
            Attribute::Trust(on) => self.trust == Some(on),
            Attribute::LinkState(state) => self.link_state == Some(state),
            Attribute::RssQuery(on) => self.rss_query == Some(on),
            Attribute::NodeGuid(guid) => self.node_guid == Some(guid),
            Attribute::PortGuid(guid) => self.port_guid == Some(guid),
        }
    }

    /// What has to be set so that `now` becomes this.
    pub fn missing_in<'a>(&self, now: &'a Self) -> impl Iterator<Item = Attribute> + use<'a> {
        self.each().filter(|attribute| !now.holds(attribute))
    }

    /// The reported value of the attribute that `attribute` is another value of.
    pub fn reported(&self, attribute: &Attribute) -> Option<Attribute> {
        self.each().find(|one| one.key() == attribute.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_set() {
        let wanted = Attributes {
            mac: "52:54:00:00:00:01".parse().ok(),
            trust: Some(true),
            ..Attributes::default()
        };
        let mut now = Attributes::SCRUBBED;
        now.spoof_check = Some(true);
        let missing: Vec<_> = wanted.missing_in(&now).map(|one| one.to_string()).collect();
        assert_eq!(missing, ["mac 52:54:00:00:00:01", "trust on"]);
        for attribute in wanted.each() {
            now.set(attribute);
        }
        assert_eq!(wanted.missing_in(&now).count(), 0);
        assert_eq!(now.spoof_check, Some(true));
    }

    #[test]
    fn what_is_left_open_comes_from_the_rest() {
        let own = Attributes {
            trust: Some(true),
            ..Attributes::default()
        };
        let both = own.or(&Attributes::SCRUBBED);
        assert_eq!(both.trust, Some(true));
        assert_eq!(both.mac, Some(Mac::ZERO));
    }
}
