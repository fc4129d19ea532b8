//! Guards under a clock that the test moves.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn passed(limiter: &Limiter, n: u64, now_ns: u64, tries: u32) -> u32 {
    (0..tries).map(|_| u32::from(limiter.take(n, now_ns))).sum()
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate() {
    let limiter = Limiter::new(1000, 50);
    assert_eq!(passed(&limiter, 1, SECOND, 200), 50);
    assert_eq!(passed(&limiter, 1, SECOND + 999_999, 10), 0);
    assert_eq!(passed(&limiter, 1, SECOND + 1_000_000, 10), 1);
    assert_eq!(passed(&limiter, 1, SECOND + 11_000_000, 100), 10);
    // Idle for long: a full burst, not more.
    for idle in [1, 1000, 10_000_000] {
        assert_eq!(passed(&limiter, 1, (2 + idle) * SECOND, 200), 50);
    }
}

#[test]
fn the_long_run_rate_is_exact_for_frames_of_any_size() {
    for (rate, bytes) in [
        (1_000_000, 64),
        (125_000_000, 1518),
        (12_500_000_000, 65_550),
    ] {
        let limiter = Limiter::new(rate, rate / 100);
        let mut sent = 0;
        let step = 1 + bytes * SECOND / rate / 3;
        let mut now = 0;
        while now < SECOND {
            sent += if limiter.take(bytes, now) { bytes } else { 0 };
            now += step;
        }
        let most = rate + rate / 100 + bytes;
        assert!((rate - bytes..=most).contains(&sent), "{sent} of {rate}");
    }
}

#[test]
fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
    let limiter = Limiter::new(1000, 100);
    assert!(limiter.take(5000, 0));
    assert!(!limiter.take(1, 4 * SECOND));
    assert!(limiter.take(1, 5 * SECOND));
    // More than can be taken at once is counted as what can.
    let limiter = Limiter::new(u64::MAX, u64::MAX);
    assert!(limiter.take(u64::MAX, 0));
    let slow = Limiter::new(0, 0);
    assert!(slow.take(u64::MAX, 0) && !slow.take(1, 1000 * SECOND));
}

#[test]
fn a_clock_that_wraps_or_goes_back_a_little_does_no_harm() {
    for start in [u64::MAX, u64::MAX / 256, u64::MAX / 256 * 3, u64::MAX / 2] {
        let limiter = Limiter::new(1000, 10);
        let before = start.wrapping_sub(SECOND);
        assert_eq!(passed(&limiter, 1, before, 20), 10);
        assert_eq!(passed(&limiter, 1, start.wrapping_add(SECOND), 20), 10);
        assert_eq!(passed(&limiter, 1, start.wrapping_add(SECOND - 500), 20), 0);
        assert_eq!(passed(&limiter, 1, start.wrapping_add(2 * SECOND), 20), 10);
    }
}

#[test]
fn workers_share_a_limit() {
    let limiter = Limiter::new(1, 10_000);
    let count = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| passed(&limiter, 1, SECOND, 10_000)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum::<u32>()
    });
    // A worker that loses 16 races lets a frame pass for free.
    assert!((10_000..10_100).contains(&count), "{count}");
}

fn guards(text: &str, side: Side, addresses: &[Mac]) -> Guards {
    let table: GuardTable = toml::from_str(text).unwrap();
    Guards::new(&table.complete(side), addresses)
}

const MINE: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

#[test]
fn a_guest_may_send_from_its_own_addresses_only() {
    let guest = guards("", Side::Guest, &[MINE]);
    assert_eq!(guest.source(MINE), Ok(()));
    assert_eq!(guest.source(OTHER), Err(Discard::SourceGuard));
    for open in [
        guards("", Side::Guest, &[]),
        guards("source_guard = false", Side::Guest, &[MINE]),
        guards("", Side::Uplink, &[MINE]),
    ] {
        assert_eq!(open.source(OTHER), Ok(()));
    }
}

#[test]
fn a_guest_may_not_speak_bridge_protocols() {
    let guest = guards("", Side::Guest, &[]);
    for group in ["01:80:c2:00:00:00", "01:00:0c:cc:cc:cd"] {
        let group = group.parse().unwrap();
        assert_eq!(guest.bridge_protocol(group), Err(Discard::BpduGuard));
        assert_eq!(
            guards("bpdu_guard = false", Side::Guest, &[]).bridge_protocol(group),
            Ok(())
        );
        assert_eq!(guards("", Side::Uplink, &[]).bridge_protocol(group), Ok(()));
    }
    assert_eq!(guest.bridge_protocol(Mac::BROADCAST), Ok(()));
    assert_eq!(guest.bridge_protocol(OTHER), Ok(()));
}

