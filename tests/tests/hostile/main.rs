//! Hostile guests and front-ends against the real vblk: each scenario has a victim disk whose
//! front-end misbehaves, and a second disk of the same daemon, on the same worker, whose honest
//! client writes and verifies all the while.
//!
//! After each: vblk lives and stops cleanly, the honest client made progress and found its data,
//! file descriptors and memory are back where they were, and the API names what was wrong (or the
//! request was answered with the right status). Deadlines are guards against hanging, no more.
//!
//! Names follow two lists: `h01` to `h22` for guests, `m01` to `m14` for front-ends.

mod harness;
mod maps;
mod memory;
mod notify;
mod race;
mod request;
mod ring;
mod session;
mod socket;
