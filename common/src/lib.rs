//! What towpath's daemons share, from the bottom up: guest memory ([`mem`]), descriptor chains
//! ([`chain`]), virtqueues ([`ring`]), vhost-user connections ([`session`]), polling threads
//! ([`worker`], [`sched`], [`mailbox`]), state that outlives the process ([`keep`]), and the
//! control plane ([`config`], [`control`], [`stats`], [`notify`], [`logging`], [`cli`],
//! [`attach`], `top`), what a daemon gives up ([`sandbox`]), what stations are called ([`mac`]),
//! and what controllers are told ([`nvme`]).

pub mod attach;
pub mod bell;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod keep;
pub mod lease;
pub mod limits;
pub mod logging;
pub mod mac;
pub mod mailbox;
pub mod mem;
pub mod notify;
pub mod nvme;
pub mod qmp;
pub mod ring;
pub mod sandbox;
pub mod sched;
pub mod session;
pub mod stats;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "top")]
pub mod top;
pub mod worker;
