//! What an operator may wait for: events with identifiers that never change.
//!
//! An event's name stands in the metadata of its `tracing` call (`info!(name: SERVING, …)`), so it
//! costs a line on a terminal nothing; in the journal it becomes `MESSAGE_ID=` and
//! `TOWPATH_EVENT=`. `journalctl MESSAGE_ID=…` finds it, and `journalctl --catalog` explains it
//! from `systemd/towpath.catalog`. Words, fields and levels of a message may change; its identifier
//! means the same for ever, and is not used again when the event is no more.
//! `tests/tests/events.rs` holds code, tables and catalogue together.

/// Something that happens, by name and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// As in `TOWPATH_EVENT=`.
    pub name: &'static str,
    /// 128 bits in hexadecimal digits, as in `MESSAGE_ID=`.
    pub id: &'static str,
}

/// Defines a table of [`Event`]s: a constant for each name, all of them in `EVENTS`.
#[macro_export]
macro_rules! events {
    ($($(#[$attribute:meta])* $constant:ident $name:literal $id:literal;)*) => {
        $($(#[$attribute])* pub const $constant: &str = $name;)*
        /// Every event of the table.
        pub const EVENTS: &[$crate::logging::events::Event] = &[
            $($crate::logging::events::Event { name: $name, id: $id }),*
        ];
    };
}

events! {
    /// The daemon has started: every socket listens.
    SERVING "serving" "10ca3bc0115b49ab89f7004cdc82d332";
    /// It was told to stop, and completes what is in flight.
    STOPPING "stopping" "2f7bc77d9be248e69091502ca58488b4";
    /// It has stopped as it was told to.
    STOPPED "stopped" "ddd6450370534299b3837b81d1e55c49";
    /// A changed configuration is in force.
    RELOADED "reloaded" "48c4045358b24bddab1106e6ed246d2b";
    /// A changed configuration was refused as a whole.
    RELOAD_REFUSED "reload_refused" "2286ff9da376408b9b14be28780cc750";
    /// The file cannot be read at a start after a crash; what was in force before is.
    CONFIG_BROKEN "config_broken" "105db9512efd4ec1a20046e6a5570599";
    /// A virtual machine has connected.
    SESSION_ATTACHED "session_attached" "0636e49bf7eb4201bf4bf4582e0dd88e";
    /// A virtual machine has disconnected.
    SESSION_DETACHED "session_detached" "33e1338525e6426fa3bc65eb9ea661f5";
    /// The daemon has ended a virtual machine's session.
    SESSION_ENDED "session_ended" "db282e496dd547f1bebf3455027d448b";
    /// A session goes on after a restart of the daemon.
    SESSION_RESUMED "session_resumed" "27285d616cbc454a9107c100d8a38534";
    /// A session could not go on after a restart of the daemon.
    SESSION_LOST "session_lost" "ddb0115e08884825a013e36baf321962";
    /// A session would not outlive a restart of the daemon.
    SESSION_NOT_KEPT "session_not_kept" "9b25cc4b247d461b8c312ca50c04b26d";
    /// A session over which the daemon crashed is held and not served.
    QUARANTINED "quarantined" "9e0eadd757bf44e495c3222fedfeace9";
    /// Such a session is tried again.
    QUARANTINE_ENDED "quarantine_ended" "0502d2588de94f98baf7d4bcb8ff1e9f";
    /// A listening socket was lost in a restart, and cannot be bound again.
    SOCKET_LOST "socket_lost" "155e9a48ee27405dbf3fa216ed6189c7";
    /// It is bound again.
    SOCKET_BACK "socket_back" "d4337451b2de49ba9390f0b2c52546c9";
    /// A driver broke the rules of its ring, which is stopped.
    RING_BROKEN "ring_broken" "a7eb8a4be7084de4a1c7bc6771198371";
    /// A worker makes no progress.
    WORKER_STALLED "worker_stalled" "67462fd684574c118dfad6b97efd828a";
    /// A worker is gone, and the daemon ends for it.
    WORKER_DIED "worker_died" "822fccb6e01f4b019a733c82bdb51356";
    /// The daemon ended, and its keeper starts it again.
    DAEMON_ENDED "daemon_ended" "d6ba466c8a194f1e8527e21bda1faeb0";
    /// The daemon hangs, and its keeper ends it.
    DAEMON_HANGS "daemon_hangs" "72b34c7d11da42a78bd9a8e51e6412d4";
    /// The daemon runs with more rights than it should.
    NOT_CONFINED "not_confined" "291544ef01984733904744234965d564";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_constants_are_the_same_words() {
        assert_eq!(SERVING, "serving");
        assert_eq!(EVENTS[0].name, SERVING);
    }
}
