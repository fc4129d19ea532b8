//! The scheduler in a simulated worker: guests with work, costs drawn from a seed, time by hand.

use super::*;
use proptest::prelude::*;

/// Nanosecond cycles: a microsecond is a thousand.
const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const EPOCH: u64 = MS;
const BURST: u64 = 250 * US;

fn share(weight: u32, cap: Option<u32>) -> Share {
    let cap = cap.map(|percent| Cap::try_from(percent).unwrap());
    Share {
        weight: Weight::try_from(weight).unwrap(),
        cap,
    }
}

/// A guest behind an entity.
#[derive(Clone, Debug)]
struct Guest {
    id: EntityId,
    share: Share,
    /// Bursts that wait; `u64::MAX` for a guest that always has more.
    backlog: u64,
    /// What a burst costs, at most; at least a tenth of it.
    cost: u64,
    /// Its costs are known only after the pass.
    late: bool,
    /// Begin and end of each service.
    served: Vec<(u64, u64)>,
}

impl Guest {
    fn consumed(&self) -> u64 {
        self.served.iter().map(|(begin, end)| end - begin).sum()
    }

    /// The longest time it waited from `begin` on.
    fn longest_wait(&self, begin: u64, end: u64) -> u64 {
        let begins = self.served.iter().map(|s| s.0).chain([end]);
        let ends = [begin].into_iter().chain(self.served.iter().map(|s| s.1));
        begins
            .zip(ends)
            .map(|(begin, end)| begin.saturating_sub(end))
            .max()
            .unwrap_or(0)
    }
}

struct Sim {
    now: u64,
    sched: Scheduler,
    guests: Vec<Guest>,
    seed: u64,
}

impl Sim {
    fn new(seed: u64) -> Sim {
        let sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
        Sim {
            now: 0,
            sched,
            guests: Vec::new(),
            seed,
        }
    }

    /// Adds a guest without work; returns its place in `guests`.
    fn guest(&mut self, share: Share, cost: u64, late: bool) -> usize {
        let id = self.sched.add(share, Cycles(self.now)).unwrap();
        self.guests.push(Guest {
            id,
            share,
            backlog: 0,
            cost,
            late,
            served: Vec::new(),
        });
        self.guests.len() - 1
    }

    /// Adds a guest that always has work.
    fn saturating(&mut self, share: Share, cost: u64, late: bool) -> usize {
        let guest = self.guest(share, cost, late);
        self.work(guest, u64::MAX);
        guest
    }

    fn work(&mut self, guest: usize, bursts: u64) {
        self.guests[guest].backlog = self.guests[guest].backlog.saturating_add(bursts);
        self.sched.wake(self.guests[guest].id);
    }

    /// One pass, and the passing of the time it took. While idle, time moves on to the next
    /// release, at most to `limit`.
    fn step(&mut self, limit: u64) -> bool {
        let (mut time, mut late, mut served) = (self.now, Vec::new(), Vec::new());
        let (guests, seed) = (&mut self.guests, &mut self.seed);
        let worked = self.sched.pass(Cycles(self.now), |id| {
            let guest = guests
                .iter_mut()
                .find(|guest| guest.id == id)
                .expect("it was added");
            if guest.backlog == 0 {
                return Outcome::Idle;
            }
            guest.backlog -= u64::from(guest.backlog < u64::MAX);
            // Knuth's MMIX generator: the seed alone decides every cost.
            *seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let cost = guest.cost / 10 + (*seed >> 33) % (guest.cost - guest.cost / 10);
            guest.served.push((time, time + cost));
            served.push(id);
            time += cost;
            if guest.late {
                late.push((id, Cycles(cost)));
                return Outcome::Worked(Cycles::ZERO);
            }
            Outcome::Worked(Cycles(cost))
        });
        late.into_iter()
            .for_each(|(id, cost)| self.sched.charge(id, cost));
        served.sort_unstable();
        assert!(
            served.windows(2).all(|pair| pair[0] != pair[1]),
            "served twice in a pass"
        );
        if worked {
            self.now = time;
        } else {
            let may_run = |guest: &Guest| guest.backlog > 0 && guest.share.cap.is_none();
            assert!(
                !self.guests.iter().any(may_run),
                "idle at {time} though somebody has work"
            );
            let release = self
                .sched
                .next_release(Cycles(self.now))
                .map_or(limit, Cycles::get);
            assert!(
                release > self.now,
                "nobody was served, and nobody waits for a release"
            );
            self.now = release.min(limit);
        }
        worked
    }

    fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.step(end);
        }
    }

    /// Each of `guests` has got what its weight says, to within two epochs and two bursts.
    fn assert_fair(&self, guests: &[usize]) -> Result<(), TestCaseError> {
        let weights: u64 = guests
            .iter()
            .map(|&i| u64::from(self.guests[i].share.weight.get()))
            .sum();
        let total: u64 = guests.iter().map(|&i| self.guests[i].consumed()).sum();
        let slack = 2
            * (EPOCH
                + guests
                    .iter()
                    .map(|&i| self.guests[i].cost)
                    .max()
                    .unwrap_or(0));
        for guest in guests.iter().map(|&i| &self.guests[i]) {
            let due = total * u64::from(guest.share.weight.get()) / weights;
            let got = guest.consumed();
            prop_assert!(
                got.abs_diff(due) <= slack,
                "{got} instead of {due}: {:?}",
                guest.share
            );
        }
        Ok(())
    }
}

/// In every window, a guest with this cap got at most the cap's part of the window's length, of
/// [`CAP_BURST`] and of the time `others` take in a pass, and one burst.
fn assert_capped(guest: &Guest, percent: u64, others: u64) -> Result<(), TestCaseError> {
    let allowance = (BURST + others) * percent + 100 * guest.cost;
    // Hundredths consumed minus hundredths allowed since the beginning; its rise from an earlier
    // low, where a service begins, to a later high, where one ends, is a window's excess.
    let (mut consumed, mut low) = (0, i128::MAX);
    for &(begin, end) in &guest.served {
        low = low.min(consumed - i128::from(begin * percent));
        consumed += i128::from(100 * (end - begin));
        let excess = consumed - i128::from(end * percent) - low;
        prop_assert!(
            excess <= i128::from(allowance),
            "{excess} too much in a window to {end}"
        );
    }
    Ok(())
}

