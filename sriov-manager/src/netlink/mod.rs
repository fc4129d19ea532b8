//! The real kernel's interfaces: rtnetlink for links, routes and attributes of VFs, devlink for
//! embedded switches. Messages are made and parsed by the netlink crates; a question opens a
//! socket, asks, and closes it.

pub mod devlink;
mod link;
mod talk;

use std::collections::HashMap;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use crate::address::PciAddr;
use crate::attribute::Attribute;
use crate::kernel::{Link, Network, WriteError};
use crate::values::{EswitchMode, VfIndex};
use devlink::Device;

use talk::{Purpose, talk};

/// The message about one interface takes 16 bits for its length: with their counters, the VFs of a
/// large card do not fit. Up to so many they do with room to spare (about 450 bytes each).
const COUNTED_VFS: usize = 64;

/// The running kernel, by netlink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Netlink;

impl Network for Netlink {
    fn links(&self, only: Option<&str>) -> io::Result<Vec<Link>> {
        if let Some(name) = only {
            return one(name);
        }
        let skip = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
        let messages = ask(
            RouteNetlinkMessage::GetLink(question(0, skip)),
            Purpose::Dump,
        )?;
        let mut links: Vec<Link> = messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(link::read(&message)),
                _ => None,
            })
            .collect();
        let addressed = addressed()?;
        for link in &mut links {
            link.addressed = addressed.contains_key(&link.index);
            if (1..=COUNTED_VFS).contains(&link.vfs.len()) {
                let counted = vec![LinkExtentMask::Vf];
                let question = RouteNetlinkMessage::GetLink(question(link.index, counted));
                // It may be gone by now; then it is gone from the next scan.
                let answer = ask(question, Purpose::Get).unwrap_or_default();
                if let Some(RouteNetlinkMessage::NewLink(message)) = answer.first() {
                    link.vfs = link::read(message).vfs;
                }
            }
        }
        Ok(links)
    }

    fn default_routes(&self) -> io::Result<Vec<u32>> {
        let question = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        let mut indexes = Vec::new();
        for message in ask(question, Purpose::Dump)? {
            let RouteNetlinkMessage::NewRoute(route) = message else {
                continue;
            };
            let header = &route.header;
            if header.destination_prefix_length == 0 && header.kind == RouteType::Unicast {
                indexes.extend(outputs(&route));
            }
        }
        Ok(indexes)
    }

    fn set_vf(&self, link: u32, vf: VfIndex, attribute: &Attribute) -> Result<(), WriteError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        let info = LinkVfInfo(vec![link::write(vf, attribute)]);
        message.attributes = vec![LinkAttribute::VfInfoList(vec![info])];
        talk(
            NETLINK_ROUTE,
            RouteNetlinkMessage::SetLink(message),
            Purpose::Change,
        )
        .map(drop)
    }

    fn eswitch(&self, pf: PciAddr) -> io::Result<Option<EswitchMode>> {
        devlink::eswitch(&Device::pci(pf))
    }

    fn set_eswitch(&self, pf: PciAddr, mode: EswitchMode) -> Result<(), WriteError> {
        devlink::set_eswitch(&Device::pci(pf), mode)
    }
}

/// The interface called `name`, if there is one: one question, whatever else this host has.
fn one(name: &str) -> io::Result<Vec<Link>> {
    let skip = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
    let mut question = question(0, skip);
    let name = LinkAttribute::IfName(name.to_owned());
    question.attributes.push(name);
    match talk(
        NETLINK_ROUTE,
        RouteNetlinkMessage::GetLink(question),
        Purpose::Get,
    ) {
        Ok(answers) => Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(link::read(message)),
                _ => None,
            })
            .collect()),
        Err(WriteError::Refused { errno, .. }) if errno == Errno::NODEV.raw_os_error() => {
            Ok(Vec::new())
        }
        Err(error) => Err(plain(error)),
    }
}

fn ask(question: RouteNetlinkMessage, purpose: Purpose) -> io::Result<Vec<RouteNetlinkMessage>> {
    talk(NETLINK_ROUTE, question, purpose).map_err(plain)
}

/// A refusal of a question, as an error of the system.
fn plain(error: WriteError) -> io::Error {
    match error {
        WriteError::Refused { errno, .. } => io::Error::from_raw_os_error(errno),
        WriteError::Wedged { .. } => Errno::TIMEDOUT.into(),
    }
}

fn question(index: u32, mask: Vec<LinkExtentMask>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::ExtMask(mask)];
    message
}

/// Interfaces with an address that reaches further than the link.
fn addressed() -> io::Result<HashMap<u32, ()>> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let far = |message: &AddressMessage| {
        matches!(
            message.header.scope,
            AddressScope::Universe | AddressScope::Site
        )
    };
    let messages = ask(question, Purpose::Dump)?.into_iter();
    Ok(messages
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) if far(&address) => {
                Some((address.header.index, ()))
            }
            _ => None,
        })
        .collect())
}

/// The interfaces a route leaves by.
fn outputs(route: &RouteMessage) -> Vec<u32> {
    let mut indexes = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => indexes.push(*index),
            RouteAttribute::MultiPath(hops) => {
                indexes.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every Linux machine has this interface, and nobody needs a privilege to see it.
    #[test]
    fn the_running_kernel_answers() {
        let links = Netlink.links(None).unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.master, lo.vfs.len()), (1, None, 0));
        let only = Netlink.links(Some("lo")).unwrap();
        assert_eq!((only.len(), only[0].index), (1, 1));
        assert_eq!(Netlink.links(Some("nowhere0")).unwrap(), []);
        Netlink.default_routes().unwrap();
    }

    #[test]
    fn a_refusal_carries_the_number() {
        let trust = Attribute::Trust(true);
        let error = Netlink
            .set_vf(u32::MAX >> 1, VfIndex::MIN, &trust)
            .unwrap_err();
        assert!(matches!(error, WriteError::Refused { .. }), "{error}");
    }

    #[test]
    fn a_pf_without_devlink_has_no_eswitch() {
        let nowhere = PciAddr::new(0xffff, 0xff, 31, 7);
        assert_eq!(Netlink.eswitch(nowhere).unwrap(), None);
        assert!(Netlink.set_eswitch(nowhere, EswitchMode::Legacy).is_err());
    }
}
