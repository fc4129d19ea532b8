//! Events of vblk, as operators know them: see [`towpath_common::logging::events`].

use towpath_common::events;

events! {
    /// The storage failed requests.
    REQUESTS_FAILED "requests_failed" "1ae0610746fe48919364f0b0e4a3cc95";
    /// The storage failed requests, which are held and tried again.
    REQUESTS_HELD "requests_held" "bf3970a8a2284f8692d82fd85fbcb8b2";
    /// An operator took what failed as repaired.
    FAILURES_CLEARED "failures_cleared" "bc6b946bc09f451b8a314c87892a680c";
    /// A disk has another size.
    RESIZED "resized" "36c7db9c9b52494d94b6cd695dd3ffce";
    /// A snapshot was taken.
    SNAPSHOT_TAKEN "snapshot_taken" "427cfad24efe4399a7f453e89ad6d686";
    /// A backup, or a copy, is complete.
    BACKUP_DONE "backup_done" "44a43ecbfc1b44c9a77361f9c6af4a04";
    /// A backup, or a copy, was given up.
    BACKUP_FAILED "backup_failed" "2cdb2acec68d4d4083b1f8f184d87f30";
    /// A queue ended with data that the storage did not take.
    DATA_LOST "data_lost" "22b1a5534581420686222cd02abe4506";
    /// A connection to storage was lost.
    STORAGE_LOST "storage_lost" "72ea6c3592ed406bb4386eafb277af2b";
}