fn burst_cost() -> impl Strategy<Value = u64> {
    prop_oneof![US..10 * US, 10 * US..200 * US]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn two_saturating_guests_get_service_by_weight(
        seed: u64, weight in 1_u32..1000, costs in [burst_cost(), burst_cost()], late: [bool; 2]
    ) {
        let mut sim = Sim::new(seed);
        sim.saturating(share(2 * weight, None), costs[0], late[0]);
        sim.saturating(share(weight, None), costs[1], late[1]);
        sim.run_until(1_000 * MS);
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a second")]
        let ratio = sim.guests[0].consumed() as f64 / sim.guests[1].consumed() as f64;
        prop_assert!((1.96..=2.04).contains(&ratio), "{ratio}");
        sim.assert_fair(&[0, 1])?;
    }

    #[test]
    fn any_number_of_saturating_guests_get_service_by_weight(
        seed: u64,
        guests in prop::collection::vec((1_u32..=2000, burst_cost(), any::<bool>()), 1..24)
    ) {
        let mut sim = Sim::new(seed);
        for &(weight, cost, late) in &guests {
            sim.saturating(share(weight, None), cost, late);
        }
        sim.run_until(500 * MS);
        sim.assert_fair(&(0..guests.len()).collect::<Vec<_>>())?;
    }

    #[test]
    fn guests_that_leave_part_of_their_share_unused_do_not_distort_the_others(
        seed: u64, light in prop::collection::vec((1_u32..=65535, 1_u64..20), 1..8)
    ) {
        let mut sim = Sim::new(seed);
        sim.saturating(share(512, None), 50 * US, false);
        sim.saturating(share(256, None), 30 * US, true);
        for &(weight, _) in &light {
            sim.guest(share(weight, None), 10 * US, false);
        }
        for tick in 0..500 {
            for (i, &(_, every)) in light.iter().enumerate() {
                if tick % every == 0 {
                    sim.work(2 + i, 1);
                }
            }
            sim.run_until((tick + 1) * MS);
        }
        sim.assert_fair(&[0, 1])?;
    }

    #[test]
    fn nobody_starves(
        seed: u64, guests in prop::collection::vec((1_u32..=1000, burst_cost()), 2..12)
    ) {
        let mut sim = Sim::new(seed);
        for &(weight, cost) in &guests {
            sim.saturating(share(weight, None), cost, false);
        }
        sim.run_until(1_000 * MS);
        let weights: u64 = guests.iter().map(|g| u64::from(g.0)).sum();
        let everybody: u64 = guests.iter().map(|g| g.1).sum();
        for guest in &sim.guests {
            // Its own debt, paid at its share of the core; one epoch; a burst of each of the
            // others, and their debts when the epoch began.
            let own = guest.cost * weights / u64::from(guest.share.weight.get());
            let wait = guest.longest_wait(0, sim.now);
            let bound = own + EPOCH + 2 * everybody;
            prop_assert!(wait <= bound, "{wait}, more than {bound}: {:?}", guest.share);
        }
    }

    #[test]
    fn a_cap_holds_on_an_idle_core_and_is_reached(
        seed: u64, percent in 1_u32..100, cost in burst_cost(), late: bool
    ) {
        let mut sim = Sim::new(seed);
        sim.saturating(share(256, Some(percent)), cost, late);
        sim.run_until(1_000 * MS);
        assert_capped(&sim.guests[0], u64::from(percent), 0)?;
        let (got, due) = (sim.guests[0].consumed(), u64::from(percent) * 10 * MS);
        prop_assert!(got.abs_diff(due) <= BURST + cost, "{got} instead of {due}");
    }

    #[test]
    fn a_cap_holds_among_others_and_leaves_them_the_rest(
        seed: u64, percent in 1_u32..100, weight in 1_u32..65535,
        costs in [burst_cost(), burst_cost()]
    ) {
        let mut sim = Sim::new(seed);
        sim.saturating(share(weight, Some(percent)), costs[0], false);
        sim.saturating(share(256, None), costs[1], false);
        sim.run_until(500 * MS);
        assert_capped(&sim.guests[0], u64::from(percent), costs[1])?;
        let total = sim.guests[0].consumed() + sim.guests[1].consumed();
        prop_assert!(total >= 500 * MS, "the core idled, though one guest has no cap");
    }

    #[test]
    fn a_light_guest_that_wakes_is_served_in_the_next_pass(
        seed: u64, weights in prop::collection::vec(1_u32..=512, 1..10), costs in burst_cost()
    ) {
        let mut sim = Sim::new(seed);
        let light = sim.guest(share(512, None), 5 * US, false);
        for &weight in &weights {
            sim.saturating(share(weight, None), costs, false);
        }
        for wake in 0..200_u64 {
            sim.run_until((wake + 1) * MS);
            let before = sim.guests[light].served.len();
            sim.work(light, 1);
            sim.step(u64::MAX);
            prop_assert_eq!(sim.guests[light].served.len(), before + 1, "wake {}", wake);
        }
    }

    #[test]
    fn guests_come_and_go_and_change_and_nobody_is_forgotten(
        seed: u64,
        changes in prop::collection::vec(
            (0_u8..4, any::<prop::sample::Index>(), 1_u32..1000), 1..60
        )
    ) {
        let mut sim = Sim::new(seed);
        for (kind, index, weight) in changes {
            let some = (!sim.guests.is_empty()).then(|| index.index(sim.guests.len().max(1)));
            match (kind, some) {
                (0, Some(gone)) => {
                    let gone = sim.guests.swap_remove(gone);
                    sim.sched.remove(gone.id);
                }
                (1, Some(changed)) => {
                    let cap = (weight % 2 == 0).then_some(weight % 99 + 1);
                    sim.guests[changed].share = share(weight, cap);
                    let guest = &sim.guests[changed];
                    sim.sched.set_share(guest.id, guest.share, Cycles(sim.now));
                }
                (2, _) => _ = sim.guest(share(weight, None), 20 * US, false),
                _ => _ = sim.saturating(share(weight, None), 40 * US, weight % 3 == 0),
            }
            // The simulation itself checks that the core does not idle while somebody may run, and
            // that nobody is served who has gone.
            sim.run_until(sim.now + 5 * MS);
        }
        // From a clean slate, all that always have work are served by weight again.
        let (begin, mut fair) = (sim.now, Vec::new());
        for (i, guest) in sim.guests.iter_mut().enumerate() {
            guest.share.cap = None;
            guest.served.clear();
            sim.sched.set_share(guest.id, guest.share, Cycles(begin));
            if guest.backlog > 0 {
                fair.push(i);
            }
        }
        sim.run_until(begin + 300 * MS);
        sim.assert_fair(&fair)?;
    }
}

#[test]
fn a_cap_of_fifty_is_half_a_core_in_every_twenty_milliseconds() {
    let mut sim = Sim::new(7);
    sim.saturating(share(256, Some(50)), 50 * US, false);
    sim.run_until(1_000 * MS);
    let served = &sim.guests[0].served;
    for window in (0..980).map(|ms| ms * MS) {
        let within = |&(begin, end): &(u64, u64)| {
            end.min(window + 20 * MS).saturating_sub(begin.max(window))
        };
        let got: u64 = served.iter().map(within).sum();
        assert!(
            got <= 10 * MS + BURST / 2 + 50 * US,
            "{got} in the window from {window}"
        );
    }
}

