//! Tests of sessions: real sockets, the in-process guest in front, echo devices on a real worker
//! behind. Each file below is one subject; hostile front-ends are in `tests/hostile.rs`, which
//! needs a process of its own to count its file descriptors.

use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq as Request;

use super::{Endpoint, Mode, Server};
use crate::testing::bed::{Bed, Guest, SOON, eventually, everything};
use crate::testing::echo::{Echo, Host};
use crate::testing::{
    Driver, Form, Frontend, GuestMemory, RawFrontend, Segment, SplitDriver, feature,
};
use crate::worker::Idle;

mod connections;
mod inflight;
mod keep;
mod kept;
mod memory;
mod migration;
mod network;
mod states;
