//! How a port is, in a word.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attachment, PortStatus};

/// How a port is. Of several that hold, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// Its connection ended the daemon too often and is not served.
    Quarantined,
    /// A ring of its connection is latched as broken.
    Broken,
    /// No front-end is connected.
    NoGuest,
    /// A front-end is connected, but its driver has enabled no ring.
    NoLink,
    /// The interface of an uplink cannot be used.
    Down,
    /// Frames can pass.
    Up,
}

impl PortState {
    /// How `port` is.
    #[must_use]
    pub fn of(port: &PortStatus) -> Self {
        let session = port.session.as_ref();
        let uplink = matches!(port.attachment, Attachment::Tap { .. });
        if session.is_some_and(|session| session.quarantined) {
            Self::Quarantined
        } else if session.is_some_and(|s| s.rings.iter().any(|ring| ring.broken.is_some())) {
            Self::Broken
        } else if port.link {
            Self::Up
        } else if uplink {
            Self::Down
        } else if port.connected {
            Self::NoLink
        } else {
            Self::NoGuest
        }
    }
}
