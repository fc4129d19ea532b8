//! The client subcommands: ask the daemon, print its answer for a person or as JSON.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use towpath_common::attach::{Device, Kind};
use towpath_common::cli::Place;
use towpath_common::config::Name;
use towpath_common::control::compare::{CompareError, compare};
use towpath_common::control::print::print;
use towpath_common::control::{Answer, Client};
use vswitch::config::{
    Change, Config, Diff, FdbKey, Mirror, PORT, PortEdit, Sources, StaticEntry, UPLINK,
};
use vswitch::control::{FdbTable, Order, Reload, Stats};
use vswitch::serve::count_ports;
use vswitch::service::{Attachment, FdbFilter, PortStatus, VlanStatus};

use crate::cli::{FdbCommand, MirrorCommand, PortCommand, Target, UplinkCommand, VlanCommand};
use crate::report;

/// How often `stats --watch` prints.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// `vswitch port …`.
pub(crate) fn port(command: PortCommand, out: &mut impl Write) -> Result<()> {
    match command {
        PortCommand::Show { name, target } => port_show(&target, name.as_ref(), out),
        PortCommand::Release { name, target } => {
            post::<()>(&target, &format!("/v1/ports/{name}/release"), &(), out)
        }
        PortCommand::Add {
            port,
            persist,
            target,
        } => {
            let table = PORT
                .table(&port)
                .map_err(|rule| wrong("port", &port, rule))?;
            change(&target, Change::PortAdd(table), persist, out)
        }
        PortCommand::Set {
            port,
            persist,
            target,
        } => {
            let edit = PortEdit::parse(&port).map_err(|rule| wrong("port", &port, rule))?;
            change(&target, Change::PortSet(edit), persist, out)
        }
        PortCommand::Remove {
            name,
            persist,
            target,
        } => change(&target, Change::PortRemove(name), persist, out),
    }
}

/// `vswitch attach NAME`.
pub(crate) fn attach(
    target: &Target,
    name: &Name,
    place: &Place,
    (queues, bus): (u16, Option<&str>),
    out: &mut impl Write,
) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let answer: Answer<PortStatus> = client.get(&format!("/v1/ports/{name}"))?;
    let Some(port) = &answer.data else {
        return Ok(print(&answer, target.json, out, report::port)?);
    };
    if !(1..=port.queues).contains(&queues) {
        let most = port.queues;
        let rule = format!("{name} is served with 1 to {most} pairs of queues");
        return Err(wrong("queues", &queues.to_string(), rule));
    }
    let Attachment::VhostUser { socket, mode } = &port.attachment else {
        let rule = "an uplink is no virtual machine's; name a port".to_owned();
        return Err(wrong("port", name.as_str(), rule));
    };
    let device = Device {
        kind: Kind::Interface {
            mac: port.macs.first().map(ToString::to_string),
        },
        name: name.to_string(),
        socket: socket.as_path().into(),
        mode: *mode,
        queues,
    };
    Ok(write!(out, "{}", place.attach(&device, bus)?)?)
}

/// `vswitch uplink …`.
pub(crate) fn uplink(command: UplinkCommand, out: &mut impl Write) -> Result<()> {
    let UplinkCommand::Add {
        uplink,
        persist,
        target,
    } = command;
    let table = UPLINK
        .table(&uplink)
        .map_err(|rule| wrong("uplink", &uplink, rule))?;
    change(&target, Change::UplinkAdd(table), persist, out)
}

/// `vswitch fdb …`.
pub(crate) fn fdb(command: FdbCommand, out: &mut impl Write) -> Result<()> {
    match command {
        FdbCommand::Show { filter, target } => {
            let query = query(&filter.into());
            get(
                &target,
                &format!("/v1/fdb{query}"),
                out,
                |table: &FdbTable| report::fdb(table),
            )
        }
        FdbCommand::Add {
            mac,
            port,
            vlan,
            persist,
            target,
        } => {
            let entry = StaticEntry { mac, vlan, port };
            change(&target, Change::FdbAdd(entry), persist, out)
        }
        FdbCommand::Del {
            mac,
            vlan,
            persist,
            target,
        } => {
            let key = FdbKey { mac, vlan };
            change(&target, Change::FdbDel(key), persist, out)
        }
        FdbCommand::Flush { filter, target } => {
            post::<u64>(&target, "/v1/fdb/flush", &FdbFilter::from(filter), out)
        }
    }
}

/// `vswitch vlan …`.
pub(crate) fn vlan(command: VlanCommand, out: &mut impl Write) -> Result<()> {
    let VlanCommand::Show { target } = command;
    get(&target, "/v1/vlans", out, |vlans: &Vec<VlanStatus>| {
        report::vlans(vlans)
    })
}

