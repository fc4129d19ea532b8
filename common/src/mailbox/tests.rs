//! The mailbox under one thread, under several, and under a worker that dies.

use super::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Far longer than any of these tests takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

enum Command {
    Add(u64, ReplyTo<u64>),
    Panic(ReplyTo<()>),
    Stop,
}

fn readable(inbox: &Inbox<u32>) -> bool {
    let mut fds = [PollFd::new(inbox, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap()
        == 1
}

#[test]
fn commands_arrive_in_order_and_pending_tells() {
    let (sender, mut inbox) = mailbox(4).unwrap();
    assert!(!inbox.pending());
    assert_eq!(inbox.take(), None);
    for n in 0..4 {
        sender.post(n, PATIENCE).unwrap();
    }
    assert!(inbox.pending());
    assert_eq!(
        [0; 4].map(|_| inbox.take()),
        [Some(0), Some(1), Some(2), Some(3)]
    );
    assert!(!inbox.pending());
}

#[test]
fn a_full_mailbox_refuses_after_the_deadline_and_says_so() {
    let (sender, mut inbox) = mailbox(1).unwrap();
    sender.post(1, PATIENCE).unwrap();
    let refused = sender.post(2, Duration::from_millis(2)).unwrap_err();
    assert!(
        matches!(refused, CallError::Full { capacity: 1, .. }),
        "{refused}"
    );
    assert_eq!((inbox.take(), inbox.take()), (Some(1), None));
}

#[test]
fn a_sender_waits_for_room() {
    let (sender, mut inbox) = mailbox(1).unwrap();
    sender.post(1, PATIENCE).unwrap();
    let second = thread::spawn(move || sender.post(2, PATIENCE));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(inbox.take());
        thread::yield_now();
    }
    assert_eq!(seen, [1, 2]);
    second.join().unwrap().unwrap();
}

#[test]
fn the_bell_rings_once_and_only_for_a_sleeper() {
    let (sender, mut inbox) = mailbox(8).unwrap();
    sender.post(1, PATIENCE).unwrap();
    assert!(!readable(&inbox), "nobody sleeps, nobody rings");
    assert!(!inbox.arm(), "a command waits");
    assert_eq!(inbox.take(), Some(1));
    assert!(inbox.arm());
    assert!(!readable(&inbox));
    sender.post(2, PATIENCE).unwrap();
    sender.post(3, PATIENCE).unwrap();
    assert!(readable(&inbox));
    inbox.disarm();
    assert!(!readable(&inbox));
    assert_eq!((inbox.take(), inbox.take()), (Some(2), Some(3)));
    assert!(inbox.arm(), "armed again after a wake-up");
    inbox.disarm();
}

#[test]
fn a_command_that_comes_between_mark_and_look_keeps_the_worker_awake() {
    let (sender, mut inbox) = mailbox(8).unwrap();
    assert!(!inbox.arm_with(|| sender.post(1, PATIENCE).unwrap()));
    assert_eq!(inbox.take(), Some(1));
    assert!(
        !readable(&inbox),
        "the bell that was rung meanwhile has been silenced"
    );
    assert!(inbox.arm());
}

#[test]
fn commands_left_behind_are_dropped_and_later_ones_refused() {
    let (sender, inbox) = mailbox(8).unwrap();
    let precious = Arc::new(());
    sender.post(Arc::clone(&precious), PATIENCE).unwrap();
    drop(inbox);
    assert_eq!(Arc::strong_count(&precious), 1);
    assert_eq!(sender.post(precious, PATIENCE), Err(CallError::Closed));
}

#[test]
fn a_caller_gives_up_at_its_deadline() {
    let (sender, mut inbox) = mailbox(8).unwrap();
    let gave_up = sender.call(|reply| Command::Add(1, reply), Duration::from_millis(2));
    assert!(
        matches!(gave_up, Err(CallError::TimedOut { .. })),
        "{gave_up:?}"
    );
    // The answer that nobody waits for goes nowhere.
    let Some(Command::Add(n, reply)) = inbox.take() else {
        panic!("the command is lost")
    };
    reply.send(n);
}

/// Waits for another thread that is a moment away.
fn spin_until(reached: impl Fn() -> bool) {
    let mut turns = 0_u32;
    while !reached() {
        turns = turns.wrapping_add(1);
        match turns % 100 {
            0 => thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Posts a command at about the moment of an `arm`, at thousands of different offsets. Either the
/// worker sees the command and stays awake, or the sender sees it asleep and rings.
#[test]
fn a_command_posted_while_the_worker_arms_wakes_it_or_keeps_it_awake() {
    const ROUNDS: u64 = 20_000;
    const STOP: u64 = u64::MAX;
    // About a nanosecond each: up to what a post takes, in steps as fine as the race.
    let delay = |turns: u64| (0..turns).for_each(|n| _ = std::hint::black_box(n));
    let (round, posted) = (AtomicU64::new(0), AtomicU64::new(0));
    let (sender, mut inbox) = mailbox(4).unwrap();
    let mut lost = None;
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=ROUNDS {
                spin_until(|| round.load(Ordering::Acquire) >= n);
                if round.load(Ordering::Acquire) == STOP {
                    return;
                }
                sender.post(1, PATIENCE).unwrap();
                posted.store(n, Ordering::Release);
            }
        });
        for n in 1..=ROUNDS {
            round.store(n, Ordering::Release);
            delay(n * 7 % 512);
            let armed = inbox.arm();
            spin_until(|| posted.load(Ordering::Acquire) == n);
            // No assertion here: a panic would leave the other thread waiting for ever.
            if armed && !readable(&inbox) {
                lost = Some(n);
                break;
            }
            inbox.disarm();
            let _ = inbox.take();
        }
        round.store(STOP, Ordering::Release);
    });
    assert_eq!(lost, None, "asleep in that round, and nobody rang");
}

