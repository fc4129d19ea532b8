//! Hostile guests and front-ends against the real vswitch: each scenario has a victim port whose
//! front-end misbehaves, a witness in its VLAN that sees what comes of it, and a pair of ports on
//! the same worker that exchange numbered frames and verify them all the while.
//!
//! After each: vswitch lives and stops cleanly, the honest pair made progress and lost nothing,
//! file descriptors and memory are back where they were, and the API names what was wrong: a ring
//! broken once, or as many frames discarded as were sent, for the right reason. Deadlines are
//! guards against hanging, no more.
//!
//! Names follow three lists: `h01` to `h17` for guests and their rings, `m01` to `m14` for
//! front-ends, `l1` to `l8` for what is in the frames. The front-ends are those of `hostile`.

mod control;
mod frames;
mod harness;
mod headers;
mod honest;
mod layer2;
#[path = "../hostile/maps.rs"]
mod maps;
mod memory;
#[path = "../hostile/notify.rs"]
mod notify;
mod race;
mod receive;
mod ring;
mod session;
#[path = "../hostile/socket.rs"]
mod socket;
mod victim;