/// `vswitch mirror …`.
pub(crate) fn mirror(command: MirrorCommand, out: &mut impl Write) -> Result<()> {
    match command {
        MirrorCommand::Show { target } => {
            get(&target, "/v1/mirrors", out, |mirrors: &Vec<Mirror>| {
                report::mirrors(mirrors)
            })
        }
        MirrorCommand::Add {
            name,
            from,
            vlans,
            to,
            direction,
            member,
            persist,
            target,
        } => {
            let mirror = Mirror {
                name,
                from,
                vlans,
                to,
                direction,
                member,
            };
            change(&target, Change::MirrorAdd(mirror), persist, out)
        }
        MirrorCommand::Del {
            name,
            persist,
            target,
        } => change(&target, Change::MirrorDel(name), persist, out),
    }
}

/// `vswitch stats`.
pub(crate) fn stats(target: &Target, watch: bool, out: &mut impl Write) -> Result<()> {
    let client = Client::new(target.control.as_path());
    let mut before: Answer<Stats> = client.get("/v1/stats")?;
    if !watch {
        return Ok(print(&before, target.json, out, report::stats)?);
    }
    loop {
        sleep(WATCH_PERIOD);
        let now: Answer<Stats> = client.get("/v1/stats")?;
        print(&now, target.json, out, |stats| match &before.data {
            Some(before) => report::rates(before, stats, WATCH_PERIOD),
            None => String::new(),
        })?;
        before = now;
    }
}

/// `vswitch reload`.
pub(crate) fn reload(target: &Target, dry_run: bool, out: &mut impl Write) -> Result<()> {
    post::<Diff>(target, "/v1/reload", &Reload { dry_run }, out)
}

/// `vswitch config diff`; whether there is a difference.
pub(crate) fn config_diff(target: &Target, out: &mut impl Write) -> Result<bool, CompareError> {
    compare::<Diff>(target.control.as_path(), target.json, out)
}

/// `vswitch check`.
pub(crate) fn check(sources: &Sources, json: bool, out: &mut impl Write) -> Result<()> {
    let config = Config::load(sources)?;
    let ports = config.ports.len() + config.uplinks.len();
    let description = format!("valid: {}", count_ports(ports));
    let answer = Answer::success(description.clone(), config);
    Ok(print(&answer, json, out, |config| {
        format!("{description}\n{}", report::config(config))
    })?)
}

/// `vswitch port show [NAME]`.
fn port_show(target: &Target, name: Option<&Name>, out: &mut impl Write) -> Result<()> {
    match name {
        None => get(target, "/v1/ports", out, |ports: &Vec<PortStatus>| {
            report::port_list(ports)
        }),
        Some(name) => get(target, &format!("/v1/ports/{name}"), out, report::port),
    }
}

fn get<T: Serialize + serde::de::DeserializeOwned>(
    target: &Target,
    path: &str,
    out: &mut impl Write,
    text: impl Fn(&T) -> String,
) -> Result<()> {
    let answer: Answer<T> = Client::new(target.control.as_path()).get(path)?;
    Ok(print(&answer, target.json, out, text)?)
}

/// Sends an order and prints the sentence that comes back.
fn post<T: Serialize + serde::de::DeserializeOwned>(
    target: &Target,
    path: &str,
    body: &impl Serialize,
    out: &mut impl Write,
) -> Result<()> {
    let answer: Answer<T> = Client::new(target.control.as_path()).post(path, body)?;
    let description = &answer.description;
    Ok(print(&answer, target.json, out, |_| {
        format!("{description}\n")
    })?)
}

fn change(target: &Target, change: Change, persist: bool, out: &mut impl Write) -> Result<()> {
    post::<Diff>(target, "/v1/change", &Order { change, persist }, out)
}

/// The filter as the query of a path; nothing in it needs escaping but `:`, which may stand there.
fn query(filter: &FdbFilter) -> String {
    let vlan = filter.vlan.map(|vlan| format!("vlan={vlan}"));
    let port = filter.port.as_ref().map(|port| format!("port={port}"));
    let mac = filter.mac.map(|mac| format!("mac={mac}"));
    let parts: Vec<String> = [vlan, port, mac].into_iter().flatten().collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("?{}", parts.join("&"))
}

/// A wrong argument, which ends with exit code 2.
fn wrong(what: &'static str, argument: &str, message: String) -> anyhow::Error {
    Wrong {
        what,
        argument: argument.to_owned(),
        message,
    }
    .into()
}

/// A port or an uplink on the command line that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{what} {argument:?}: {message}")]
pub(crate) struct Wrong {
    what: &'static str,
    argument: String,
    message: String,
}

#[cfg(test)]
mod tests;
