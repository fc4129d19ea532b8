//! VFs for virtual machines: planned, applied, watched and leased.
//!
//! ```text
//! kernel ──scan──▶ Inventory ─┐
//!                             ├─ resolve ─▶ Target ─ plan (pure) ─▶ Plan ─ apply ─▶ kernel
//! file ────load──▶ Spec ──────┘
//! ```
//!
//! [`kernel`], [`netlink`] and [`nvme`] are the machine, [`inventory`] what is found there,
//! [`spec`] what is wanted, [`plan`](mod@plan) what follows from both. Only [`apply`](mod@apply)
//! and [`lease`] change the machine.

pub mod address;
pub mod apply;
pub mod attribute;
pub mod control;
pub mod doctor;
pub mod events;
pub mod inventory;
pub mod keeper;
pub mod kernel;
pub mod lease;
pub mod metrics;
pub mod netlink;
pub mod nvme;
pub mod plan;
pub mod serve;
pub mod spec;
pub mod target;
pub mod values;

#[cfg(test)]
mod model;
