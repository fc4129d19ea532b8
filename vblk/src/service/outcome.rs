//! What came of what was asked, as the API shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use towpath_common::config::Name;

use super::RequestType;

/// A disk that has another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resized {
    /// What it had, in bytes.
    pub old_bytes: u64,
    /// What it has.
    pub new_bytes: u64,
    /// Whether a front-end was told; else it sees the size when it connects or asks.
    pub told: bool,
}

/// A snapshot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Size of the disk.
    pub bytes: u64,
    /// How long the disk was at rest, in microseconds.
    pub pause_us: u64,
    /// It is not complete yet.
    pub copying: bool,
}

/// A request that took long, and where its time went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlowRequest {
    /// The disk.
    pub disk: Name,
    /// The queue.
    pub queue: u16,
    /// What it was.
    pub kind: RequestType,
    /// First byte on the disk, of its last range if it has several.
    pub offset: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// What the storage said, zero if it did not fail.
    pub errno: i32,
    /// How long ago it completed, in ns.
    pub age_ns: u64,
    /// From fetched to notified.
    pub total_ns: u64,
    /// From fetched to submitted.
    pub queue_ns: u64,
    /// From submitted to completed.
    pub device_ns: u64,
    /// From completed to used.
    pub used_ns: u64,
    /// From used to notified; zero if the guest wanted no interrupt.
    pub notify_ns: u64,
}
