//! A plan carried out, step by step, as a whole or not at all.
//!
//! ```text
//! lock ─▶ finish what was left ─▶ scan, plan ─▶ journal: before, target
//!                                                   │
//!          ┌── for each step: journal, do, read back ┘
//!          ├─ all done: journal: applied
//!          ├─ one failed: scan, plan back to what was before, do that; journal: rolled back
//!          └─ one never returned: that PF is left alone from now on; the others go back
//! ```
//!
//! To go back is to plan and apply the state from before: the same code, with the same refusals. A
//! process that dies leaves the journal, and the next one to take the lock goes on to the target
//! if it can, or back if not.

mod journal;
mod state;
mod step;

use std::io;

use serde::{Deserialize, Serialize};

use crate::address::PciAddr;
use crate::inventory::{Inventory, scan};
use crate::kernel::{Machine, WriteError, link_name};
use crate::plan::{Action, Lack, Plan, Step, plan, plan_back};
use crate::target::Target;

pub use journal::{Entry, Journal, Unfinished};
pub use state::{Lock, LockError, Process, State, StateError};
pub use step::{StepError, carry_out};

/// A step on the way back that fails is tried again from a fresh look, so often: what failed may
/// have been the moment's. After that it is left to the next apply.
const BACK_TRIES: usize = 3;

/// How an apply ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// There was nothing to do.
    Nothing,
    /// Everything is as wanted.
    Applied {
        /// Steps that were carried out.
        steps: usize,
        /// What was done without, because a driver does not support it.
        #[serde(default)]
        lacks: Vec<Lack>,
    },
    /// A step failed; everything is as it was.
    RolledBack {
        /// The step, and why.
        failure: Failure,
    },
    /// A step failed, and going back did too. The next apply tries again.
    Stuck {
        /// The step, and why.
        failure: Failure,
        /// What stands in the way of going back.
        because: String,
    },
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Why.
    pub error: String,
    /// The process that is stuck in the write, if it never returned.
    pub wedged: Option<u32>,
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The lock is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine cannot be looked at.
    #[error("cannot look at the machine: {0}")]
    Scan(#[from] io::Error),
}

/// Carries out the steps of `plan`, which leads to `target`. The lock is held by the caller, who
/// has made the plan under it.
///
/// # Errors
/// [`ApplyError`] when nothing was begun, or the journal cannot be written.
pub fn apply(
    machine: Machine<'_>,
    state: &State,
    inventory: &Inventory,
    plan: &Plan,
    target: &Target,
) -> Result<Outcome, ApplyError> {
    let addresses = plan.pfs();
    if addresses.is_empty() {
        return Ok(Outcome::Nothing);
    }
    let before = Target::of(inventory, &addresses);
    let target = Target {
        pfs: target
            .pfs
            .iter()
            .filter(|pf| addresses.contains(&pf.address))
            .cloned()
            .collect(),
    };
    let mut journal = Journal::begin(state.journal(), &before, &target)?;
    let mut run = Run::new(machine, state, &target);
    run.lacks.clone_from(&plan.lacks);
    match run.all(&mut journal, &plan.steps)? {
        None => {
            journal.end("applied")?;
            let (steps, lacks) = (plan.steps.len() - run.skipped, run.lacks);
            Ok(Outcome::Applied { steps, lacks })
        }
        Some(failure) => back(machine, state, journal, &before, failure),
    }
}

/// Finishes what a process that died has begun: on to its target, or back. Returns a sentence about
/// it; `None` if there was nothing to finish. The lock is held by the caller.
///
/// # Errors
/// As [`apply`].
pub fn recover(machine: Machine<'_>, state: &State) -> Result<Option<String>, ApplyError> {
    let Some(Unfinished { before, target }) = Journal::unfinished(state.journal())? else {
        return Ok(None);
    };
    let mut journal = Journal::resume(state.journal())?;
    let inventory = scan(machine, &state.known()?)?;
    let target = present(&target, &inventory);
    let forward = plan(&inventory, &target);
    let mut run = Run::new(machine, state, &target);
    if forward.refusals.is_empty() && run.all(&mut journal, &forward.steps)?.is_none() {
        journal.end("finished")?;
        return Ok(Some("an apply that was interrupted is finished".to_owned()));
    }
    let inventory = scan(machine, &state.known()?)?;
    let before = present(&before, &inventory);
    let backward = plan_back(&inventory, &before);
    let mut run = Run::new(machine, state, &before);
    let failed = match backward.refusals.first() {
        Some(refusal) => Some(refusal.text.clone()),
        None => run.all(&mut journal, &backward.steps)?.map(|f| f.error),
    };
    Ok(Some(match failed {
        None => {
            journal.end("rolled back")?;
            "an apply that was interrupted is rolled back".to_owned()
        }
        Some(reason) => {
            format!("an apply that was interrupted can neither be finished nor undone: {reason}")
        }
    }))
}

