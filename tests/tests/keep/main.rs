//! A daemon's death is invisible: killed under full load, again and again, on the same connections.
//!
//! `make test` kills a few hundred times; `TOWPATH_KILLS=1000` in the environment is the long run.

mod disk;
mod harness;
mod switch;
mod vm;
