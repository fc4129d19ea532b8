//! The commands that need no daemon: they look at this host, and change it under the lock.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sriov_manager::apply::{self, Outcome, State};
use sriov_manager::doctor::{self, Verdict};
use sriov_manager::inventory::{self, Inventory};
use sriov_manager::kernel::{Machine, Sysfs, Writer};
use sriov_manager::plan::Plan;
use sriov_manager::spec::{DEFAULT_STATE, Spec};
use towpath_common::control::Answer;
use towpath_common::control::print::print;

use crate::cli::Source;
use crate::report;

const CHANGES: u8 = 3;
const REFUSED: u8 = 4;

/// A plan, and how it ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// What was planned.
    pub(crate) plan: Plan,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// What was left from before.
    pub(crate) recovered: Option<String>,
}

/// The running kernel's files; writes are given up after the deadline of `spec`.
fn sysfs(writer: impl FnOnce(Writer) -> Writer) -> Result<Sysfs> {
    let program = std::env::current_exe().context("no path of this program")?;
    Ok(Sysfs::new("/", writer(Writer::new(program))))
}

fn look(kernel: &Sysfs, state: &State) -> Result<Inventory> {
    let machine = Machine::running(kernel);
    let known = state.known().unwrap_or_default();
    inventory::scan(machine, &known).context("cannot look at this host")
}

/// `scan`. A configuration is read only for where the state is.
pub(crate) fn scan(source: &Source, json: bool, out: &mut impl Write) -> Result<ExitCode> {
    let dir = Spec::load(&source.config).map(|spec| spec.daemon.state);
    let state = State::look(&dir.unwrap_or_else(|_| DEFAULT_STATE.into()));
    let inventory = look(&sysfs(|writer| writer)?, &state)?;
    let description = format!("{} PFs", inventory.pfs.len());
    print(
        &Answer::success(description, inventory),
        json,
        out,
        report::inventory,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// `plan`.
pub(crate) fn plan(source: &Source, json: bool, out: &mut impl Write) -> Result<ExitCode> {
    let spec = Spec::load(&source.config)?;
    let state = State::look(&spec.daemon.state);
    let inventory = look(&sysfs(|writer| writer)?, &state)?;
    let (plan, _) = Plan::make(&inventory, &spec);
    let code = match (plan.refusals.is_empty(), plan.steps.is_empty()) {
        (false, _) => ExitCode::from(REFUSED),
        (true, false) => ExitCode::from(CHANGES),
        (true, true) => ExitCode::SUCCESS,
    };
    let description = report::summary(&plan);
    let text = |plan: &Plan| report::plan(plan, &inventory);
    print(&Answer::success(description, plan), json, out, text)?;
    Ok(code)
}

/// `apply`.
pub(crate) fn apply(
    source: &Source,
    partial: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitCode> {
    let spec = Spec::load(&source.config)?;
    let state = State::open(&spec.daemon.state)?;
    let lock = state.lock()?;
    let shared = lock.share().context("no descriptors left")?;
    let kernel = sysfs(|writer| writer.deadline(spec.daemon.deadline()).hold(shared))?;
    let machine = Machine::running(&kernel);
    let recovered = apply::recover(machine, &state)?;
    let inventory = look(&kernel, &state)?;
    let (plan, target) = Plan::make(&inventory, &spec);
    let refused = !plan.refusals.is_empty();
    let outcome = if refused && !partial {
        Outcome::Nothing
    } else {
        apply::apply(machine, &state, &inventory, &plan, &target)?
    };
    let code = match &outcome {
        Outcome::RolledBack { .. } | Outcome::Stuck { .. } => ExitCode::FAILURE,
        _ if refused => ExitCode::from(REFUSED),
        _ => ExitCode::SUCCESS,
    };
    let applied = Applied {
        plan,
        outcome,
        recovered,
    };
    let description = report::outcome(&applied);
    let text = |applied: &Applied| report::applied(applied, &inventory);
    print(&Answer::success(description, applied), json, out, text)?;
    Ok(code)
}

/// `doctor`. The exit code says whether VFs can be given to machines.
pub(crate) fn doctor(source: &Source, json: bool, out: &mut impl Write) -> Result<ExitCode> {
    let dir = Spec::load(&source.config).map(|spec| spec.daemon.state);
    let state = State::look(&dir.unwrap_or_else(|_| DEFAULT_STATE.into()));
    let kernel = sysfs(|writer| writer)?;
    let findings = doctor::examine(&kernel, &look(&kernel, &state)?);
    let bad = findings
        .iter()
        .filter(|one| one.verdict == Verdict::Bad)
        .count();
    let description = format!("{} findings, {bad} bad", findings.len());
    let answer = Answer::success(description, findings);
    print(&answer, json, out, |findings| report::findings(findings))?;
    Ok(if bad > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// `check`.
pub(crate) fn check(source: &Source, json: bool, out: &mut impl Write) -> Result<ExitCode> {
    let spec = Spec::load(&source.config)?;
    let description = format!("valid: {} PFs, {} pools", spec.pfs.len(), spec.pools.len());
    let answer = Answer::success(description.clone(), spec);
    print(&answer, json, out, |_| format!("{description}\n"))?;
    Ok(ExitCode::SUCCESS)
}