/// What of `target` is there: a card that was pulled has nothing to become.
fn present(target: &Target, inventory: &Inventory) -> Target {
    let there = |address: PciAddr| inventory.pf(address).is_some();
    let pfs = target.pfs.iter().filter(|pf| there(pf.address)).cloned();
    Target { pfs: pfs.collect() }
}

/// Steps carried out on the way to a target, and what is done without.
pub(crate) struct Run<'a> {
    machine: Machine<'a>,
    state: &'a State,
    target: &'a Target,
    /// Each once.
    pub(crate) lacks: Vec<Lack>,
    skipped: usize,
}

impl<'a> Run<'a> {
    pub(crate) fn new(machine: Machine<'a>, state: &'a State, target: &'a Target) -> Self {
        Self {
            machine,
            state,
            target,
            lacks: Vec::new(),
            skipped: 0,
        }
    }

    /// What `step` sets, if its PF may be without it.
    fn optional(&self, step: &Step) -> Option<Lack> {
        let Action::Attribute { attribute, .. } = &step.action else {
            return None;
        };
        let (pf, key) = (step.pf, attribute.key());
        let target = self.target.pf(pf)?;
        (!target.requires(key)).then_some(Lack { pf, key })
    }

    /// Does one step; says whether it was done. What a driver lacks is not asked for twice, and
    /// remembered, so that the next plan does not ask either.
    pub(crate) fn one(&mut self, step: &Step) -> Result<Result<bool, StepError>, StateError> {
        let optional = self.optional(step);
        if optional.is_some_and(|lack| self.lacks.contains(&lack)) {
            return Ok(Ok(false));
        }
        match (carry_out(self.machine, step), optional) {
            (Err(StepError::Unsupported { .. }), Some(lack)) => {
                let driver = link_name(self.machine.kernel, &lack.pf.file("driver"));
                let driver = driver.unwrap_or_default();
                self.state.remember_lack(lack.pf, &driver, lack.key)?;
                self.lacks.push(lack);
                Ok(Ok(false))
            }
            (done, _) => Ok(done.map(|()| true)),
        }
    }

    /// The first failure, if there is one. A failing journal is an error: what is not written down
    /// is not done.
    fn all(
        &mut self,
        journal: &mut Journal,
        steps: &[Step],
    ) -> Result<Option<Failure>, ApplyError> {
        for (number, step) in steps.iter().enumerate() {
            journal.doing(number, step)?;
            match self.one(step)? {
                Ok(true) => journal.done(number)?,
                Ok(false) => {
                    self.skipped += 1;
                    journal.lacked(number)?;
                }
                Err(error) => return Ok(Some(failure(step, &error))),
            }
        }
        Ok(None)
    }
}

fn failure(step: &Step, error: &StepError) -> Failure {
    let wedged = match error {
        StepError::Write(WriteError::Wedged { writer }) => Some(*writer),
        _ => None,
    };
    Failure {
        step: step.clone(),
        error: error.to_string(),
        wedged,
    }
}

/// Goes back to `before`.
fn back(
    machine: Machine<'_>,
    state: &State,
    mut journal: Journal,
    before: &Target,
    failure: Failure,
) -> Result<Outcome, ApplyError> {
    if let Some(writer) = failure.wedged {
        state.remember_wedged(failure.step.pf, writer)?;
    }
    let (mut stuck, mut users) = (None, None);
    for _ in 0..BACK_TRIES {
        let inventory = scan(machine, &state.known()?)?;
        let pf = inventory.pf(failure.step.pf);
        users = pf.and_then(|pf| pf.users(|_| true));
        let mut before = present(before, &inventory);
        before
            .pfs
            .retain(|pf| failure.wedged.is_none() || pf.address != failure.step.pf);
        let backward = plan_back(&inventory, &before);
        if let Some(refusal) = backward.refusals.first() {
            stuck = Some(refusal.text.clone());
            break;
        }
        let mut run = Run::new(machine, state, &before);
        let failed = run.all(&mut journal, &backward.steps)?;
        let again = failed.as_ref().is_some_and(|one| one.wedged.is_none());
        stuck = failed.map(|failure| failure.error);
        if !again {
            break;
        }
    }
    match (stuck, failure.wedged) {
        (Some(because), _) => Ok(Outcome::Stuck { failure, because }),
        // Nobody can say what the write will have done once it returns.
        (None, Some(writer)) => {
            journal.end("wedged")?;
            let users = users.map_or(String::new(), |users| format!("; in use are {users}"));
            let because = format!(
                "process {writer} is stuck in the write; {} is left alone until it returns{users}",
                failure.step.pf
            );
            Ok(Outcome::Stuck { failure, because })
        }
        (None, None) => {
            journal.end("rolled back")?;
            Ok(Outcome::RolledBack { failure })
        }
    }
}

#[cfg(test)]
mod tests;
