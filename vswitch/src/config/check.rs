//! Rules that tie configured things together. Each refusal names the place, and the other place
//! when two things contend.

use std::collections::HashMap;
use std::hash::Hash;

use towpath_common::config::{ConfigError, Daemon, Name, Place};

use super::{MAX_PORTS, MAX_SOURCES, Mirror, StaticEntry, Written};
use crate::mac::Mac;
use crate::mirror::MIRRORS;
use crate::vlan::Vid;
use crate::vlan::{Mode, VlanSet};

/// Refuses what contradicts itself, something else, or the daemon.
pub(super) fn check(daemon: &Daemon, written: &Written) -> Result<(), ConfigError> {
    let Written { ports, uplinks, .. } = written;
    if let Some((place, _)) = ports.get(MAX_PORTS.saturating_sub(uplinks.len())) {
        let message = format!("more than {MAX_PORTS} ports and uplinks; leave some out");
        return Err(invalid(place, message));
    }
    let mut names = Unique::new("name", "give each port and uplink its own name");
    let mut sockets = Unique::new("socket", "give each port its own socket");
    let mut macs = Unique::new("mac", "give each port its own addresses");
    for (place, port) in ports {
        vlans(place, port.access, port.trunk.as_ref(), port.native)?;
        names.claim(place, port.name.as_str())?;
        if port.socket == daemon.control {
            let message = format!("socket \"{}\" is the daemon's control socket", port.socket);
            return Err(invalid(place, message));
        }
        sockets.claim(place, port.socket.as_path())?;
        if port.addresses().count() > MAX_SOURCES {
            let message = format!("more than {MAX_SOURCES} addresses; leave some out, or all");
            return Err(invalid(place, message));
        }
        for mac in port.addresses() {
            station(place, mac)?;
            macs.claim(place, mac.to_string())?;
        }
    }
    let mut taps = Unique::new("tap", "give each uplink its own interface");
    for (place, uplink) in uplinks {
        vlans(place, uplink.access, uplink.trunk.as_ref(), uplink.native)?;
        names.claim(place, uplink.name.as_str())?;
        taps.claim(place, uplink.tap.as_str())?;
    }
    let members = Members::of(written);
    let mut entries = Unique::new("entry", "name each address once in a VLAN");
    for (place, entry) in &written.fdb {
        entries.claim(place, format!("{} vlan {}", entry.mac, entry.vlan))?;
        static_entry(place, entry, &members)?;
    }
    if let Some((place, _)) = written.mirrors.get(MIRRORS) {
        let message = format!("more than {MIRRORS} mirrors; leave some out");
        return Err(invalid(place, message));
    }
    let mut mirrors = Unique::new("name", "give each mirror its own name");
    for (place, one) in &written.mirrors {
        mirrors.claim(place, one.name.as_str())?;
        mirror(place, one, &members)?;
    }
    Ok(())
}

/// Values that only one thing may have.
struct Unique<K> {
    what: &'static str,
    fix: &'static str,
    seen: HashMap<K, Place>,
}

impl<K: Hash + Eq + std::fmt::Debug> Unique<K> {
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

/// The VLANs of every port and uplink.
struct Members<'a>(Vec<(&'a Name, Mode)>);

impl<'a> Members<'a> {
    fn of(written: &'a Written) -> Self {
        let ports = written
            .ports
            .iter()
            .map(|(_, port)| (&port.name, port.vlans()));
        let uplinks = written.uplinks.iter().map(|(_, up)| (&up.name, up.vlans()));
        Self(ports.chain(uplinks).collect())
    }

    /// The VLANs of the port `name`, or a sentence that says which ports there are.
    fn find(&self, place: &Place, name: &Name) -> Result<&Mode, ConfigError> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| mode).ok_or_else(|| {
            let known = self.0.iter().map(|(name, _)| name.as_str());
            let known = known.collect::<Vec<_>>().join(", ");
            invalid(
                place,
                format!("there is no port \"{name}\"; ports: {known}"),
            )
        })
    }
}

/// One of access and trunk, and a native VLAN only with the latter.
fn vlans(
    place: &Place,
    access: Option<Vid>,
    trunk: Option<&VlanSet>,
    native: Option<Vid>,
) -> Result<(), ConfigError> {
    match (access, trunk, native) {
        (Some(vid), Some(_), _) => {
            let message = format!("access {vid} and trunk exclude each other; leave one out");
            Err(invalid(place, message))
        }
        (_, None, Some(vid)) => {
            let message = format!("native {vid} is for trunks; add trunk, or write access {vid}");
            Err(invalid(place, message))
        }
        _ => Ok(()),
    }
}

/// The address of one station.
fn station(place: &Place, mac: Mac) -> Result<(), ConfigError> {
    if mac.is_multicast() || mac.is_zero() {
        let message = format!(
            "mac {mac} is not the address of one station; the first byte must be even, and not \
             all may be zero"
        );
        return Err(invalid(place, message));
    }
    Ok(())
}

fn static_entry(
    place: &Place,
    entry: &StaticEntry,
    members: &Members<'_>,
) -> Result<(), ConfigError> {
    station(place, entry.mac)?;
    if members
        .find(place, &entry.port)?
        .egress(entry.vlan)
        .is_none()
    {
        let message = format!(
            "port \"{}\" does not carry VLAN {}; add it to the port, or name another VLAN",
            entry.port, entry.vlan
        );
        return Err(invalid(place, message));
    }
    Ok(())
}

fn mirror(place: &Place, mirror: &Mirror, members: &Members<'_>) -> Result<(), ConfigError> {
    if mirror.from.is_empty() && mirror.vlans.is_none() {
        let message = format!(
            "mirror \"{}\" copies nothing; name from or vlans",
            mirror.name
        );
        return Err(invalid(place, message));
    }
    for port in mirror.from.iter().chain([&mirror.to]) {
        members.find(place, port)?;
    }
    if mirror.from.contains(&mirror.to) {
        let message = format!(
            "mirror \"{}\" copies port \"{}\" to itself; choose another port for to",
            mirror.name, mirror.to
        );
        return Err(invalid(place, message));
    }
    Ok(())
}

fn invalid(place: &Place, message: String) -> ConfigError {
    ConfigError::Invalid {
        place: place.clone(),
        message,
    }
}
