//! vhost-user-net back-end: an L2 switch for virtual machines.
//!
//! Frames move from the sender's buffers straight into the receivers': [`net`] and [`mac`] are what
//! stands in a frame, [`vlan`] what may pass where, [`discard`] why a frame went nowhere, [`port`]
//! what a port is, [`offload`] what the card of a real machine would do.

pub mod capture;
pub mod discard;
pub mod mac;
pub mod mirror;
pub mod net;
pub mod offload;
pub mod port;
pub mod recent;
pub mod table;
pub mod vlan;
pub mod why;
