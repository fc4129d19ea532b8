//! An answer for a person.

use std::fmt::Write;

use super::ask::Why;
use super::{Explanation, Verdict};
use crate::recent::history::{History, Seen};

/// The answer as text.
#[must_use]
pub fn text(why: &Why) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, why);
    out
}

fn write_all(out: &mut String, why: &Why) -> std::fmt::Result {
    let mac = why.mac;
    if why.places.is_empty() {
        writeln!(out, "{mac} is not known to be anywhere")?;
    }
    for place in &why.places {
        write!(out, "{mac} is at {} in vlan {}", place.port, place.vlan)?;
        if place.is_static {
            write!(out, ", configured")?;
        } else {
            write!(out, ", heard {} s ago", place.age_seconds)?;
        }
        writeln!(out, "{}", if place.held { ", held" } else { "" })?;
    }
    for explanation in why.from.iter().chain(&why.to) {
        writeln!(out)?;
        explain(out, explanation)?;
    }
    writeln!(out)?;
    recent(out, &why.recent)
}

fn explain(out: &mut String, explanation: &Explanation) -> std::fmt::Result {
    writeln!(out, "{}", explanation.question)?;
    for step in &explanation.steps {
        writeln!(out, "  {:<7} {}", step.stage, step.finding)?;
    }
    match &explanation.verdict {
        Verdict::Delivered(port) => writeln!(out, "  => delivered to {port}"),
        Verdict::Flooded(ports) => writeln!(out, "  => flooded to {}", ports.join(", ")),
        Verdict::Accepted(vid) => writeln!(out, "  => accepted into vlan {vid}"),
        Verdict::Dropped(reason) => writeln!(out, "  => dropped: {reason}"),
    }
}

fn recent(out: &mut String, history: &History) -> std::fmt::Result {
    if history.frames.is_empty() {
        return writeln!(out, "no recent frame is remembered");
    }
    write!(
        out,
        "remembered (a sample): {} forwarded",
        history.forwarded
    )?;
    for (reason, count) in &history.discarded {
        write!(out, ", {count} dropped: {reason}")?;
    }
    writeln!(out)?;
    let last = [
        ("from", history.last_from_seconds),
        ("to", history.last_to_seconds),
    ];
    for (way, seconds) in last {
        if let Some(seconds) = seconds {
            writeln!(out, "  last frame {way} it {seconds:.3} s ago")?;
        }
    }
    history.frames.iter().try_for_each(|frame| one(out, frame))
}

fn one(out: &mut String, frame: &Seen) -> std::fmt::Result {
    let Seen {
        seconds,
        ingress,
        len,
        ..
    } = frame;
    let egress = frame.egress.as_deref().unwrap_or("-");
    write!(out, "  {seconds:>10.3} s ago  {ingress} -> {egress}")?;
    if let Some(vid) = frame.vlan {
        write!(out, "  vlan {vid}")?;
    }
    if let (Some(source), Some(destination)) = (frame.source, frame.destination) {
        write!(out, "  {source} > {destination}")?;
    }
    write!(out, "  {len} bytes")?;
    if let Some(reason) = &frame.discard {
        write!(out, "  dropped: {reason}")?;
    }
    writeln!(out)
}
