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
    /// A disk of a mirror failed, and the mirror goes on without it.
    MIRROR_DISK_FAILED "mirror_disk_failed" "d2927cb7d1f845e19854aa7347534096";
    /// A disk of a mirror has everything again.
    MIRROR_DISK_CURRENT "mirror_disk_current" "2b78806691f542b99bb8d33dd1c09f79";
    /// A server went away with writes that were not flushed.
    WRITES_DOUBTFUL "writes_doubtful" "793e757c4b794ff1ac9d4154f208098f";
    /// A disk that was used past its file system or device-mapper is used through it.
    MAP_BROKEN "map_broken" "5e7baf309b204bd2a500253c5ee43cb2";
    /// A disk that was served before cannot be opened, and is left out.
    DISK_ABSENT "disk_absent" "2256ba6916d34b59a9ee2da3a7457104";
    /// Such a disk was opened at last.
    DISK_BACK "disk_back" "b5d8a63818444209808171b13b1428af";
}
