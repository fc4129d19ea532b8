//! Taps and their reader: nothing is lost without being counted, and nobody waits.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::discard::Discard;
use crate::mac::Mac;

fn sight(now: u64, len: u32) -> Sight {
    Sight {
        now: Cycles(now),
        port: PortNo(3),
        direction: Direction::Rx,
        vid: Vid::new(10),
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: Mac::BROADCAST,
        discard: None,
        len,
    }
}

fn drain(reader: &mut Reader, mut show: impl FnMut(&Captured<'_>)) {
    let shown: Result<(), Infallible> = reader.drain(RING_BYTES, |frame| {
        show(frame);
        Ok(())
    });
    shown.unwrap();
}

#[test]
fn a_frame_is_its_head_and_its_rest_cut_at_the_snaplen() {
    let (mut taps, mut reader) = open(CaptureId(1), &Filter::default(), 10, 1);
    let tap = &mut taps[0];
    tap.budget = BURST_BYTES;
    tap.push(&sight(1, 12), &[1; 8], |rest| rest.fill(2));
    tap.push(&sight(2, 9), &[1; 8], |rest| rest.fill(2));
    tap.push(&sight(3, 4), &[1; 8], |_| panic!("the head is enough"));
    let mut seen = Vec::new();
    drain(&mut reader, |frame| {
        seen.push((frame.len, frame.data.to_vec()))
    });
    let expected = [
        (12, vec![1, 1, 1, 1, 1, 1, 1, 1, 2, 2]),
        (9, vec![1, 1, 1, 1, 1, 1, 1, 1, 2]),
        (4, vec![1, 1, 1, 1]),
    ];
    assert_eq!(seen, expected);
    assert_eq!(reader.missed(), 0);
}

#[test]
fn a_burst_is_copied_up_to_its_budget() {
    let (taps, mut reader) = open(CaptureId(1), &Filter::default(), 2048, 1);
    let mut worker = Taps::default();
    for tap in taps {
        worker.add(tap).unwrap();
    }
    for burst in 0..2 {
        worker.burst();
        for _ in 0..64 {
            worker.see(&sight(burst, 1024), &[0; 64], |rest| rest.fill(0));
        }
    }
    let mut captured = 0;
    drain(&mut reader, |_| captured += 1);
    assert_eq!((captured, reader.missed()), (64, 64));
}

#[test]
fn a_frame_larger_than_the_budget_is_captured_alone() {
    let (taps, mut reader) = open(CaptureId(1), &Filter::default(), u32::MAX, 1);
    let mut worker = Taps::default();
    for tap in taps {
        worker.add(tap).unwrap();
    }
    worker.burst();
    worker.see(&sight(0, 65_550), &[0; 64], |rest| rest.fill(7));
    worker.see(&sight(0, 65_550), &[0; 64], |rest| rest.fill(7));
    let mut lengths = Vec::new();
    drain(&mut reader, |frame| lengths.push(frame.data.len()));
    assert_eq!((lengths, reader.missed()), (vec![65_550], 1));
}

#[test]
fn captures_come_and_go_by_their_id() {
    let mut worker = Taps::default();
    for id in 0..CAPTURES as u64 + 1 {
        let (taps, _) = open(CaptureId(id), &Filter::default(), 64, 1);
        for tap in taps {
            assert_eq!(worker.add(tap).is_ok(), id < CAPTURES as u64);
        }
    }
    assert_eq!(worker.remove(CaptureId(2)).unwrap().id(), CaptureId(2));
    assert!(worker.remove(CaptureId(2)).is_none());
    for id in [0, 1, 3] {
        assert!(worker.remove(CaptureId(id)).is_some());
    }
    assert!(worker.is_empty());
}

#[test]
fn workers_are_merged_by_time() {
    let (mut taps, mut reader) = open(CaptureId(1), &Filter::default(), 64, 2);
    for (worker, tap) in taps.iter_mut().enumerate() {
        tap.budget = BURST_BYTES;
        for i in 0..10 {
            tap.push(&sight(2 * i + worker as u64, 60), &[0; 60], |_| ());
        }
    }
    let mut times = Vec::new();
    drain(&mut reader, |frame| times.push(frame.time.0));
    assert_eq!(times, (0..20).collect::<Vec<_>>());
}

/// The writers never wait, so this ends whatever the reader does; it stops reading now and then.
#[test]
fn under_load_captured_and_missed_are_all_that_was_offered() {
    const FRAMES: u64 = 60_000;
    let (taps, mut reader) = open(CaptureId(1), &Filter::default(), 256, 2);
    let running = AtomicBool::new(true);
    let (mut captured, mut bytes) = (0_u64, 0_usize);
    thread::scope(|scope| {
        let writers: Vec<_> = taps
            .into_iter()
            .map(|tap| {
                scope.spawn(|| {
                    let mut worker = Taps::default();
                    worker.add(tap).unwrap();
                    for now in 0..FRAMES {
                        if now % 64 == 0 {
                            worker.burst();
                        }
                        let fill = now.to_le_bytes()[0];
                        let len = u32::from(fill) + 60;
                        worker.see(&sight(now, len), &[fill; 60], |rest| rest.fill(fill));
                    }
                })
            })
            .collect();
        let mut check = |frame: &Captured<'_>| {
            let fill = frame.time.0.to_le_bytes()[0];
            assert!(frame.data.iter().all(|byte| *byte == fill));
            assert_eq!(frame.data.len(), 256.min(usize::from(fill) + 60));
            captured += 1;
            bytes += frame.data.len();
        };
        scope.spawn(|| {
            writers
                .into_iter()
                .for_each(|writer| writer.join().unwrap());
            running.store(false, Ordering::Release);
        });
        let mut rounds = 0;
        while running.load(Ordering::Acquire) {
            rounds += 1;
            if rounds % 3 == 0 {
                thread::yield_now();
            } else {
                drain(&mut reader, &mut check);
            }
        }
        drain(&mut reader, &mut check);
    });
    assert_eq!(captured + reader.missed(), 2 * FRAMES);
    assert!(captured > 0 && bytes > 0);
}

proptest! {
    #[test]
    fn a_sight_survives_its_words(
        now: u64, port: u16, vid in 0..4095_u16, out: bool, len: u32,
        reason in prop::option::of(prop::sample::select(vec![
            Discard::Runt, Discard::SourceGuard, Discard::RingDisabled,
        ])),
    ) {
        let direction = if out { Direction::Tx } else { Direction::Rx };
        let before = Sight {
            port: PortNo(port),
            vid: Vid::new(vid),
            direction,
            discard: reason,
            ..sight(now, len)
        };
        let after = decode(encode(&before), &[]);
        let expected = Captured {
            time: Cycles(now),
            port: PortNo(port),
            direction,
            vid: Vid::new(vid),
            discard: reason.map(Discard::index),
            len,
            data: &[],
        };
        prop_assert_eq!(after, expected);
    }
}
