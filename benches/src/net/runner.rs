//! Runs rows: a fresh switch and fresh guests for every figure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::copy::Loop;
use super::latency::{self, Latency};
use super::plan::{CHECKSUM, Contender, Row};
use super::shape::Shape;
use super::switch::{Launcher, Membership, Switch};
use super::traffic::Generator;
use crate::cpu::{self, Watch};
use crate::idle::idle_share;
use crate::plan::{Effort, Entrant, Entry};
use crate::report::{Aside, Limit};
use crate::runner::{Figure, quietest};

/// Ports of the crowded switch.
const MANY: u16 = 64;
/// Time for a switch to go to sleep before it counts as idle.
const SETTLE: Duration = Duration::from_millis(500);
/// Idle CPU is taken over so many times the length of an ordinary measurement.
const IDLE_FACTOR: u32 = 5;
/// Part of the frames that a switch may drop under full load.
const LOSS: f64 = 0.01;

/// Everything a run needs.
#[derive(Debug)]
pub struct Runner {
    /// How switches start.
    pub launcher: Launcher,
    /// The processor of the generator.
    pub front: usize,
    /// Entries of each virtqueue.
    pub ring: u16,
    /// Load a word of each received buffer.
    pub touch: bool,
    /// How long.
    pub effort: Effort,
}

/// Whoever forwards.
enum Served {
    Here(#[expect(dead_code, reason = "it runs until it is dropped")] Loop),
    There(Switch),
}

impl Runner {
    /// The quietest of a few runs of `row` by `who`.
    pub fn measure(&self, row: &Row, who: Contender) -> Result<Figure> {
        quietest(|| self.once(row, who)).with_context(|| format!("{} {}", row.name(), who.name()))
    }

    fn once(&self, row: &Row, who: Contender) -> Result<Figure> {
        let (mut generator, served) = self.serve(row.shape(self.ring), &row.members(), who)?;
        generator.touch = self.touch;
        let pid = match &served {
            Served::Here(_) => None,
            Served::There(switch) => Some(switch.pid()),
        };
        cpu::on_cpu(self.front, || {
            generator.prime()?;
            generator.run(row.senders(), self.effort.warm_up())?;
            let watch = Watch::start(pid)?;
            let sample = generator.run(row.senders(), self.effort.duration())?;
            let noise = watch.stop(Duration::ZERO)?;
            ensure!(sample.astray == 0, "{} samples went astray", sample.astray);
            let lost = sample.lost as f64 / sample.frames.max(1) as f64;
            if lost.abs() > LOSS {
                eprintln!("{} {}: {:.1} % lost", row.name(), who.name(), lost * 100.0);
            }
            Ok(Figure::of(sample.frames, sample.rate(), noise))
        })?
    }

    fn serve(
        &self,
        shape: Shape,
        members: &[Membership],
        who: Contender,
    ) -> Result<(Generator, Served)> {
        let mut generator = Generator::new(shape)?;
        let served = if who == Contender::Copy {
            Served::Here(Loop::start(generator.ports(), self.launcher.cpu)?)
        } else {
            Served::There(self.launcher.start(who, &mut generator, members)?)
        };
        Ok((generator, served))
    }

    fn plain(&self, ports: u16, who: Contender) -> Result<(Generator, Served)> {
        let members = vec![Membership::None; ports.into()];
        self.serve(Shape::plain(ports, self.ring, 64 - CHECKSUM), &members, who)
    }

    /// Medians of as many runs as there are repetitions.
    fn median(&self, mut once: impl FnMut() -> Result<Latency>) -> Result<Latency> {
        let runs = (0..self.effort.reps)
            .map(|_| once())
            .collect::<Result<Vec<_>>>()?;
        let middle = |values: Vec<f64>| crate::report::median(values).context("no run");
        Ok(Latency {
            p50: middle(runs.iter().map(|run| run.p50).collect())?,
            p99: middle(runs.iter().map(|run| run.p99).collect())?,
        })
    }

