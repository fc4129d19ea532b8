//! Why there is no lease, and how often what happened.

use std::io;

use towpath_common::config::Name;

use crate::address::PciAddr;
use crate::apply::{ApplyError, StateError, StepError};

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There is no such pool.
    #[error("there is no pool {0}; add a [[pool]] with that name, and VFs that name it")]
    NoPool(Name),
    /// The user may not.
    #[error(
        "user {uid} may not lease from {pool}: add \"user:{uid}\", or a group, to the pool's allow"
    )]
    Forbidden {
        /// The user.
        uid: u32,
        /// The pool.
        pool: Name,
    },
    /// All are taken.
    #[error("all {members} VFs of {pool} are in use, or none is there; see `sriov-manager scan`")]
    Exhausted {
        /// The pool.
        pool: Name,
        /// How many belong to it.
        members: usize,
    },
    /// The process to lease for is not there, or somebody else's.
    #[error("cannot lease for process {pid}: {source}")]
    Process {
        /// The process.
        pid: u32,
        /// What the kernel says.
        source: io::Error,
    },
    /// The VF must not be given away.
    #[error("{0}")]
    Refused(String),
    /// The VF does not become what it should.
    #[error("{vf}: {error}")]
    Step {
        /// The VF.
        vf: PciAddr,
        /// Why.
        error: StepError,
    },
    /// There is no such lease.
    #[error("{0} is not leased; see `sriov-manager lease list`")]
    NotLeased(PciAddr),
    /// Somebody has it open.
    #[error("{0}")]
    Held(String),
    /// The host is being changed, or cannot be.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] io::Error),
}

impl From<StateError> for LeaseError {
    fn from(error: StateError) -> Self {
        Self::Apply(error.into())
    }
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Leases granted.
    pub granted: u64,
    /// Requests refused.
    pub refused: u64,
    /// Leases that ended and whose VFs are free again.
    pub ended: u64,
    /// Attempts to free a VF that failed.
    pub failed: u64,
    /// Leases whose card was pulled.
    pub lost: u64,
}