#[test]
fn a_capped_guest_runs_in_stretches_not_burst_by_burst() {
    let mut sim = Sim::new(7);
    sim.saturating(share(256, Some(50)), 2 * US, false);
    sim.run_until(1_000 * MS);
    let pauses = sim.guests[0]
        .served
        .windows(2)
        .filter(|pair| pair[1].0 > pair[0].1)
        .count();
    // A pause refills half the account, at the cap's rate: half of its 250 µs of time.
    assert!((1..=8_000).contains(&pauses), "{pauses} pauses in a second");
}

#[test]
fn idle_guests_do_not_hoard() {
    let mut sim = Sim::new(1);
    let (busy, idle) = (
        sim.saturating(share(256, None), 20 * US, false),
        sim.guest(share(256, None), 20 * US, false),
    );
    sim.run_until(10_000 * MS);
    sim.work(idle, u64::MAX);
    let before = sim.guests[busy].consumed();
    sim.run_until(10_020 * MS);
    let (hoarder, other) = (
        sim.guests[idle].consumed(),
        sim.guests[busy].consumed() - before,
    );
    assert!(
        hoarder - other <= EPOCH + 40 * US,
        "{hoarder} against {other} after ten idle seconds"
    );
}

#[test]
fn whoever_overran_pays_back() {
    let mut sim = Sim::new(1);
    let (a, b) = (
        sim.saturating(share(256, None), 20 * US, false),
        sim.saturating(share(256, None), 20 * US, false),
    );
    sim.sched.charge(sim.guests[a].id, Cycles(10 * MS));
    sim.run_until(40 * MS);
    let (debtor, other) = (sim.guests[a].consumed() + 10 * MS, sim.guests[b].consumed());
    assert!(
        debtor.abs_diff(other) <= EPOCH + 40 * US,
        "{debtor} and {other}"
    );
}

#[test]
fn time_pays_debts_while_nobody_has_work() {
    let mut sim = Sim::new(1);
    let (a, b) = (
        sim.guest(share(256, None), 20 * US, false),
        sim.guest(share(256, None), 20 * US, false),
    );
    sim.sched.charge(sim.guests[a].id, Cycles(10 * MS));
    sim.step(30 * MS);
    sim.work(a, 1);
    sim.work(b, 1);
    sim.step(31 * MS);
    assert_eq!(
        sim.guests[a].served.len(),
        1,
        "served at once, though it had debts once"
    );
}

#[test]
fn debts_of_a_guest_that_paused_are_paid_by_the_time_it_wakes() {
    let mut sim = Sim::new(1);
    let (busy, paused) = (
        sim.saturating(share(256, None), 20 * US, false),
        sim.guest(share(256, None), 20 * US, false),
    );
    sim.sched.charge(sim.guests[paused].id, Cycles(10 * MS));
    sim.run_until(30 * MS);
    assert_eq!(sim.guests[busy].longest_wait(0, sim.now), 0);
    sim.work(paused, 1);
    sim.step(u64::MAX);
    assert_eq!(sim.guests[paused].served.len(), 1);
}

#[test]
fn many_that_wake_together_do_not_stall_the_others_for_long() {
    const OTHERS: u64 = 64;
    let mut sim = Sim::new(1);
    let busy = sim.saturating(share(1, None), 20 * US, false);
    for _ in 0..OTHERS {
        sim.guest(share(1, None), 20 * US, false);
    }
    sim.run_until(10_000 * MS);
    (1..=OTHERS).for_each(|guest| sim.work(usize::try_from(guest).unwrap(), u64::MAX));
    sim.run_until(10_100 * MS);
    let wait = sim.guests[busy].longest_wait(10_000 * MS, sim.now);
    // Each of the others' savings and debts, and a turn of everybody.
    assert!(wait <= EPOCH + 3 * OTHERS * 20 * US, "{wait}");
}

#[test]
fn a_stall_is_not_charged_for_ever() {
    let mut sim = Sim::new(1);
    let a = sim.saturating(share(256, Some(50)), 20 * US, false);
    sim.sched.charge(sim.guests[a].id, Cycles(3_600_000 * MS));
    assert_eq!(
        sim.sched
            .next_release(Cycles::ZERO)
            .map(|at| at.get() <= 201 * MS),
        Some(true)
    );
    assert_eq!(sim.sched.consumed(sim.guests[a].id), Cycles(3_600_000 * MS));
}

