//! vhost-user-blk back-end: disks on files and devices for virtual machines.
//!
//! [`config`] says what to serve, [`service`] is the boundary to the data plane, [`serve`] keeps
//! the two together for the life of the daemon, [`control`] and [`metrics`] show it to the world.
//! Behind the boundary, [`host`] runs disks ([`device`]) on workers ([`plane`], [`queue`]), which
//! check requests ([`request`]) and carry them out ([`io`], [`engine`]) on disks ([`disk`]) of any
//! kind of storage ([`storage`]). [`backup`] copies disks while they are served.

pub mod backup;
pub mod config;
pub mod control;
pub mod device;
pub mod disk;
pub mod engine;
pub mod events;
pub mod features;
pub mod host;
pub mod image;
pub mod io;
mod keeper;
pub mod metrics;
pub mod mirror;
mod monitor;
pub mod mortal;
mod pause;
pub mod plane;
pub mod policy;
pub mod qos;
pub mod queue;
pub mod request;
pub mod resident;
mod resize;
pub mod sandbox;
pub mod serve;
pub mod service;
pub mod settings;
pub mod slot;
pub mod slow;
mod snapshot;
pub mod stages;
pub mod stats;
mod status;
pub mod storage;
mod tune;

#[cfg(any(test, feature = "testing"))]
pub mod fake;
#[cfg(test)]
mod testing;