    /// Ping-pong and light load.
    pub fn latency(&self, who: Contender) -> Result<Vec<Aside>> {
        let (mut generator, _served) = self.plain(2, who)?;
        let duration = self.effort.duration();
        let (ping, load, lost) = cpu::on_cpu(self.front, || {
            generator.prime()?;
            let ping = self.median(|| latency::ping_pong(&mut generator, duration))?;
            let runs = (0..self.effort.reps)
                .map(|_| latency::light_load(&mut generator, duration))
                .collect::<Result<Vec<_>>>()?;
            let lost = runs.iter().map(|run| run.lost_ppm).sum::<f64>() / runs.len() as f64;
            let mut runs = runs.iter().map(|run| Ok(run.latency));
            let load = self.median(|| runs.next().context("no run")?)?;
            Ok::<_, anyhow::Error>((ping, load, lost))
        })??;
        let most = |limit| Some(Limit::AtMost(limit));
        Ok(vec![
            aside("ping-pong p50", ping.p50, "us", most(1.4)),
            aside("ping-pong p99", ping.p99, "us", most(2.0)),
            aside("1 M/s one way p50", load.p50, "us", None),
            aside(
                "1 M/s one way p99",
                load.p99,
                "us",
                Some(Limit::Beats("testpmd")),
            ),
            aside("1 M/s one way lost", lost, "ppm", None),
        ])
    }

    /// Start, memory, idle CPU and wake-up.
    pub fn idle(&self, who: Contender) -> Result<Vec<Aside>> {
        let most = |limit| Some(Limit::AtMost(limit));
        let (start, wake, cpu) = self.idle_two(who)?;
        let mut asides = vec![
            aside("start to first frame", start, "ms", most(50.0)),
            aside("wake-up p50", wake.p50, "us", most(20.0)),
            aside("wake-up p99", wake.p99, "us", None),
            aside("idle CPU, 2 ports", cpu, "%", None),
        ];
        // The peers poll without end, and want memory for each port.
        if who == Contender::Vswitch {
            let back = self.launcher.cpu;
            let bare = cpu::on_cpu(self.front, || latency::bare_wake_up(back))??;
            asides.push(aside("a bare thread's wake-up p50", bare.p50, "us", None));
            let (memory, cpu) = self.idle_many(who)?;
            asides.push(aside("resident, 64 ports", memory, "MiB", most(30.0)));
            asides.push(aside("idle CPU, 64 ports", cpu, "%", most(0.5)));
        }
        Ok(asides)
    }

    fn idle_two(&self, who: Contender) -> Result<(f64, Latency, f64)> {
        let (mut generator, served) = self.plain(2, who)?;
        let Served::There(switch) = &served else {
            return Err(anyhow::anyhow!("{} is no process", who.name()));
        };
        latency::first_frame(&mut generator)?;
        let start = switch.begin.elapsed().as_secs_f64() * 1e3;
        let (wake, cpu) = cpu::on_cpu(self.front, || {
            generator.prime()?;
            let wake = latency::wake_up(&mut generator)?;
            std::thread::sleep(SETTLE);
            let cpu = idle_share(switch.pid(), self.effort.duration())?;
            Ok::<_, anyhow::Error>((wake, cpu))
        })??;
        Ok((start, wake, cpu))
    }

    fn idle_many(&self, who: Contender) -> Result<(f64, f64)> {
        let (mut generator, served) = self.plain(MANY, who)?;
        let Served::There(switch) = &served else {
            return Err(anyhow::anyhow!("{} is no process", who.name()));
        };
        let begin = Instant::now();
        generator.prime()?;
        eprintln!(
            "{} {MANY} ports: primed in {:?}",
            who.name(),
            begin.elapsed()
        );
        std::thread::sleep(SETTLE);
        let memory = cpu::resident(switch.pid())? as f64 / f64::from(1 << 20);
        let cpu = idle_share(switch.pid(), self.effort.duration() * IDLE_FACTOR)?;
        Ok((memory, cpu))
    }
}

fn aside(name: &'static str, value: f64, unit: &'static str, limit: Option<Limit>) -> Aside {
    Aside {
        name,
        value,
        unit,
        limit,
    }
}
