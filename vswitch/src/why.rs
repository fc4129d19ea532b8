//! What the switch would do with a frame, step by step: a pure function of what it knows.
//!
//! ```text
//! port ─▶ vlan ─▶ source ─▶ guards ─▶ learn ─▶ lookup ─▶ egress ─▶ verdict
//! ```
//!
//! The steps and their order are the switch's; VLAN rules are its own functions
//! ([`Mode::classify`], [`Mode::egress`]), so that the answer cannot differ from what happens to
//! frames. What depends on time (rates, storms) is said as a condition, not decided.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::discard::Discard;
use crate::guard::BRIDGE_GROUPS;
use crate::mac::Mac;
use crate::table::PortNo;
use crate::vlan::{Class, Egress, Mode, TPID, Tag, Vid};

pub mod api;
pub mod ask;
pub mod text;

/// EtherType of the frame in question: IPv4, one that is nothing special.
const ETHERTYPE: u16 = 0x0800;

/// What the switch knows, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every port and uplink.
    pub ports: Vec<PortView>,
    /// Where the addresses in question are known to be, in all VLANs.
    pub known: Vec<Known>,
}

/// A port, as far as it matters here.
#[derive(Clone, Debug)]
pub struct PortView {
    /// Its number.
    pub number: PortNo,
    /// What it is called.
    pub name: String,
    /// Its VLANs.
    pub mode: Mode,
    /// Whether frames can pass: the link, as the API shows it.
    pub link: bool,
    /// Whether it leads out of the host: isolated ports reach it.
    pub uplink: bool,
    /// Whether it reaches uplinks only.
    pub isolated: bool,
    /// Whether it only gets copies of other ports' traffic.
    pub mirror: bool,
    /// The addresses it may send from; empty: any.
    pub macs: Vec<Mac>,
    /// Whether that is enforced.
    pub source_guard: bool,
    /// Whether frames of bridge protocols from it are dropped as such.
    pub bpdu_guard: bool,
    /// Most addresses learned from it.
    pub mac_limit: u64,
    /// Addresses learned from it.
    pub learned: u64,
}

/// A known address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its VLAN.
    pub vid: Vid,
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub port: PortNo,
    /// Whether it was configured.
    pub is_static: bool,
    /// Seconds since it last sent.
    pub age_seconds: u32,
    /// Whether it is held where it is, because it moved too often.
    pub is_held: bool,
}

impl Snapshot {
    fn port(&self, number: PortNo) -> Option<&PortView> {
        self.ports.iter().find(|port| port.number == number)
    }

    fn lookup(&self, vid: Vid, mac: Mac) -> Option<&Known> {
        self.known.iter().find(|k| k.vid == vid && k.mac == mac)
    }
}

/// The frame in question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Where it comes from; without, it is in `vlan` already.
    pub ingress: Option<PortNo>,
    /// The VLAN it is meant for; without, it has no tag.
    pub vlan: Option<Vid>,
    /// Its source, if that matters.
    pub source: Option<Mac>,
    /// Its destination, if that matters: without, the answer ends where it would be looked up.
    pub destination: Option<Mac>,
}

/// What is decided, and on what grounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// What is looked at: `port`, `vlan`, `source`, `guards`, `learn`, `lookup` or `egress`.
    pub stage: String,
    /// What follows from it.
    pub finding: String,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes to this port.
    Delivered(String),
    /// It goes to all of these ports.
    Flooded(Vec<String>),
    /// It is taken from the port, into this VLAN.
    Accepted(Vid),
    /// It is dropped, for this reason.
    Dropped(String),
}

/// The way of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The frame.
    pub question: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The end.
    pub verdict: Verdict,
}

/// What the switch would do.
#[must_use]
pub fn explain(snapshot: &Snapshot, question: &Question) -> Explanation {
    let mut trace = Trace {
        snapshot,
        steps: Vec::new(),
    };
    let verdict = trace.follow(question);
    Explanation {
        question: describe(snapshot, question),
        steps: trace.steps,
        verdict: verdict.unwrap_or_else(|reason| Verdict::Dropped(reason.name().to_owned())),
    }
}

/// `a frame from A to B, from p0, for vlan 10`.
fn describe(snapshot: &Snapshot, question: &Question) -> String {
    let mut text = "a frame".to_owned();
    if let Some(mac) = question.source {
        text += &format!(" from {mac}");
    }
    if let Some(mac) = question.destination {
        text += &format!(" to {mac}");
    }
    if let Some(port) = question.ingress.and_then(|port| snapshot.port(port)) {
        text += &format!(", received from port {}", port.name);
    }
    match question.vlan {
        Some(vid) => text + &format!(", for vlan {vid}"),
        None => text + ", without a tag",
    }
}

/// A frame on its way.
struct Trace<'a> {
    snapshot: &'a Snapshot,
    steps: Vec<Step>,
}

