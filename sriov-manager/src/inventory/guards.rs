//! What must not be disturbed: the default route, the system's disks, and PFs whose VFs somebody
//! else manages.
//!
//! The route is followed down from its interface: through VLANs to what they stand on, through
//! bonds and bridges to their members. What is mounted is known to [`Disks`]. Other managers are
//! found in their files: one that sets the number of VFs at an activation takes them away from
//! running machines at the next.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::address::PciAddr;
use crate::inventory::Guard;
use crate::inventory::disks::Disks;
use crate::kernel::{Kernel, Link, Machine, text};

const NETWORK_MANAGER: [&str; 3] = [
    "/etc/NetworkManager/system-connections",
    "/run/NetworkManager/system-connections",
    "/usr/lib/NetworkManager/system-connections",
];
const SYSTEMD: [&str; 3] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/lib/systemd/network",
];

/// Everything that guards something.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// By interface: the interface that has the route.
    routes: BTreeMap<u32, String>,
    /// Files that set a number of VFs.
    managers: Vec<Manager>,
}

impl Guards {
    pub(super) fn read(machine: Machine<'_>, links: &[Link]) -> io::Result<Self> {
        let kernel = machine.kernel;
        Ok(Self {
            routes: routes(&machine.network.default_routes()?, links),
            managers: managers(kernel),
        })
    }

    /// What guards the PF at `address`.
    pub(super) fn of(
        &self,
        kernel: &dyn Kernel,
        address: PciAddr,
        link: Option<&Link>,
        disks: &Disks,
    ) -> Vec<Guard> {
        let route = link.and_then(|link| self.routes.get(&link.index));
        let route = route.map(|interface| Guard::DefaultRoute {
            interface: interface.clone(),
        });
        let disk = disks
            .system(address)
            .map(|mount| Guard::SystemDisk { mount });
        let driver = crate::kernel::link_name(kernel, &address.file("driver"));
        let matching = self.managers.iter().filter(|manager| {
            link.is_some_and(|link| manager.matches(address, link, driver.as_deref()))
        });
        let managers = matching.map(|manager| manager.guard.clone());
        route.into_iter().chain(disk).chain(managers).collect()
    }
}

/// All interfaces that a default route depends on.
fn routes(outputs: &[u32], links: &[Link]) -> BTreeMap<u32, String> {
    let mut carriers = BTreeMap::new();
    let name = |index: u32| links.iter().find(|link| link.index == index);
    let mut open: Vec<(u32, String)> = outputs
        .iter()
        .filter_map(|index| Some((*index, name(*index)?.name.clone())))
        .collect();
    while let Some((index, route)) = open.pop() {
        if carriers.insert(index, route.clone()).is_some() {
            continue;
        }
        let below = links.iter().filter(|link| link.master == Some(index));
        let below = below
            .map(|link| link.index)
            .chain(name(index).and_then(|link| link.lower));
        open.extend(below.map(|index| (index, route.clone())));
    }
    carriers
}

/// A file that sets a number of VFs, and for which interfaces.
#[derive(Debug)]
struct Manager {
    guard: Guard,
    /// Keys and patterns; all of them must match. Those of other keys are taken to match.
    conditions: Vec<(Condition, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Name,
    Mac,
    Path,
    Driver,
}

impl Manager {
    fn matches(&self, address: PciAddr, link: &Link, driver: Option<&str>) -> bool {
        self.conditions.iter().all(|(condition, patterns)| {
            let is = |text: &str| any(patterns, text);
            let mac = |mac: Option<crate::values::Mac>| mac.is_some_and(|mac| is(&mac.to_string()));
            match condition {
                Condition::Name => is(&link.name),
                Condition::Mac => mac(link.mac) || mac(link.permanent),
                Condition::Path => is(&format!("pci-{address}")),
                Condition::Driver => driver.is_some_and(is),
            }
        })
    }
}

fn managers(kernel: &dyn Kernel) -> Vec<Manager> {
    let mut managers = Vec::new();
    for (path, text) in files(kernel, &NETWORK_MANAGER) {
        let ini = ini(&text);
        let sets = |(section, key, value): &(String, String, String)| {
            section == "sriov" && key == "total-vfs" && value != "0"
        };
        if ini.iter().any(sets) {
            let file = path.display().to_string();
            managers.push(Manager {
                guard: Guard::NetworkManager { file },
                conditions: conditions(
                    &ini,
                    &[
                        ("connection", "interface-name", Condition::Name),
                        ("ethernet", "mac-address", Condition::Mac),
                        ("match", "interface-name", Condition::Name),
                        ("match", "path", Condition::Path),
                        ("match", "driver", Condition::Driver),
                    ],
                ),
            });
        }
    }
    for (path, text) in files(kernel, &SYSTEMD) {
        let ini = ini(&text);
        let sets = |(section, key, _): &(String, String, String)| {
            section == "SR-IOV" || key == "SR-IOVVirtualFunctions"
        };
        if ini.iter().any(sets) {
            let file = path.display().to_string();
            managers.push(Manager {
                guard: Guard::Networkd { file },
                conditions: conditions(
                    &ini,
                    &[
                        ("Match", "Name", Condition::Name),
                        ("Match", "OriginalName", Condition::Name),
                        ("Match", "MACAddress", Condition::Mac),
                        ("Match", "PermanentMACAddress", Condition::Mac),
                        ("Match", "Path", Condition::Path),
                        ("Match", "Driver", Condition::Driver),
                    ],
                ),
            });
        }
    }
    managers
}

fn files(kernel: &dyn Kernel, dirs: &[&str]) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for dir in dirs.iter().map(Path::new) {
        for name in kernel.list(dir).unwrap_or_default() {
            let path = dir.join(name);
            files.extend(text(kernel, &path).map(|text| (path, text)));
        }
    }
    files
}

