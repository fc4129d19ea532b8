//! vhost-user-net back-end: an L2 switch for virtual machines.
//!
//! Frames move from the sender's buffers straight into the receivers': [`net`] and [`mac`] are what
//! stands in a frame, [`vlan`] what may pass where, [`discard`] why a frame went nowhere, [`port`]
//! what a port is.

pub mod config;
pub mod discard;
pub mod mac;
pub mod net;
pub mod port;
pub mod serve;
pub mod service;
pub mod vlan;
