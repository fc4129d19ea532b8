//! The control API: HTTP/JSON on a unix socket, the same for every daemon.
//!
//! ```text
//! vblk disk list ─┐                         control thread (one, current_thread runtime)
//! curl ───────────┼─▶ /run/towpath/X.sock ─▶ server ─▶ routes of the daemon ─▶ Answer<T>
//! Prometheus ─────┘   socket                            /metrics ─▶ Exposition
//! ```
//!
//! Every JSON body that leaves the server is an [`Answer`]: a status, a sentence, and data. What a
//! daemon answers is described by an OpenAPI document, made from the same table ([`Routes`]).
//! Only the control thread runs this code; it may block shortly, never touches a ring, and what it
//! shows of the workers it reads from counters they publish. A client that stalls, or sends too
//! much, costs one of [`server::MAX_CONNECTIONS`] places for a bounded time and nothing else.

pub mod access;
pub mod answer;
pub mod client;
pub mod compare;
pub mod describe;
pub mod exposition;
pub mod life;
pub mod peer;
pub mod print;
pub mod routes;
pub mod server;
pub mod socket;
mod strict;

pub use access::Access;
pub use answer::{Answer, Body, Status, beside};
pub use client::{Client, ClientError};
pub use describe::{Asked, Part};
pub use exposition::Exposition;
pub use peer::Peer;
pub use routes::Routes;
pub use socket::{ControlSocket, SocketError};