impl<'a> Trace<'a> {
    fn say(&mut self, stage: &str, finding: impl Into<String>) {
        self.steps.push(Step {
            stage: stage.to_owned(),
            finding: finding.into(),
        });
    }

    /// Says why the frame is dropped.
    fn drop<T>(
        &mut self,
        stage: &str,
        reason: Discard,
        text: impl Into<String>,
    ) -> Result<T, Discard> {
        self.say(stage, text);
        Err(reason)
    }

    fn follow(&mut self, question: &Question) -> Result<Verdict, Discard> {
        let ingress = question.ingress.and_then(|port| self.snapshot.port(port));
        let class = match ingress {
            Some(port) => self.enter(port, question)?,
            None => {
                question
                    .destination
                    .map_or(Ok(()), |mac| self.link_local(mac))?;
                Class::new(question.vlan.unwrap_or(Vid::DEFAULT), 0, false)
            }
        };
        match question.destination {
            Some(destination) => self.leave(ingress, class, destination),
            None => Ok(Verdict::Accepted(class.vid())),
        }
    }

    /// From the port into a VLAN.
    fn enter(&mut self, port: &'a PortView, question: &Question) -> Result<Class, Discard> {
        let name = &port.name;
        if !port.link {
            let text = format!("{name} is down: nothing is received from it");
            return self.drop("port", Discard::PortDown, text);
        }
        if port.mirror {
            let text = format!("{name} only gets copies: what it sends is dropped");
            return self.drop("port", Discard::NoMember, text);
        }
        self.say("port", format!("{name} is up"));
        let class = self.classify(port, question.vlan)?;
        if let Some(source) = question.source {
            if source.is_multicast() || source.is_zero() {
                let text = format!("{source} is not the address of a station");
                return self.drop("source", Discard::BadSource, text);
            }
            self.guard(port, source)?;
        }
        if let Some(destination) = question.destination {
            if port.bpdu_guard && BRIDGE_GROUPS.contains(&destination) {
                let text = format!("{destination} is a bridge protocol, which it must not speak");
                return self.drop("guards", Discard::BpduGuard, text);
            }
            self.link_local(destination)?;
        }
        if let Some(source) = question.source {
            self.learn(port, class.vid(), source)?;
        }
        Ok(class)
    }

    fn link_local(&mut self, destination: Mac) -> Result<(), Discard> {
        if destination.is_reserved() {
            let text = format!("{destination} is link-local, which no bridge forwards");
            return self.drop("guards", Discard::LinkLocal, text);
        }
        Ok(())
    }

    fn classify(&mut self, port: &PortView, vlan: Option<Vid>) -> Result<Class, Discard> {
        // A machine sends tagged what it gets tagged; and what it must not send, to see it fail.
        let tagged = vlan.filter(|vid| port.mode.egress(*vid) != Some(Egress::Untagged));
        let tag = tagged.map(|vid| Tag {
            tpid: TPID,
            tci: vid.get(),
        });
        let how = match tagged {
            Some(vid) => format!("tagged {vid}"),
            None => "untagged".to_owned(),
        };
        let kind = mode_text(&port.mode);
        match port.mode.classify(tag, ETHERTYPE) {
            Ok(class) => {
                self.say("vlan", format!("{how}, on {kind}: vlan {}", class.vid()));
                Ok(class)
            }
            Err(reason) => self.drop("vlan", reason, format!("{how}, on {kind}: not taken")),
        }
    }

    fn guard(&mut self, port: &PortView, source: Mac) -> Result<(), Discard> {
        let name = &port.name;
        if port.macs.is_empty() || !port.source_guard {
            self.say("guards", format!("{name} may send from any address"));
            return Ok(());
        }
        if port.macs.contains(&source) {
            self.say("guards", format!("{name} may send from {source}"));
            return Ok(());
        }
        let macs: Vec<_> = port.macs.iter().map(Mac::to_string).collect();
        let text = format!("{name} may send only from {}", macs.join(", "));
        self.drop("guards", Discard::SourceGuard, text)
    }

    fn learn(&mut self, port: &PortView, vid: Vid, source: Mac) -> Result<(), Discard> {
        let name = &port.name;
        let known = self.snapshot.lookup(vid, source).copied();
        let elsewhere = known.filter(|known| known.port != port.number);
        let text = match (known, elsewhere) {
            (Some(_), None) => format!("{source} is known here"),
            (_, Some(known)) if known.is_static => {
                let there = self.name(known.port);
                let text = format!("{source} was configured to be at {there}");
                return self.drop("learn", Discard::SourceGuard, text);
            }
            (_, Some(known)) if known.is_held => {
                let there = self.name(known.port);
                format!("{source} is held at {there}: it moved too often")
            }
            _ if port.learned >= port.mac_limit => {
                let limit = port.mac_limit;
                let text = format!("{source} is new, and {name} has its {limit} addresses");
                return self.drop("learn", Discard::MacLimit, text);
            }
            (_, Some(known)) => format!("{source} moves here from {}", self.name(known.port)),
            (None, None) => format!("{source} becomes known at {name}"),
        };
        self.say("learn", text);
        Ok(())
    }