/// Section, key and value of each line.
fn ini(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut entries = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            name.clone_into(&mut section);
            // A section may say it all by being there.
            entries.push((section.clone(), String::new(), String::new()));
        } else if let Some((key, value)) = line.split_once('=') {
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            entries.push((section.clone(), key, value));
        }
    }
    entries
}

fn conditions(
    ini: &[(String, String, String)],
    known: &[(&str, &str, Condition)],
) -> Vec<(Condition, String)> {
    let mut conditions = Vec::new();
    for (section, key, value) in ini {
        let condition = known.iter().find(|(s, k, _)| s == section && k == key);
        if let Some((.., condition)) = condition.filter(|_| !value.is_empty()) {
            conditions.push((*condition, value.to_lowercase()));
        }
    }
    conditions
}

/// Whether one of `patterns` (blanks or `;` between them) is `text`; with `!` in front: none.
fn any(patterns: &str, text: &str) -> bool {
    let (inverted, patterns) = match patterns.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, patterns),
    };
    let text = text.to_lowercase();
    let mut patterns = patterns
        .split([' ', ';', ','])
        .filter(|pattern| !pattern.is_empty());
    patterns.any(|pattern| glob(pattern.as_bytes(), text.as_bytes())) != inverted
}

pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|from| glob(rest, &text[from..])),
        (Some((b'?', rest)), Some((_, text))) => glob(rest, text),
        (Some((a, rest)), Some((b, text))) => a == b && glob(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            ..Link::default()
        }
    }

    #[test]
    fn a_route_is_followed_down_to_the_cards() {
        let vlan = Link {
            lower: Some(3),
            ..link(4, "bond0.7")
        };
        let member = |index, name| Link {
            master: Some(3),
            ..link(index, name)
        };
        let links = [
            member(1, "eth0"),
            member(2, "eth1"),
            link(3, "bond0"),
            vlan,
            link(5, "eth2"),
        ];
        let guarded: Vec<u32> = routes(&[4], &links).into_keys().collect();
        assert_eq!(guarded, [1, 2, 3, 4]);
        assert_eq!(routes(&[4], &links)[&1], "bond0.7");
    }

    #[test]
    fn a_loop_of_interfaces_ends() {
        let a = Link {
            lower: Some(2),
            ..link(1, "a")
        };
        let b = Link {
            lower: Some(1),
            ..link(2, "b")
        };
        assert_eq!(routes(&[1], &[a, b]).len(), 2);
    }

    #[test]
    fn patterns_are_those_of_shells() {
        assert!(any("enp* eth0", "enp1s0"));
        assert!(any("eth?", "eth7"));
        assert!(!any("!eth* ens*", "eth7"));
        assert!(!any("eth0", "eth01"));
        assert!(any("52:54:00:*", "52:54:00:AA:00:01"));
    }

    #[test]
    fn sections_keys_and_values_are_read() {
        let ini = ini("# x\n[Match]\nName = eth0\n\n[SR-IOV]\nVirtualFunction=0\n");
        let sections: Vec<_> = ini.iter().map(|(section, ..)| section.as_str()).collect();
        assert_eq!(sections, ["Match", "Match", "SR-IOV", "SR-IOV"]);
        let known = [("Match", "Name", Condition::Name)];
        assert_eq!(
            conditions(&ini, &known),
            [(Condition::Name, "eth0".to_owned())]
        );
    }
}