/// A worker as daemons have it: polls a little, then arms, sleeps and disarms.
fn run(mut inbox: Inbox<Command>, idle_turns: u32) -> (u64, u64) {
    let (mut total, mut sleeps) = (0, 0);
    let mut idle = 0;
    loop {
        match inbox.take() {
            Some(Command::Add(n, reply)) => {
                total += n;
                idle = 0;
                reply.send(total);
            }
            Some(Command::Panic(_reply)) => panic!("as ordered"),
            Some(Command::Stop) => return (total, sleeps),
            None if idle < idle_turns => idle += 1,
            None => {
                if inbox.arm() {
                    sleeps += 1;
                    // No timeout: a lost wake-up hangs here, and the callers' patience reports it.
                    poll(&mut [PollFd::new(&inbox, PollFlags::IN)], None).unwrap();
                    inbox.disarm();
                }
            }
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    const CALLERS: u64 = 3;
    const CALLS: u64 = 4_000;
    for idle_turns in [0, 20, 2_000] {
        let (sender, inbox) = mailbox(2).unwrap();
        let worker = thread::spawn(move || run(inbox, idle_turns));
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for _ in 0..CALLS {
                        sender
                            .call(|reply| Command::Add(1, reply), PATIENCE)
                            .unwrap();
                    }
                })
            })
            .collect();
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
        sender.post(Command::Stop, PATIENCE).unwrap();
        let (total, sleeps) = worker.join().unwrap();
        assert_eq!(total, CALLERS * CALLS);
        assert!(
            idle_turns > 0 || sleeps > 0,
            "the worker was to sleep and never did"
        );
    }
}

#[test]
fn callers_of_a_worker_that_panics_get_an_error() {
    let (sender, inbox) = mailbox(8).unwrap();
    let worker = thread::spawn(move || run(inbox, 0));
    let behind = {
        let sender = sender.clone();
        thread::spawn(move || {
            loop {
                if let Err(error) = sender.call(|reply| Command::Add(1, reply), PATIENCE) {
                    return error;
                }
            }
        })
    };
    assert_eq!(
        sender.call(Command::Panic, PATIENCE),
        Err(CallError::Dropped)
    );
    worker.join().unwrap_err();
    assert_eq!(
        sender.call(Command::Panic, PATIENCE),
        Err(CallError::Closed)
    );
    let error = behind.join().unwrap();
    assert!(
        matches!(error, CallError::Dropped | CallError::Closed),
        "{error}"
    );
}
