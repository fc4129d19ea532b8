//! Golden texts, from one sample of everything.

use std::collections::BTreeMap;

use super::*;
use towpath_common::config::{SocketMode, Weight};
use vblk::config::{Limit, OnError};
use vblk::control::NamedStats;
use vblk::service::{Latency, QueueStats, SessionStatus, WorkerStatus};

/// A disk with two queues of `reads` requests each, one of them broken.
pub(crate) fn sample_disk(reads: u64) -> DiskStatus {
    let queue = QueueStats {
        requests: BTreeMap::from([(RequestType::Read, reads), (RequestType::Flush, 1)]),
        bytes: BTreeMap::from([(Direction::Read, reads << 20)]),
        errors: BTreeMap::from([(5, 2)]),
        ..QueueStats::default()
    };
    let latency = Latency {
        p50_ns: 1_250,
        p99_ns: 3_000_000,
        ..Latency::default()
    };
    let ring = QueueStatus {
        size: 128,
        enabled: true,
        in_flight: 3,
        ..QueueStatus::default()
    };
    let broken = QueueStatus {
        index: 1,
        broken: Some("chain loops".into()),
        ..ring.clone()
    };
    DiskStatus {
        name: "web".parse().unwrap(),
        path: "/dev/vg/web".into(),
        socket: "/run/web.sock".parse().unwrap(),
        mode: SocketMode::Client,
        read_only: true,
        size_bytes: 20 << 30,
        locked_bytes: 0,
        block_size: 4096,
        queues: 16,
        limit: Limit::default(),
        group: None,
        weight: Weight::default(),
        cap: None,
        on_error: OnError::Report,
        failed: None,
        held: 0,
        connected: true,
        last_error: None,
        trouble: None,
        mirror: None,
        backup: vblk::backup::Backed::default(),
        session: Some(SessionStatus {
            virtio_features: vec!["FLUSH".into(), "MQ".into()],
            protocol_features: vec!["CONFIG".into()],
            memory_bytes: 512 << 20,
            memory_registered: false,
            queues: vec![
                QueueStatus {
                    running: true,
                    ..ring
                },
                broken,
            ],
            ..SessionStatus::default()
        }),
        stats: DiskStats {
            queues: vec![queue.clone(), queue],
            latency: BTreeMap::from([(RequestType::Read, latency)]),
            ring_broken: BTreeMap::from([("loop".to_owned(), 1)]),
            ..DiskStats::default()
        },
    }
}

fn sample(reads: u64) -> Stats {
    let DiskStatus { name, stats, .. } = sample_disk(reads);
    let state = None;
    let worker = WorkerStatus {
        busy_ratio: 0.125,
        queues: 2,
        ..WorkerStatus::default()
    };
    Stats {
        disks: vec![NamedStats { name, state, stats }],
        workers: vec![worker],
    }
}

#[test]
fn a_disk_in_one_line() {
    let expected = "\
NAME  SIZE  ACCESS  CONNECTED  PATH         SOCKET
web   20G   ro      yes        /dev/vg/web  /run/web.sock
";
    assert_eq!(disk_list(&[sample_disk(1)]), expected);
}

#[test]
fn a_disk_in_full() {
    let expected = "\
disk web
  path       /dev/vg/web (ro)
  size       20G in blocks of 4096 bytes
  socket     /run/web.sock (client), at most 16 queues
  connected  yes
  memory     512M, not registered with io_uring
  virtio     FLUSH MQ
  protocol   CONFIG
  queue 0    size 128, running, 3 in flight, next avail 0, next used 0
  queue 1    size 128, BROKEN: chain loops, 3 in flight, next avail 0, next used 0
  TYPE   COUNT  BYTES    p50     p99     p99.9  MAX
  read   2      2097152  1.2 µs  3.0 ms  0 ns   0 ns
  flush  2      -        -       -       -      -
  errors EIO: 4
  rings broken by loop: 1
";
    assert_eq!(disk(&sample_disk(1)), expected);
}

#[test]
fn a_disk_that_did_nothing_says_so() {
    assert_eq!(counters(&DiskStats::default()), "  no requests yet\n");
}

#[test]
fn totals_name_the_workers() {
    let text = stats(&sample(1));
    assert!(text.starts_with("disk web\n  TYPE "), "{text}");
    assert!(
        text.ends_with("worker 0 on any CPU: 12.5 % busy, 2 queues\n"),
        "{text}"
    );
}

#[test]
fn rates_are_differences() {
    let expected = "\
DISK  READ/s  MiB/s  WRITE/s  MiB/s  FLUSH/s  ERROR/s
web   10      10.0   0        0.0    0        0
";
    assert_eq!(
        rates(&sample(5), &sample(15), Duration::from_secs(2)),
        expected
    );
    let restarted = rates(&sample(15), &sample(5), Duration::from_secs(2));
    assert!(restarted.contains("web   0 "), "{restarted}");
}
