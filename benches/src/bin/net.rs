//! `make bench`, net part (work in progress).
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use towpath_benches::cpu;
use towpath_benches::net::plan::Contender;
use towpath_benches::net::port::Shape;
use towpath_benches::net::switch::{Launcher, Membership};
use towpath_benches::net::traffic::Generator;

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value = "testpmd")]
    with: String,
    #[arg(long, default_value_t = 64)]
    size: usize,
    #[arg(long, default_value_t = 1024)]
    ring: u16,
    #[arg(long, default_value_t = 2)]
    ports: u16,
    #[arg(long, default_value_t = 1)]
    stations: u32,
    #[arg(long, default_value_t = 2)]
    senders: usize,
    #[arg(long)]
    touch: bool,
    #[arg(long)]
    mirror: bool,
    #[arg(long)]
    segmented: bool,
    #[arg(long)]
    no_huge: bool,
    #[arg(long, default_value_t = 3)]
    reps: usize,
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

fn main() -> Result<()> {
    let o = Options::parse();
    let who = Contender::ALL
        .into_iter()
        .find(|c| c.name() == o.with)
        .ok_or(anyhow::anyhow!("who"))?;
    let launcher = Launcher {
        vswitch: "target/release/vswitch".into(),
        vswitch_args: vec![],
        cpu: 1,
        huge: !o.no_huge,
    };
    let mut shape = Shape::plain(o.ports, o.ring, o.size);
    shape.stations = o.stations;
    if o.segmented {
        shape.segmented = true;
        shape.size = towpath_benches::net::frame::LARGEST;
    }
    let mut generator = Generator::new(shape)?;
    generator.touch = o.touch;
    let members = vec![Membership::None; o.ports.into()];
    if o.mirror {
        let filled = generator.shape().filled(0) as u32;
        let _l = towpath_benches::net::mirror::Mirror::start(generator.ports(), filled, 1)?;
        return cpu::on_cpu(0, || {
            for _ in 0..o.reps {
                let s = generator.run(o.senders, Duration::from_secs_f64(o.seconds))?;
                println!(
                    "{:.2} M/s lost {} astray {}",
                    s.rate() / 1e6,
                    s.lost,
                    s.astray
                );
            }
            Ok::<_, anyhow::Error>(())
        })?;
    }
    if who == Contender::Copy {
        let _l = towpath_benches::net::copy::Loop::start(generator.ports(), 1)?;
        return cpu::on_cpu(0, || {
            generator.prime()?;
            for _ in 0..o.reps {
                let watch = cpu::Watch::start(None)?;
                let s = generator.run(o.senders, Duration::from_secs_f64(o.seconds))?;
                let noise = watch.stop(Duration::ZERO)?;
                println!(
                    "{:.2} M/s {:.1} Gb/s lost {} astray {} {noise:?}",
                    s.rate() / 1e6,
                    s.bytes as f64 * 8e-9 / s.time.as_secs_f64(),
                    s.lost,
                    s.astray
                );
            }
            Ok::<_, anyhow::Error>(())
        })?;
    }
    let switch = launcher.start(who, &mut generator, &members)?;
    println!(
        "attached after {:?}, features {:#x}",
        switch.begin.elapsed(),
        generator.ports()[0].features()
    );
    cpu::on_cpu(0, || {
        generator.prime()?;
        println!("primed after {:?}", switch.begin.elapsed());
        for _ in 0..o.reps {
            let watch = cpu::Watch::start(Some(switch.pid()))?;
            let s = generator.run(o.senders, Duration::from_secs_f64(o.seconds))?;
            let noise = watch.stop(Duration::ZERO)?;
            println!(
                "{:.2} M/s {:.1} Gb/s lost {} astray {} {noise:?}",
                s.rate() / 1e6,
                s.bytes as f64 * 8e-9 / s.time.as_secs_f64(),
                s.lost,
                s.astray
            );
        }
        Ok::<_, anyhow::Error>(())
    })??;
    Ok(())
}
