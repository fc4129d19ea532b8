//! What a guest waits while its daemon is restarted or killed; see `towpath_benches::outage`.
//!
//! ```text
//! outage [--count N] [--dir DIRECTORY-OF-PROGRAMS]
//! ```

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use towpath_benches::outage::{End, Outages, disk, port};

/// What a guest waits while its daemon is restarted or killed.
#[derive(Debug, Parser)]
struct Options {
    /// Ends of each daemon, each way.
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Where `vblk` and `vswitch` are.
    #[arg(long, default_value = "target/release")]
    dir: PathBuf,
}

fn main() -> Result<()> {
    let Options { count, dir } = Options::parse();
    println!("| daemon | its end | outages | median, ms | p99, ms | longest, ms |");
    println!("|---|---|---|---|---|---|");
    for (end, how) in [(End::Planned, "planned restart"), (End::Killed, "kill -9")] {
        print("vblk", how, count, &disk(&dir.join("vblk"), end, count)?);
        print(
            "vswitch",
            how,
            count,
            &port(&dir.join("vswitch"), end, count)?,
        );
    }
    Ok(())
}

fn print(daemon: &str, how: &str, count: usize, outages: &Outages) {
    let ms = |percent| outages.at(percent).as_secs_f64() * 1e3;
    let (median, p99, longest) = (ms(50), ms(99), ms(100));
    println!("| {daemon} | {how} | {count} | {median:.1} | {p99:.1} | {longest:.1} |");
}
