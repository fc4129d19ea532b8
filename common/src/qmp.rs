//! QEMU's monitor: commands to a running machine, and what it tells of itself.
//!
//! One JSON object a line each way (QEMU's `docs/interop/qmp-spec.rst`). Events that arrive while a
//! command runs are kept for [`Qmp::event`].

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// A monitor that does not answer for this long is a failure; an event may take as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest line: QEMU's schema of itself has a few hundred KiB.
const LONGEST: u64 = 4 << 20;
/// Events kept: a machine that tells more while one command runs has something wrong with it.
const EVENTS: usize = 10_000;

/// Why a monitor gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error(
        "no QEMU listens on {}: start it with -qmp unix:{},server=on,wait=off ({source})",
        path.display(), path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// It says nothing, or nothing that makes sense.
    #[error("the monitor gave no answer to {command}: {source}")]
    Silent {
        /// The command, or what was waited for.
        command: String,
        /// Why.
        source: io::Error,
    },
}

/// A connection to a monitor, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the monitor that listens on `socket`.
    ///
    /// # Errors
    /// [`QmpError::Connect`], or when it is no monitor.
    pub fn connect(socket: &Path) -> Result<Self, QmpError> {
        let connect = || {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = connect().map_err(|source| QmpError::Connect {
            path: socket.into(),
            source,
        })?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let silent = silent("a connection");
        qmp.message().map_err(silent)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs `command` and returns what it answers.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with QEMU's reason, or [`QmpError::Silent`].
    #[expect(clippy::needless_pass_by_value, reason = "made for the call, by json!")]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        let mut line = request.to_string();
        line.push('\n');
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.map_err(silent(command))?;
        loop {
            let mut message = self.message().map_err(silent(command))?;
            if message.get("event").is_some() {
                if self.events.len() < EVENTS {
                    self.events.push(message);
                }
            } else if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given");
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: reason.to_owned(),
                });
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for the event `name` for which `right` holds, among those kept and those to come.
    ///
    /// # Errors
    /// [`QmpError::Silent`] when it does not come.
    pub fn event(&mut self, name: &str, right: impl Fn(&Value) -> bool) -> Result<Value, QmpError> {
        let wanted = |event: &Value| event["event"] == name && right(&event["data"]);
        if let Some(at) = self.events.iter().position(wanted) {
            return Ok(self.events.remove(at));
        }
        loop {
            let message = self.message().map_err(silent(name))?;
            if wanted(&message) {
                return Ok(message);
            }
            if self.events.len() < EVENTS {
                self.events.push(message);
            }
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match (&mut self.stream).take(LONGEST).read_line(&mut line) {
            Ok(0) => Err(io::Error::other("it closed the connection")),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let text = format!("nothing came within {} s", PATIENCE.as_secs());
                Err(io::Error::new(ErrorKind::TimedOut, text))
            }
            Err(error) => Err(error),
        }
    }
}

fn silent(command: &str) -> impl FnOnce(io::Error) -> QmpError {
    let command = command.to_owned();
    |source| QmpError::Silent { command, source }
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn events_among_answers_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut line = String::new();
            let say = |stream: &mut BufReader<UnixStream>, text: &str| {
                writeln!(stream.get_mut(), "{text}").unwrap();
            };
            say(&mut stream, r#"{"QMP": {}}"#);
            stream.read_line(&mut line).unwrap();
            say(&mut stream, r#"{"return": {}}"#);
            stream.read_line(&mut line).unwrap();
            say(&mut stream, r#"{"event": "GONE", "data": {"device": "a"}}"#);
            say(&mut stream, r#"{"return": 7}"#);
            stream.read_line(&mut line).unwrap();
            say(&mut stream, r#"{"error": {"desc": "no such thing"}}"#);
            line
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.execute("first", json!({})).unwrap(), 7);
        let refused = qmp.execute("second", json!({"id": "b"})).unwrap_err();
        assert!(refused.to_string().contains("no such thing"));
        assert!(qmp.event("GONE", |data| data["device"] == "a").is_ok());
        assert!(machine.join().unwrap().contains(r#""id":"b""#));
    }
}
