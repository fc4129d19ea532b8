//! vhost-user-net back-end: an L2 switch for virtual machines.
//!
//! Frames move from the sender's buffers straight into the receivers': [`net`] and [`mac`] are what
//! stands in a frame, [`vlan`] what may pass where, [`discard`] why a frame went nowhere, [`port`]
//! what a port is, [`offload`] what the card of a real machine would do.

pub mod batch;
pub mod capture;
pub mod ctrl;
pub mod device;
pub mod discard;
pub mod egress;
pub mod fdb;
pub mod features;
mod flow;
pub mod guard;
pub mod head;
pub mod mac;
pub mod net;
pub mod offload;
pub mod plane;
pub mod port;
pub mod recent;
pub mod stats;
pub mod switch;
pub mod table;
pub mod vlan;
