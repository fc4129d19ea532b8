//! What the programs that compare contenders are told in the same words.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::plan::Effort;

/// How long, how often, and where.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Only the row of this name, or rows whose names contain it (may be given several times);
    /// `--list` shows them all.
    #[arg(long)]
    pub only: Vec<String>,
    /// Print the names of all rows and stop.
    #[arg(long)]
    pub list: bool,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 5)]
    pub reps: usize,
    /// One short repetition: does everything work?
    #[arg(long)]
    pub quick: bool,
    /// Processor of the load generator.
    #[arg(long, default_value_t = 0)]
    pub front_cpu: usize,
    /// Processor of what is measured.
    #[arg(long, default_value_t = 1)]
    pub back_cpu: usize,
}

impl Common {
    /// How long and how often.
    ///
    /// # Errors
    /// If that is never.
    pub fn effort(&self) -> Result<Effort> {
        ensure!(
            self.seconds > 0.0 && self.reps > 0,
            "--seconds and --reps must be positive"
        );
        Ok(if self.quick {
            Effort {
                seconds: self.seconds.min(0.2),
                reps: 1,
            }
        } else {
            Effort {
                seconds: self.seconds,
                reps: self.reps,
            }
        })
    }
}

impl Common {
    /// Whether `name`, one of `all`, is to be measured.
    #[must_use]
    pub fn wants(&self, name: &str, all: &[&str]) -> bool {
        let hit = |part: &String| {
            if all.contains(&part.as_str()) {
                name == part
            } else {
                name.contains(part.as_str())
            }
        };
        self.only.is_empty() || self.only.iter().any(hit)
    }
}

/// The program `name`, which was built together with this one.
///
/// # Errors
/// If it is not known where this one is.
pub fn beside(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("current_exe")?;
    Ok(this.with_file_name(name))
}

/// Writes a report for machines, and says where.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    eprintln!("every sample is in {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        common: Common,
    }

    #[test]
    fn a_row_is_chosen_by_its_name_or_a_part_of_it() {
        let all = ["read/1", "read/128", "write/1"];
        let chosen = |only: &str| {
            let common = Program::parse_from(["program", "--only", only]).common;
            let chosen = all.into_iter().filter(|name| common.wants(name, &all));
            chosen.collect::<Vec<_>>()
        };
        assert_eq!(chosen("read/1"), ["read/1"]);
        assert_eq!(chosen("read"), ["read/1", "read/128"]);
        assert!(chosen("trim").is_empty());
    }

    #[test]
    fn a_quick_run_is_short_and_no_run_is_an_error() {
        let effort = |words: &[&str]| {
            let words = [&["program"], words].concat();
            Program::parse_from(words).common.effort()
        };
        assert_eq!(effort(&[]).unwrap().reps, 5);
        let quick = effort(&["--quick", "--reps", "9"]).unwrap();
        assert!(quick.reps == 1 && quick.seconds <= 0.2);
        assert!(effort(&["--reps", "0"]).is_err());
    }
}
