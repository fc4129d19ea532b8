//! An interface and its VFs, between netlink's types and ours.

use netlink_packet_route::link as route;
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkMessage, LinkVfInfo, VfInfo, VfInfoGuid, VfInfoLinkState,
    VfInfoMac, VfInfoRate, VfInfoRssQueryEn, VfInfoSpoofCheck, VfInfoTrust, VfLinkState, VfStats,
    VfVlan, VfVlanInfo,
};

use crate::attribute::{Attribute, Rates, Tag};
use crate::kernel::{Link, VfCounters, VfReport};
use crate::values::{Guid, LinkState, Mac, Qos, Rate, VfIndex, Vlan, VlanProtocol};

/// What the kernel says of an interface.
pub(super) fn read(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent = mac(bytes),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.lower = Some(*index).filter(|lower| *lower != 0),
            LinkAttribute::VfInfoList(list) => link.vfs = list.iter().filter_map(vf).collect(),
            _ => {}
        }
    }
    link
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}

/// What the kernel says of a VF. Its number is in each attribute; the address is always there.
fn vf(list: &LinkVfInfo) -> Option<VfReport> {
    let mut report = VfReport::default();
    let mut known = false;
    for info in &list.0 {
        let attribute = match info {
            VfInfo::Mac(value) => {
                report.index = u16::try_from(value.vf_id).ok()?;
                known = true;
                mac(&value.mac[..6]).map(Attribute::Mac)
            }
            VfInfo::VlanList(list) => list.iter().find_map(|one| match one {
                VfVlan::Info(value) => tag(value.vlan_id, value.qos, value.protocol),
                _ => None,
            }),
            VfInfo::Rate(value) => rates(value.min_tx_rate, value.max_tx_rate),
            VfInfo::SpoofCheck(value) => Some(Attribute::SpoofCheck(value.enabled)),
            VfInfo::Trust(value) => Some(Attribute::Trust(value.enabled)),
            VfInfo::RssQueryEn(value) => Some(Attribute::RssQuery(value.enabled)),
            VfInfo::LinkState(value) => state(value.state).map(Attribute::LinkState),
            VfInfo::IbNodeGuid(value) => Some(Attribute::NodeGuid(Guid::new(value.guid))),
            VfInfo::IbPortGuid(value) => Some(Attribute::PortGuid(Guid::new(value.guid))),
            VfInfo::Stats(stats) => {
                report.counters = Some(counters(stats));
                None
            }
            _ => None,
        };
        if let Some(attribute) = attribute {
            report.attributes.set(attribute);
        }
    }
    known.then_some(report)
}

fn tag(vlan: u32, qos: u32, protocol: route::VlanProtocol) -> Option<Attribute> {
    let protocol = match protocol {
        route::VlanProtocol::Ieee8021Ad => VlanProtocol::Service,
        _ => VlanProtocol::Customer,
    };
    Some(Attribute::Tag(Tag {
        vlan: Vlan::try_from(i64::from(vlan)).ok()?,
        qos: Qos::try_from(i64::from(qos)).ok()?,
        protocol,
    }))
}

fn rates(min: u32, max: u32) -> Option<Attribute> {
    let rate = |value: u32| Rate::try_from(i64::from(value)).ok();
    let (min, max) = (rate(min)?, rate(max)?);
    Some(Attribute::Rates(Rates { min, max }))
}

fn state(state: VfLinkState) -> Option<LinkState> {
    match state {
        VfLinkState::Auto => Some(LinkState::Auto),
        VfLinkState::Enable => Some(LinkState::Up),
        VfLinkState::Disable => Some(LinkState::Down),
        _ => None,
    }
}

fn counters(stats: &[VfStats]) -> VfCounters {
    let mut counters = VfCounters::default();
    for stat in stats {
        match stat {
            VfStats::RxPackets(value) => counters.rx_packets = *value,
            VfStats::TxPackets(value) => counters.tx_packets = *value,
            VfStats::RxBytes(value) => counters.rx_bytes = *value,
            VfStats::TxBytes(value) => counters.tx_bytes = *value,
            VfStats::RxDropped(value) => counters.rx_dropped = *value,
            VfStats::TxDropped(value) => counters.tx_dropped = *value,
            _ => {}
        }
    }
    counters
}

/// The attribute that tells the kernel.
pub(super) fn write(vf: VfIndex, attribute: &Attribute) -> VfInfo {
    let vf = u32::from(vf.get());
    match *attribute {
        Attribute::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac.0)),
        Attribute::Tag(tag) => {
            let protocol = match tag.protocol {
                VlanProtocol::Customer => route::VlanProtocol::Ieee8021Q,
                VlanProtocol::Service => route::VlanProtocol::Ieee8021Ad,
            };
            let (vlan, qos) = (u32::from(tag.vlan.get()), u32::from(tag.qos.get()));
            VfInfo::VlanList(vec![VfVlan::Info(VfVlanInfo::new(vf, vlan, qos, protocol))])
        }
        Attribute::Rates(rates) => {
            VfInfo::Rate(VfInfoRate::new(vf, rates.min.get(), rates.max.get()))
        }
        Attribute::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on)),
        Attribute::Trust(on) => VfInfo::Trust(VfInfoTrust::new(vf, on)),
        Attribute::RssQuery(on) => VfInfo::RssQueryEn(VfInfoRssQueryEn::new(vf, on)),
        Attribute::LinkState(state) => {
            let state = match state {
                LinkState::Auto => VfLinkState::Auto,
                LinkState::Up => VfLinkState::Enable,
                LinkState::Down => VfLinkState::Disable,
            };
            VfInfo::LinkState(VfInfoLinkState::new(vf, state))
        }
        Attribute::NodeGuid(guid) => VfInfo::IbNodeGuid(VfInfoGuid::new(vf, guid.get())),
        Attribute::PortGuid(guid) => VfInfo::IbPortGuid(VfInfoGuid::new(vf, guid.get())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Attributes;

    /// What is told is what is reported: each attribute there and back.
    #[test]
    fn attributes_survive_the_way_there_and_back() {
        let rate = |n: i64| Rate::try_from(n).unwrap();
        let wanted = Attributes {
            mac: "52:54:00:00:00:07".parse().ok(),
            tag: Some(Tag {
                vlan: Vlan::try_from(100).unwrap(),
                qos: Qos::try_from(3).unwrap(),
                protocol: VlanProtocol::Service,
            }),
            rates: Some(Rates {
                min: rate(10),
                max: rate(200),
            }),
            spoof_check: Some(true),
            trust: Some(false),
            link_state: Some(LinkState::Up),
            rss_query: Some(true),
            node_guid: Some(Guid::new(1)),
            port_guid: Some(Guid::new(2)),
        };
        let vf_index = VfIndex::try_from(7).unwrap();
        let told = wanted.each().map(|attribute| write(vf_index, &attribute));
        let report = vf(&LinkVfInfo(told.collect())).unwrap();
        assert_eq!((report.index, report.attributes), (7, wanted));
    }
}
