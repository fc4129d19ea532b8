//! Lines for the journal, in its own protocol: a datagram of fields for each.
//!
//! `tracing-journald` prefixes every field of an event, so it cannot send a `MESSAGE_ID`, which is
//! what makes an event findable and explains it from a catalogue; hence this. A line is:
//!
//! ```text
//! PRIORITY  SYSLOG_IDENTIFIER  TARGET  CODE_FILE  CODE_LINE     where it comes from
//! MESSAGE                                                       the sentence
//! TOWPATH_EVENT  MESSAGE_ID                                     if it is an event with a name
//! TOWPATH_…                                                     its fields
//! ```
//!
//! Each field is its name, a line feed, the value's length in 8 bytes (little-endian), the value
//! and a line feed (systemd's JOURNAL_NATIVE_PROTOCOL). Values are cut so that a line fits a
//! datagram; the memory file that the protocol has for larger ones is not worth its descriptors.

use std::fmt::{Debug, Write};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::FIELD_PREFIX;
use super::events::Event;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest value sent, in bytes: a dozen of them fit a datagram of 208 KiB, Linux' default.
const LONGEST: usize = 8 << 10;

/// Sends to journald.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    identifier: String,
    tables: [&'static [Event]; 2],
}

impl Journal {
    /// To the journal that listens on `path`, under the name `identifier`, with identifiers from
    /// `tables`.
    ///
    /// # Errors
    /// When nobody listens.
    pub(super) fn open(
        path: &Path,
        identifier: &str,
        tables: [&'static [Event]; 2],
    ) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // Nothing, which journald ignores.
        socket.send_to(&[], path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            identifier: identifier.to_owned(),
            tables,
        })
    }

    fn line(&self, metadata: &Metadata<'_>) -> Line {
        let mut line = Line::default();
        let priority = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            Level::DEBUG => "6",
            Level::TRACE => "7",
        };
        line.put("PRIORITY", priority);
        line.put("SYSLOG_IDENTIFIER", &self.identifier);
        line.put("TARGET", metadata.target());
        if let Some(file) = metadata.file() {
            line.put("CODE_FILE", file);
        }
        if let Some(number) = metadata.line() {
            line.put("CODE_LINE", &number.to_string());
        }
        let mut events = self.tables.iter().copied().flatten();
        if let Some(event) = events.find(|event| event.name == metadata.name()) {
            line.put("MESSAGE_ID", event.id);
            line.put(&format!("{FIELD_PREFIX}_EVENT"), event.name);
        }
        line
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut line = self.line(event.metadata());
        event.record(&mut line);
        // There is nobody left to tell.
        let _ = self.socket.send_to(&line.0, &self.path);
    }
}

/// A datagram in the making.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    fn put(&mut self, name: &str, value: &str) {
        let value = value.as_bytes();
        let value = &value[..value.len().min(LONGEST)];
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0
            .extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// A field's name as the journal takes it.
fn name(field: &Field) -> String {
    if field.name() == "message" {
        return "MESSAGE".to_owned();
    }
    let letter = |c: char| match c.to_ascii_uppercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    let name: String = field.name().chars().map(letter).collect();
    format!("{FIELD_PREFIX}_{name}")
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(&name(field), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // A type that cannot be shown has said so in what there is.
        let _ = write!(text, "{value:?}");
        self.put(&name(field), &text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::logging::events::{EVENTS, SERVING};

    /// What journald would understand.
    fn parse(mut datagram: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|&byte| byte == b'\n').unwrap();
            let (name, rest) = datagram.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            let (value, rest) = rest.split_at(length);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert_eq!(rest[0], b'\n');
            assert!(fields.insert(text(name), text(value)).is_none(), "twice");
            datagram = &rest[1..];
        }
        fields
    }

    /// What a journal is sent by `log`.
    fn sent(log: impl FnOnce()) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path, "vblk", [EVENTS, &[]]).unwrap();
        let mut datagram = vec![0; 1 << 18];
        assert_eq!(
            journald.recv(&mut datagram).unwrap(),
            0,
            "the first is empty"
        );
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, log);
        let length = journald.recv(&mut datagram).unwrap();
        parse(&datagram[..length])
    }

    #[test]
    fn an_event_arrives_with_its_identifier_and_its_fields() {
        let error = io::Error::other("no\nluck");
        let fields = sent(|| {
            tracing::warn!(name: SERVING, disk = "web", size = 7, %error, nested.key = ?Some(1),
                "serving {}", 1);
        });
        let of = |name: &str| fields.get(name).map(String::as_str);
        assert_eq!(of("MESSAGE_ID"), Some(EVENTS[0].id));
        assert_eq!(of("TOWPATH_EVENT"), Some("serving"));
        assert_eq!(of("MESSAGE"), Some("serving 1"));
        assert_eq!(
            (of("TOWPATH_DISK"), of("TOWPATH_SIZE")),
            (Some("web"), Some("7"))
        );
        assert_eq!(
            of("TOWPATH_ERROR"),
            Some("no\nluck"),
            "as it is, lines and all"
        );
        assert_eq!(of("TOWPATH_NESTED_KEY"), Some("Some(1)"));
        assert_eq!(
            (of("PRIORITY"), of("SYSLOG_IDENTIFIER")),
            (Some("4"), Some("vblk"))
        );
        assert!(of("CODE_FILE").unwrap().ends_with("journal.rs"));
        assert!(of("CODE_LINE").unwrap().parse::<u32>().is_ok());
    }

    #[test]
    fn other_lines_have_none_and_long_ones_are_cut() {
        let long = "x".repeat(1 << 20);
        let fields = sent(|| tracing::error!(long, "{long}"));
        assert!(!fields.contains_key("MESSAGE_ID"), "{:?}", fields.keys());
        assert_eq!(fields["PRIORITY"], "3");
        assert_eq!(fields["TOWPATH_LONG"].len(), LONGEST);
        assert_eq!(fields["MESSAGE"].len(), LONGEST);
    }

    #[test]
    fn there_is_no_journal_where_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("journal");
        assert!(Journal::open(&nowhere, "vblk", [EVENTS, &[]]).is_err());
    }
}
