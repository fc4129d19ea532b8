//! vhost-user-net back-end: an L2 switch for virtual machines.
//!
//! [`config`] says what to serve, [`service`] is the boundary to the data plane, [`serve`] keeps
//! the two together for the life of the daemon. Behind the boundary, [`host`] runs ports
//! ([`device`]) on workers ([`plane`]), each with its [`switch`]: frames move from the sender's
//! buffers straight into the receivers' ([`egress`], [`port`]). [`net`] and [`mac`] are what stands
//! in a frame, [`vlan`] what may pass where, [`fdb`] who is where, [`guard`] what a port may send,
//! [`discard`] why a frame went nowhere, [`offload`] what the card of a real machine would do,
//! [`capture`] and [`recent`] what can be seen of it.

pub mod batch;
pub mod capture;
pub mod config;
pub mod control;
pub mod ctrl;
pub mod device;
pub mod discard;
pub mod egress;
pub mod events;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod fdb;
pub mod features;
mod flow;
pub mod guard;
pub mod head;
pub mod host;
pub mod metrics;
pub mod mirror;
mod monitor;
pub mod net;
pub mod offload;
pub mod plane;
pub mod port;
pub mod recent;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod stats;
mod status;
pub mod switch;
pub mod table;
pub mod vlan;
pub mod why;

pub use towpath_common::mac;
