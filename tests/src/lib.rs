//! Harness for end-to-end scenarios: real daemons, real virtual machines, real sockets.
//!
//! A scenario starts a daemon ([`daemon`]), boots a QEMU guest on its sockets ([`vm`]), follows
//! what the guest prints ([`lines`]), and compares the host's file with what the guest was told
//! ([`records`]). Everything a scenario starts dies with the value that stands for it, also when
//! the test fails half way.
//!
//! Nothing here is skipped in silence: without QEMU or the guest kernel a scenario fails and says
//! `make packages`.

pub mod accel;
pub mod api;
pub mod cargo;
pub mod cpio;
pub mod daemon;
pub mod debian;
pub mod fuse;
pub mod guest;
pub mod initramfs;
pub mod lines;
pub mod mounted;
pub mod nbd;
pub mod netns;
pub mod paths;
pub mod process;
pub use towpath_common::qmp;
pub mod records;
pub mod talk;
pub mod testpmd;
pub mod vm;
