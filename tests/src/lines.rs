//! Lines of a stream, kept and waited for.
//!
//! A thread reads the stream until it ends. Whoever waits sees all lines so far, so that a line
//! printed before the wait began is not missed; a wait ends at once when the stream does.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Why a wait ended without what it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The stream ended: whoever wrote it is dead.
    Ended,
    /// The deadline passed.
    Late,
}

/// All lines of one stream so far. Clones share the lines.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    /// Follows `stream` until it ends. With an `echo`, each line is handed to it as well.
    pub fn follow(stream: impl Read + Send + 'static, echo: Option<fn(&str)>) -> Self {
        let lines = Self::default();
        let shared = Arc::clone(&lines.shared);
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut bytes = Vec::new();
            while matches!(stream.read_until(b'\n', &mut bytes), Ok(1..)) {
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                if let Some(echo) = echo {
                    echo(&line);
                }
                shared.state().lines.push(line);
                shared.changed.notify_all();
            }
            shared.state().ended = true;
            shared.changed.notify_all();
        });
        lines
    }

    /// Waits until `found` makes something of the lines so far.
    ///
    /// # Errors
    /// [`Gone`], when the stream ends or `patience` runs out first.
    pub fn wait<T>(
        &self,
        patience: Duration,
        mut found: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T, Gone> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state();
        loop {
            if let Some(value) = found(&state.lines) {
                return Ok(value);
            }
            if state.ended {
                return Err(Gone::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Gone::Late);
            }
            let (guard, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
    }

    /// A copy of all lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.shared.state().lines.clone()
    }

    /// The last `count` lines, for an error message.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        tail(&self.shared.state().lines, count)
    }
}

/// The last `count` of `lines`, indented.
#[must_use]
pub fn tail<S: AsRef<str>>(lines: &[S], count: usize) -> String {
    let from = lines.len().saturating_sub(count);
    lines[from..]
        .iter()
        .map(|line| format!("    {}\n", line.as_ref()))
        .collect()
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn lines_are_kept_waited_for_and_end() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let lines = Lines::follow(reader, None);
        writer.write_all(b"one\r\ntwo\n").unwrap();
        let patience = Duration::from_secs(10);
        lines
            .wait(patience, |lines| (lines.len() == 2).then_some(()))
            .unwrap();
        assert_eq!(lines.all(), ["one", "two"]);
        assert_eq!(lines.wait(Duration::ZERO, |_| None::<()>), Err(Gone::Late));
        drop(writer);
        assert_eq!(lines.wait(patience, |_| None::<()>), Err(Gone::Ended));
        assert_eq!(lines.tail(1), "    two\n");
    }
}