#[test]
fn storms_are_cut_each_for_itself() {
    let text = "broadcast_limit = 3\nmulticast_limit = '1K'\nunknown_limit = 'off'";
    let guest = guards(text, Side::Guest, &[]);
    let count = |storm, now| {
        (0..2000)
            .filter(|_| guest.storm(storm, 1, now).is_ok())
            .count()
    };
    assert_eq!(count(Storm::Broadcast, 0), 3);
    assert_eq!(count(Storm::Multicast, 0), 1024);
    assert_eq!(count(Storm::Unknown, 0), 2000);
    assert_eq!(
        guest.storm(Storm::Broadcast, 1, 0),
        Err(Discard::BroadcastStorm)
    );
    assert_eq!(
        guest.storm(Storm::Multicast, 1, 0),
        Err(Discard::MulticastStorm)
    );
    assert_eq!(count(Storm::Broadcast, SECOND), 3);
    let usual = guards("", Side::Guest, &[]);
    for _ in 0..10_000 {
        assert_eq!(usual.storm(Storm::Unknown, 1, 0), Ok(()));
    }
    let unknown = usual.storm(Storm::Unknown, 1, 0);
    assert_eq!(unknown, Err(Discard::UnknownStorm));
    let uplink = guards("", Side::Uplink, &[]);
    assert!((0..100_000).all(|_| uplink.storm(Storm::Broadcast, 1, 0).is_ok()));
}

#[test]
fn rates_hold_for_frames_and_for_bytes() {
    let by_frame = guards("packet_rate = 1000\npacket_burst = 5", Side::Guest, &[]);
    assert!(by_frame.is_rated() && !guards("", Side::Guest, &[]).is_rated());
    let count = |guards: &Guards, bytes| {
        (0..10_000)
            .filter(|_| guards.rate(1, bytes, 0).is_ok())
            .count()
    };
    assert_eq!(count(&by_frame, 64), 5);
    assert_eq!(by_frame.rate(1, 64, 0), Err(Discard::RateLimit));
    let by_byte = guards("byte_rate = '1M'\nbyte_burst = 10000", Side::Uplink, &[]);
    assert_eq!(count(&by_byte, 1000), 10);
    // Without a burst: the twentieth part of a second, or what a burst of frames needs.
    assert_eq!(
        count(&guards("packet_rate = 100", Side::Guest, &[]), 64),
        64
    );
    assert_eq!(
        count(&guards("packet_rate = 20000", Side::Guest, &[]), 64),
        1000
    );
    assert_eq!(count(&guards("byte_rate = 1", Side::Guest, &[]), 65_536), 2);
}

#[test]
fn what_is_written_is_checked_and_the_rest_is_as_usual() {
    let table: GuardTable = toml::from_str("mac_limit = 3").unwrap();
    let config = table.complete(Side::Guest);
    assert_eq!(config.mac_limit.get(), Some(3));
    assert_eq!(config.broadcast_limit.get(), Some(1000));
    assert_eq!(
        GuardTable::default().complete(Side::Guest),
        GuardConfig::default()
    );
    assert_eq!(Guards::new(&config, &[]).mac_limit(), 3);
    assert_eq!(
        guards("mac_limit = 'off'", Side::Guest, &[]).mac_limit(),
        u32::MAX
    );
    assert_eq!(guards("", Side::Uplink, &[]).mac_limit(), u32::MAX);
    for bad in [
        "mac_limit = 0",
        "mac_limit = -1",
        "broadcast_limit = 'none'",
        "byte_rate = '2T'",
        "byte_rate = true",
        "bpdu_guard = 1",
        "bpdu = true",
    ] {
        assert!(toml::from_str::<GuardTable>(bad).is_err(), "{bad}");
    }
    let json = serde_json::to_string(&config).unwrap();
    assert!(json.contains("\"mac_limit\":3") && json.contains("\"byte_rate\":\"off\""));
    let read: GuardTable = serde_json::from_str(&json).unwrap();
    assert_eq!(read.complete(Side::Uplink), config);
    assert_eq!("off".parse::<Bound>().unwrap().to_string(), "off");
}

proptest! {
    /// Whatever is asked for and when: never more than the rate, the burst and one frame.
    #[test]
    fn no_more_passes_than_may(
        rate in 1_u64..20_000_000_000, burst in 1_u64..1_000_000, start in any::<u64>(),
        takes in proptest::collection::vec((1_u64..70_000, 0_u64..3_000_000), 1..200),
    ) {
        let limiter = Limiter::new(rate, burst);
        let (mut elapsed, mut sent, mut largest) = (0_u64, 0_u64, 0);
        for (n, wait) in takes {
            elapsed += wait;
            largest = largest.max(n);
            if limiter.take(n, start.wrapping_add(elapsed)) {
                sent += n;
            }
            let earned = u128::from(elapsed) * u128::from(rate) / u128::from(SECOND);
            // The cost of a unit is rounded down by one part in 10^4 at most.
            let earned = u64::try_from(earned + earned / 1000).unwrap();
            prop_assert!(sent <= earned + burst + burst / 1000 + largest + 1);
        }
    }
}

#[test]
fn a_frame_of_many_segments_counts_as_many() {
    let guest = guards("packet_rate = 1000\npacket_burst = 100", Side::Guest, &[]);
    assert_eq!(guest.rate(99, 9000, 0), Ok(()));
    assert_eq!(guest.rate(1024, 65_000, 0), Ok(()), "one was left");
    assert_eq!(guest.rate(1, 64, 0), Err(Discard::RateLimit));
    assert_eq!(
        guest.rate(1, 64, SECOND),
        Err(Discard::RateLimit),
        "still owed"
    );
    assert_eq!(guest.rate(1, 64, 2 * SECOND), Ok(()));
    let guest = guards("broadcast_limit = 10", Side::Guest, &[]);
    assert_eq!(guest.storm(Storm::Broadcast, 10, 0), Ok(()));
    let storm = guest.storm(Storm::Broadcast, 1, 0);
    assert_eq!(storm, Err(Discard::BroadcastStorm));
}
