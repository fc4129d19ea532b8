//! Guards that drop what a port sends are told in the log: when that begins, and once a minute for
//! as long as it goes on. Limits of rates are not: to drop is what they are for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use towpath_common::config::Name;
use tracing::warn;

use crate::discard::Discard;
use crate::events;

/// The guards that are told of.
const GUARDS: [Discard; 6] = [
    Discard::SourceGuard,
    Discard::MacLimit,
    Discard::BpduGuard,
    Discard::BroadcastStorm,
    Discard::MulticastStorm,
    Discard::UnknownStorm,
];

/// A port is told of no more often than this for each guard: a thousand ports under attack at once
/// are a hundred lines a second.
const PAUSE: Duration = Duration::from_secs(60);

/// What one guard did at one port.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Frames dropped, as told last.
    count: u64,
    when: Option<Instant>,
}

/// What was told of every port.
#[derive(Debug, Default)]
pub(super) struct Dropping(BTreeMap<Name, [Told; GUARDS.len()]>);

impl Dropping {
    /// Looks at all ports, `now`, for what is to be [told](tell). What a port had dropped when it
    /// is seen first was told by a predecessor, if at all.
    pub(super) fn look<'a>(
        &mut self,
        ports: impl Iterator<Item = (&'a Name, [u64; Discard::COUNT])>,
        now: Instant,
    ) -> Vec<Drops> {
        let (mut seen, mut all) = (BTreeMap::new(), Vec::new());
        for (name, discards) in ports {
            let mut told = self.0.remove(name).unwrap_or_else(|| at(&discards));
            let fresh = fresh(&mut told, &discards, now).into_iter();
            all.extend(fresh.map(|(guard, frames)| (name.clone(), guard, frames)));
            seen.insert(name.clone(), told);
        }
        self.0 = seen;
        all
    }
}

/// A port, a guard, and the frames that it dropped since it was told of last.
type Drops = (Name, Discard, u64);

/// Tells the log, which may block: not under a lock.
pub(super) fn tell(drops: &[Drops]) {
    for (port, guard, frames) in drops {
        warn!(name: events::GUARD_DROPS, %port, guard = guard.name(), frames,
            "a guard drops what the port sends");
    }
}

/// As if all of it had been told.
fn at(discards: &[u64; Discard::COUNT]) -> [Told; GUARDS.len()] {
    GUARDS.map(|guard| Told {
        count: discards[guard.index()],
        when: None,
    })
}

/// What is to be told of a port `now`: guards, and frames since they were told of last.
fn fresh(
    told: &mut [Told; GUARDS.len()],
    discards: &[u64; Discard::COUNT],
    now: Instant,
) -> Vec<(Discard, u64)> {
    let mut fresh = Vec::new();
    for (guard, told) in GUARDS.into_iter().zip(told) {
        let count = discards[guard.index()];
        let pausing = told
            .when
            .is_some_and(|when| now.duration_since(when) < PAUSE);
        if count < told.count {
            told.count = count; // a port of the same name, set up anew
        } else if count > told.count && !pausing {
            fresh.push((guard, count - told.count));
            *told = Told {
                count,
                when: Some(now),
            };
        }
    }
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters with `frames` dropped by `guard`.
    fn dropped(guard: Discard, frames: u64) -> [u64; Discard::COUNT] {
        let mut discards = [0; Discard::COUNT];
        discards[guard.index()] = frames;
        discards
    }

    #[test]
    fn it_is_told_when_it_begins_and_once_a_minute() {
        let storm = |frames| dropped(Discard::BroadcastStorm, frames);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut told = at(&storm(5));
        let mut look = |frames, seconds| fresh(&mut told, &storm(frames), after(seconds));
        assert_eq!(look(5, 0), [], "a predecessor told of those");
        assert_eq!(look(7, 1), [(Discard::BroadcastStorm, 2)]);
        assert_eq!(look(100, 30), [], "not again so soon");
        assert_eq!(look(100, 61), [(Discard::BroadcastStorm, 93)]);
        assert_eq!(look(100, 200), [], "it is over");
        assert_eq!(look(0, 201), []);
        assert_eq!(look(3, 202), [(Discard::BroadcastStorm, 3)], "counted anew");
    }

    #[test]
    fn limits_of_rates_are_not_told_of() {
        let mut told = at(&[0; Discard::COUNT]);
        assert_eq!(
            fresh(&mut told, &dropped(Discard::RateLimit, 9), Instant::now()),
            []
        );
        let guard = dropped(Discard::SourceGuard, 9);
        let now = Instant::now();
        assert_eq!(fresh(&mut told, &guard, now), [(Discard::SourceGuard, 9)]);
    }

    #[test]
    fn ports_that_are_gone_are_forgotten() {
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let none = [0; Discard::COUNT];
        let mut dropping = Dropping::default();
        let now = Instant::now();
        assert_eq!(dropping.look([(&a, none), (&b, none)].into_iter(), now), []);
        let drops = dropping.look([(&b, dropped(Discard::MacLimit, 3))].into_iter(), now);
        assert_eq!(drops, [(b.clone(), Discard::MacLimit, 3)]);
        assert_eq!(dropping.0.into_keys().collect::<Vec<_>>(), [b]);
    }
}