    fn name(&self, port: PortNo) -> String {
        let port = self.snapshot.port(port).map(|port| port.name.clone());
        port.unwrap_or_else(|| "a port that is gone".to_owned())
    }

    /// From the VLAN to ports.
    fn leave(
        &mut self,
        ingress: Option<&PortView>,
        class: Class,
        destination: Mac,
    ) -> Result<Verdict, Discard> {
        let vid = class.vid();
        if destination.is_multicast() {
            self.say(
                "lookup",
                format!("{destination} is a group: all of vlan {vid}"),
            );
            return self.flood(ingress, class);
        }
        let Some(known) = self.snapshot.lookup(vid, destination).copied() else {
            let text = format!("{destination} is not known in vlan {vid}: to all of it");
            self.say("lookup", text);
            return self.flood(ingress, class);
        };
        let Some(port) = self.snapshot.port(known.port) else {
            let text = format!("{destination} was at a port that is gone");
            return self.drop("lookup", Discard::PortDown, text);
        };
        let name = &port.name;
        let how = if known.is_static {
            "configured".to_owned()
        } else {
            format!("heard {} s ago", known.age_seconds)
        };
        self.say(
            "lookup",
            format!("{destination} in vlan {vid} is at {name} ({how})"),
        );
        if ingress.is_some_and(|from| from.number == port.number) {
            let text = format!("{name} is where the frame came from");
            return self.drop("egress", Discard::Hairpin, text);
        }
        match self.way_out(ingress, port, class) {
            Ok(how) => {
                self.say("egress", format!("out of {name}, {how}"));
                Ok(Verdict::Delivered(name.clone()))
            }
            Err((reason, text)) => self.drop("egress", reason, text),
        }
    }

    fn flood(&mut self, ingress: Option<&PortView>, class: Class) -> Result<Verdict, Discard> {
        let mut ports = Vec::new();
        let mut lost = Discard::NoMember;
        for port in &self.snapshot.ports {
            let is_ingress = ingress.is_some_and(|from| from.number == port.number);
            if is_ingress || port.mirror || port.mode.egress(class.vid()).is_none() {
                continue;
            }
            match self.way_out(ingress, port, class) {
                Ok(how) => {
                    self.say("egress", format!("out of {}, {how}", port.name));
                    ports.push(port.name.clone());
                }
                Err((reason, text)) => {
                    self.say("egress", format!("{text} ({})", reason.name()));
                    // From isolated ports a frame is kept away; others lose it.
                    if reason != Discard::Isolated {
                        lost = reason;
                    }
                }
            }
        }
        if ports.is_empty() {
            let text = format!("vlan {} has no other member to send to", class.vid());
            return self.drop("egress", lost, text);
        }
        Ok(Verdict::Flooded(ports))
    }

    /// How the frame leaves by `port`, or why not.
    fn way_out(
        &self,
        ingress: Option<&PortView>,
        port: &PortView,
        class: Class,
    ) -> Result<String, (Discard, String)> {
        let (name, vid) = (&port.name, class.vid());
        let apart =
            |from: &PortView| (from.isolated && !port.uplink) || (port.isolated && !from.uplink);
        if let Some(from) = ingress.filter(|from| apart(from)) {
            let who = if port.isolated { name } else { &from.name };
            let text = format!("{who} is isolated: not from {} to {name}", from.name);
            return Err((Discard::Isolated, text));
        }
        if port.mirror {
            return Err((Discard::NoMember, format!("{name} only gets copies")));
        }
        if !port.link {
            return Err((Discard::PortDown, format!("{name} is down")));
        }
        let Some(egress) = port.mode.egress(vid) else {
            let text = format!("{name} is not a member of vlan {vid}");
            return Err((Discard::VlanNotAllowed, text));
        };
        let tci = egress.tci(class);
        let tci = tci.map_err(|reason| (reason, format!("{name} cannot take it")))?;
        Ok(match tci {
            Some(_) => format!("tagged {vid}"),
            None => "untagged".to_owned(),
        })
    }
}

/// `an access port of vlan 10`.
fn mode_text(mode: &Mode) -> String {
    match mode {
        Mode::Access { pvid } => format!("an access port of vlan {pvid}"),
        Mode::Trunk { native: None, .. } => "a trunk without a native vlan".to_owned(),
        Mode::Trunk {
            native: Some(vid), ..
        } => format!("a trunk with native vlan {vid}"),
    }
}

#[cfg(test)]
mod tests;
