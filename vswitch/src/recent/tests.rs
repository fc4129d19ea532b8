//! Notes against a model: a bounded queue for each port and outcome.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn frame(source: u8, destination: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[5] = destination;
    bytes[11] = source;
    bytes[20] = 0xab;
    bytes
}

fn note(now: u64, port: u16, discard: Option<Discard>, head: &[u8]) -> Note<'_> {
    Note {
        now: Cycles(now),
        ingress: PortNo(port),
        egress: Egress::Flood,
        vid: Vid::new(10),
        len: 1514,
        discard,
        head,
    }
}

fn all(recent: &Recent) -> Vec<Record> {
    let (mut records, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let mut part = Recent::room();
        from = recent.copy_into(at, &mut part);
        records.append(&mut part);
    }
    records
}

#[test]
fn a_record_says_what_was_noted() {
    let mut recent = Recent::new();
    let bytes = frame(1, 2);
    for egress in [Egress::Nowhere, Egress::Flood, Egress::Port(PortNo(7))] {
        recent.burst();
        recent.note(&Note {
            egress,
            discard: Some(Discard::RingDisabled),
            ..note(9, 3, None, &bytes)
        });
    }
    let records = all(&recent);
    let egress: Vec<_> = records.iter().map(Record::egress).collect();
    assert_eq!(
        egress,
        [Egress::Nowhere, Egress::Flood, Egress::Port(PortNo(7))]
    );
    let record = records[0];
    assert_eq!((record.time, record.ingress), (Cycles(9), PortNo(3)));
    assert_eq!((record.vid, record.len), (Vid::new(10), 1514));
    assert_eq!(record.discard, Some(Discard::RingDisabled));
    assert_eq!(record.head(), &bytes[..HEAD]);
    assert_eq!(record.source(), Some(Mac([0, 0, 0, 0, 0, 1])));
    assert_eq!(record.destination(), Some(Mac([0, 0, 0, 0, 0, 2])));
}

#[test]
fn a_frame_cut_short_has_the_addresses_it_has() {
    let mut recent = Recent::new();
    for len in [0, 5, 6, 11, 12] {
        let bytes = frame(1, 2);
        recent.note(&note(0, 0, Some(Discard::Runt), &bytes[..len]));
    }
    let known: Vec<_> = all(&recent)
        .iter()
        .map(|r| (r.destination().is_some(), r.source().is_some()))
        .collect();
    let none = (false, false);
    assert_eq!(
        known,
        [none, none, (true, false), (true, false), (true, true)]
    );
}

#[test]
fn a_flood_leaves_what_is_known_of_others() {
    let mut recent = Recent::new();
    let bytes = frame(1, 2);
    recent.note(&note(1, 1, Some(Discard::SourceGuard), &bytes));
    recent.note(&note(1, 1, None, &bytes));
    recent.note(&note(1, 2, Some(Discard::Runt), &bytes));
    for now in 2..10_000 {
        recent.burst();
        for _ in 0..64 {
            recent.note(&note(now, 2, None, &bytes));
            recent.note(&note(now, 3, Some(Discard::RateLimit), &bytes));
        }
    }
    let records = all(&recent);
    let old: Vec<_> = records.iter().filter(|r| r.time == Cycles(1)).collect();
    let reasons: Vec<_> = old.iter().map(|r| r.discard).collect();
    assert_eq!(
        reasons,
        [Some(Discard::SourceGuard), None, Some(Discard::Runt)]
    );
    assert_eq!(records.len(), 3 + FORWARDS + DISCARDS);
}

#[test]
fn a_burst_is_sampled() {
    let mut recent = Recent::new();
    let bytes = frame(1, 2);
    for now in 0..64 {
        recent.note(&note(now, 0, None, &bytes));
        recent.note(&note(now, 0, Some(Discard::Runt), &bytes));
    }
    assert!(!recent.wants_forward() && !recent.wants_discard());
    let records = all(&recent);
    let (dropped, forwarded): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|r| r.discard.is_some());
    assert_eq!(dropped.len(), usize::from(DISCARDS_A_BURST));
    assert_eq!(forwarded.len(), 1);
    assert_eq!(forwarded[0].time, Cycles(0));
}

#[test]
fn every_port_has_room_and_nothing_grows() {
    let mut recent = Recent::new();
    let bytes = frame(1, 2);
    let before = recent.records.capacity();
    for port in (0..=u16::MAX).step_by(13) {
        for _ in 0..DISCARDS + 1 {
            recent.burst();
            recent.note(&note(u64::from(port), port, Some(Discard::Runt), &bytes));
            recent.note(&note(u64::from(port), port, None, &bytes));
        }
    }
    assert_eq!(recent.records.capacity(), before);
    assert_eq!(all(&recent).len(), PORTS * RING);
}

#[test]
fn a_copy_stays_within_the_room_it_was_given() {
    let mut recent = Recent::new();
    let bytes = frame(1, 2);
    for port in 0..40 {
        recent.burst();
        recent.note(&note(0, port, None, &bytes));
    }
    let mut small = Vec::with_capacity(100);
    let mut from = Some(0);
    let mut seen = 0;
    while let Some(at) = from {
        small.clear();
        from = recent.copy_into(at, &mut small);
        assert!(small.capacity() == 100);
        seen += small.len();
    }
    assert_eq!(seen, 40);
    assert_eq!(recent.copy_into(usize::MAX, &mut small), None);
}

proptest! {
    #[test]
    fn the_last_of_each_port_and_outcome_are_kept(
        notes in prop::collection::vec((0..4_u16, prop::option::of(0..2_u8), any::<bool>()), 0..600)
    ) {
        let mut recent = Recent::new();
        let mut model: BTreeMap<(u16, bool), VecDeque<u64>> = BTreeMap::new();
        let (mut discards, mut forwards) = (DISCARDS_A_BURST, 1);
        for (now, (port, reason, burst)) in notes.into_iter().enumerate() {
            if burst {
                recent.burst();
                (discards, forwards) = (DISCARDS_A_BURST, 1);
            }
            let discard = reason.map(|r| if r == 0 { Discard::Runt } else { Discard::Giant });
            recent.note(&note(now as u64, port, discard, &frame(1, 2)));
            let left = if discard.is_some() { &mut discards } else { &mut forwards };
            if *left > 0 {
                *left -= 1;
                let kept = model.entry((port, discard.is_some())).or_default();
                kept.push_back(now as u64);
                let size = if discard.is_some() { DISCARDS } else { FORWARDS };
                if kept.len() > size {
                    kept.pop_front();
                }
            }
        }
        let mut found: BTreeMap<(u16, bool), Vec<u64>> = BTreeMap::new();
        for record in all(&recent) {
            let kind = (record.ingress.0, record.discard.is_some());
            found.entry(kind).or_default().push(record.time.0);
        }
        found.values_mut().for_each(|times| times.sort_unstable());
        let model: BTreeMap<_, Vec<u64>> =
            model.into_iter().map(|(kind, times)| (kind, times.into())).collect();
        prop_assert_eq!(found, model);
    }
}