#[test]
fn idle_entities_are_not_asked() {
    let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
    let ids: Vec<_> = (0..256)
        .map(|_| sched.add(Share::default(), Cycles::ZERO).unwrap())
        .collect();
    let mut asked = Vec::new();
    let mut ask = |sched: &mut Scheduler| {
        asked.clear();
        let worked = sched.pass(Cycles(1), |id| {
            asked.push(id);
            Outcome::Idle
        });
        assert!(!worked);
        asked.len()
    };
    assert_eq!(ask(&mut sched), 0);
    sched.wake_all();
    assert_eq!((ask(&mut sched), ask(&mut sched)), (256, 0));
    sched.wake(ids[200]);
    sched.wake(ids[200]);
    assert_eq!((ask(&mut sched), ask(&mut sched)), (1, 0));
}

#[test]
fn passes_start_with_the_one_after_the_last_first() {
    let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
    for _ in 0..3 {
        sched.add(Share::default(), Cycles::ZERO).unwrap();
    }
    sched.wake_all();
    let mut order = Vec::new();
    for _ in 0..3 {
        sched.pass(Cycles(1), |id| {
            order.push(id.index());
            Outcome::Worked(Cycles::ZERO)
        });
    }
    assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
}

#[test]
fn unknown_entities_are_ignored_and_ids_are_reused() {
    let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
    let id = sched.add(Share::default(), Cycles::ZERO).unwrap();
    sched.charge(id, Cycles(5));
    sched.remove(id);
    sched.remove(id);
    sched.wake(id);
    sched.charge(id, Cycles(5));
    sched.set_share(id, Share::default(), Cycles::ZERO);
    assert!(!sched.pass(Cycles(1), |_| panic!("nobody is there")));
    assert_eq!(sched.add(Share::default(), Cycles::ZERO), Ok(id));
    assert_eq!(sched.consumed(id), Cycles::ZERO);
    for _ in 1..MAX_ENTITIES {
        sched.add(Share::default(), Cycles::ZERO).unwrap();
    }
    assert_eq!(
        sched.add(Share::default(), Cycles::ZERO),
        Err(SchedError::Full(MAX_ENTITIES))
    );
}

#[test]
fn load_is_busy_time_over_all_time() {
    let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles(100));
    let id = sched.add(Share::default(), Cycles(100)).unwrap();
    let earlier = sched.load(Cycles(100));
    sched.charge(id, Cycles(25));
    let load = sched.load(Cycles(200)).since(earlier);
    assert_eq!(
        load,
        Load {
            busy: Cycles(25),
            elapsed: Cycles(100)
        }
    );
    assert!((load.ratio() - 0.25).abs() < 1e-9);
    assert!(Load::default().ratio().abs() < 1e-9);
}

#[test]
fn who_dozes_is_not_asked_until_woken() {
    let mut sched = Scheduler::new(Rate::NANOSECONDS, Cycles::ZERO);
    let [a, b] = [0, 1].map(|_| sched.add(Share::default(), Cycles::ZERO).unwrap());
    let asked = |sched: &mut Scheduler| {
        let mut asked = Vec::new();
        sched.wake_all();
        sched.pass(Cycles(1), |id| {
            asked.push(id);
            Outcome::Idle
        });
        asked
    };
    sched.doze(b);
    assert_eq!(asked(&mut sched), [a]);
    sched.wake(b);
    assert_eq!(asked(&mut sched).len(), 2);
    assert_eq!(asked(&mut sched).len(), 2);
    // A new one under the number of one that dozed is awake.
    sched.doze(b);
    sched.remove(b);
    sched.add(Share::default(), Cycles::ZERO).unwrap();
    assert_eq!(asked(&mut sched).len(), 2);
}

#[test]
fn shares_out_of_range_are_named() {
    for weight in [0, 65_536] {
        assert_eq!(Weight::try_from(weight), Err(SchedError::Weight(weight)));
    }
    for cap in [0, 10_001, 70_000] {
        assert_eq!(Cap::try_from(cap), Err(SchedError::Cap(cap)));
    }
    assert_eq!(
        (
            Weight::DEFAULT.get(),
            Weight::default().to_string().as_str()
        ),
        (256, "256")
    );
    assert_eq!(
        Cap::try_from(10_000).map(|cap| cap.to_string()),
        Ok("10000%".to_owned())
    );
    assert!(SchedError::Cap(0).to_string().contains("1 to 10000"));
}
