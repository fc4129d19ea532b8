//! Captures: copies of chosen frames, taken by the workers, written as pcapng by the control
//! thread.
//!
//! ```text
//!  worker 0:  Tap ── ring (1 MiB) ─┐
//!  worker 1:  Tap ── ring ─────────┼─▶ Reader ─▶ pcapng ─▶ chunks of an HTTP body ─▶ client
//!             │ full? count         │   every 10 ms, by time
//!             └ missed ─────────────┘
//! ```
//!
//! A capture cannot slow the switch. Without one, a burst costs a look at an empty list. With one,
//! a frame costs a comparison, and a copy if it matches; what is copied of a burst is limited
//! ([`tap::BURST_BYTES`]), and a worker that finds its ring full counts the frame as missed and
//! goes on. It waits for nobody: each ring has one writer and one reader, and neither can be held
//! up by the other. The memory of a capture is that of its rings.

pub mod anchor;
pub mod api;
pub mod client;
pub mod filter;
pub mod lines;
pub mod order;
pub mod pcapng;
mod ring;
pub mod session;
pub mod tap;

pub use filter::{Direction, Filter, Sight};
pub use order::{Order, OrderError};
pub use session::{CaptureStatus, Captures, End, Tapping};
pub use tap::{Captured, Reader, Tap, Taps, open};

/// Captures that may run at once: each costs every frame a comparison.
pub const CAPTURES: usize = 4;
/// Bytes of a frame that are captured unless told otherwise: whole frames at the usual MTU.
pub const SNAPLEN: u32 = 2048;
/// Most bytes of a frame that can be captured: unsegmented ones with all headers fit.
pub const MAX_SNAPLEN: u32 = 65_792;

/// A capture, for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaptureId(pub u64);
