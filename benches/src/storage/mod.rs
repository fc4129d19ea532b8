//! What each kind of storage costs: the same requests through vblk and by `io_uring` straight to
//! where the bytes lie.
//!
//! [`plan`] names rows and goals, [`scene`] makes loop devices, a file system, an NBD server and a
//! mirror's record, [`volumes`] logical volumes, [`runner`] measures a row by one contender,
//! [`crowd`] many disks on one worker, [`guest`] rows that this kernel is not made for.

pub mod crowd;
pub mod guest;
pub mod plan;
pub mod runner;
pub mod scene;
pub mod volumes;
