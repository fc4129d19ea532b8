//! How a disk is, in a word.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DiskStatus;

/// How a disk is. Of several that hold, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Its storage cannot be opened yet.
    NotServed,
    /// FLUSH or everything fails until an operator clears it.
    Failed,
    /// Its connection ended the daemon too often and is not served.
    Quarantined,
    /// A ring of its connection is latched as broken.
    Broken,
    /// Requests wait for its storage to get better.
    Held,
    /// Something is wrong with its storage.
    Degraded,
    /// No front-end is connected.
    NoGuest,
    /// A front-end is connected, and nothing is wrong.
    Up,
}

impl DiskState {
    /// How `disk` is.
    #[must_use]
    pub fn of(disk: &DiskStatus) -> Self {
        let session = disk.session.as_ref();
        // What was opened has a size.
        if disk.size_bytes == 0 {
            Self::NotServed
        } else if disk.failed.is_some() {
            Self::Failed
        } else if session.is_some_and(|session| session.quarantined) {
            Self::Quarantined
        } else if session.is_some_and(|s| s.queues.iter().any(|ring| ring.broken.is_some())) {
            Self::Broken
        } else if disk.held > 0 {
            Self::Held
        } else if disk.trouble.is_some() {
            Self::Degraded
        } else if disk.connected {
            Self::Up
        } else {
            Self::NoGuest
        }
    }
}
