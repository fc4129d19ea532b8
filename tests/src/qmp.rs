//! QEMU's monitor: commands to a running machine, and what it tells of itself.
//!
//! One JSON object a line each way (QEMU's `docs/interop/qmp-spec.rst`). Events that arrive while a
//! command runs are kept for [`Qmp::event`].

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A monitor that does not answer for this long is a failure; an event may take as long.
const PATIENCE: Duration = Duration::from_secs(60);

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
    /// When nobody listens or it is no monitor.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        qmp.message().context("QEMU's greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs `command` and returns what it answers.
    ///
    /// # Errors
    /// When QEMU refuses it, with its reason.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let mut line = request.to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut message = self
                .message()
                .with_context(|| format!("answer to {request}"))?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refused {request}: {}", error["desc"]);
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for the event `name` for which `right` holds, among those kept and those to come.
    ///
    /// # Errors
    /// When it does not come.
    pub fn event(&mut self, name: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
        let wanted = |event: &Value| event["event"] == name && right(&event["data"]);
        loop {
            if let Some(at) = self.events.iter().position(wanted) {
                return Ok(self.events.remove(at));
            }
            let message = self.message().with_context(|| format!("event {name}"))?;
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => bail!("QEMU closed its monitor"),
            Ok(_) => Ok(serde_json::from_str(&line)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("nothing from QEMU within {PATIENCE:?}")
            }
            Err(error) => Err(error.into()),
        }
    }
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
