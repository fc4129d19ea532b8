//! Limits on a clock of our own: rates, bursts, changes while they run.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn limit(keys: &str) -> Limit {
    toml::from_str(keys).unwrap()
}

fn throttle(keys: &str) -> Option<Arc<Throttle>> {
    Throttle::new(&limit(keys), Rate::NANOSECONDS)
}

/// Offers requests of `bytes` without end, looking every `step` ns, from `from` for `time`; how
/// many were let through.
fn flood(all: &mut Throttles, from: u64, time: u64, step: u64, bytes: u64) -> u64 {
    let mut passed = 0;
    let mut now = from;
    while now < from + time {
        let room = all.ask(Cycles(now)).min(64);
        all.take(room, (bytes + FRAME) * room as u64, Cycles(now));
        passed += room as u64;
        now += step;
    }
    passed
}

/// Within 2 %.
fn about(got: u64, wanted: u64) -> bool {
    got.abs_diff(wanted) * 50 <= wanted
}

#[test]
fn ten_seconds_are_within_two_percent_of_the_rate() {
    for rate in [100, 1_000, 33_333, 1_000_000] {
        let mut all = Throttles::new(throttle(&format!("iops = {rate}")), None);
        let passed = flood(&mut all, 1, 10 * SECOND, 7_919, 4096);
        assert!(about(passed, 10 * rate), "{passed} at {rate}");
    }
    for (rate, bytes) in [(1 << 20, 4096), (100 << 20, 128 << 10), (4096, 512)] {
        let mut all = Throttles::new(throttle(&format!("bandwidth = \"{rate}\"")), None);
        // From an empty bucket on: a second before, to let the first burst pass.
        flood(&mut all, 1, SECOND, 20_011, bytes);
        let passed = flood(&mut all, 1 + SECOND, 100 * SECOND, 20_011, bytes) * bytes;
        assert!(about(passed, 100 * rate), "{passed} at {rate}");
    }
}

#[test]
fn a_sleepy_worker_reaches_the_rate_all_the_same() {
    // It comes up to 5 ms late, half of what the smallest bucket holds.
    let mut all = Throttles::new(throttle("iops = 1000\niops_burst = 1"), None);
    let passed = flood(&mut all, 1, 10 * SECOND, 5_000_000, 4096);
    assert!(about(passed, 10_000), "{passed}");
}

#[test]
fn a_burst_is_what_was_saved_while_idle() {
    let mut all = Throttles::new(throttle("iops = 100\niops_burst = 1000"), None);
    let at_once = |all: &mut Throttles, now| {
        let room = all.ask(Cycles(now));
        all.take(room, 0, Cycles(now));
        room
    };
    assert_eq!(at_once(&mut all, SECOND), 1000);
    assert_eq!(at_once(&mut all, SECOND), 0);
    assert_eq!(at_once(&mut all, 2 * SECOND), 100);
    assert_eq!(
        at_once(&mut all, 60 * SECOND),
        1000,
        "it is full, and no fuller"
    );
}

#[test]
fn a_request_larger_than_the_bucket_is_waited_for() {
    let mut all = Throttles::new(
        throttle("bandwidth = \"1M\"\nbandwidth_burst = \"4K\""),
        None,
    );
    let now = Cycles(SECOND);
    assert!(all.ask(now) > 0);
    all.take(1, (8 << 20) + FRAME, now);
    assert_eq!(all.ask(now), 0);
    let opens = all.opens(now).unwrap();
    // 8 MiB less the 10 ms that the bucket holds.
    assert!(
        opens.0.abs_diff(SECOND + 8 * SECOND - SECOND / 100) < 1000,
        "{opens}"
    );
    assert_eq!(all.ask(Cycles(opens.0 - 2)), 0);
    assert_eq!(all.ask(opens), 1);
    assert_eq!(all.waited(opens), opens - now);
}

#[test]
fn a_trickle_ends_when_the_limit_does() {
    let mut all = Throttles::new(throttle("bandwidth = \"4K\""), None);
    all.take(1, 64 << 20, Cycles(SECOND));
    assert!(all.opens(Cycles(SECOND)).unwrap().0 > 1000 * SECOND);
    all.replace(throttle("bandwidth = \"100M\""), None);
    let passed = flood(&mut all, 2 * SECOND, 10 * SECOND, 10_007, 4096) * 4096;
    assert!(about(passed, 1000 << 20), "{passed}");
    all.replace(None, None);
    assert!(all.is_open());
    assert_eq!(
        (all.room(Cycles(0)), all.opens(Cycles(0))),
        (usize::MAX, None)
    );
}

#[test]
fn a_group_is_shared_and_the_tighter_limit_counts() {
    let group = throttle("iops = 3000");
    let mut a = Throttles::new(throttle("iops = 1000"), group.clone());
    let mut b = Throttles::new(None, group);
    let (mut of_a, mut of_b) = (0, 0);
    for tick in 0..1_000_000 {
        let now = Cycles(1 + tick * 10_000);
        for (all, passed) in [(&mut a, &mut of_a), (&mut b, &mut of_b)] {
            let room = all.ask(now).min(4);
            all.take(room, 0, now);
            *passed += room as u64;
        }
    }
    assert!(about(of_a, 10_000), "{of_a}");
    assert!(about(of_a + of_b, 30_000), "{of_a} + {of_b}");
}

#[test]
fn nothing_configured_is_no_throttle() {
    assert!(throttle("").is_none());
    assert!(throttle("iops_burst = 5").is_none());
}

proptest! {
    /// However it is called, no more passes than rate × time + bucket + one burst.
    #[test]
    fn never_more_than_was_configured(
        rate in 1_u32..1_000_000, burst in 1_u32..10_000,
        calls in proptest::collection::vec((0_u64..50_000_000, 1_usize..64), 1..300),
    ) {
        let keys = format!("iops = {rate}\niops_burst = {burst}");
        let mut all = Throttles::new(throttle(&keys), None);
        let (mut now, mut passed) = (1, 0_u64);
        for (wait, want) in calls {
            now += wait;
            let room = all.ask(Cycles(now)).min(want);
            all.take(room, 0, Cycles(now));
            passed += room as u64;
        }
        let depth = u64::from(burst).max(u64::from(rate) / 100 + 1);
        let most = u64::try_from(u128::from(now) * u128::from(rate) / u128::from(SECOND)).unwrap();
        prop_assert!(passed <= most + depth + 2, "{passed} of {most} + {depth}");
    }
}
