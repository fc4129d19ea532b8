//! A control API as a stranger sees it: requests over the socket, and what comes back held against
//! the daemon's own OpenAPI document. [`probe`] makes up the requests.

mod made;
mod probe;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};

use super::bed::SOON;
use crate::control::routes::DOCUMENT;

pub use probe::{Probe, Seen};

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub code: u16,
    /// The media type, without parameters.
    pub media: String,
    /// The body; of one that is no text, nothing, since a stream has no end.
    pub body: String,
}

/// Sends one request to `socket`; without a `body` it has none.
///
/// # Errors
/// When the socket fails, or what comes back is no HTTP.
pub fn ask(socket: &Path, method: &str, target: &str, body: Option<&Value>) -> io::Result<Reply> {
    let body = body.map(Value::to_string).unwrap_or_default();
    ask_raw(socket, method, target, body.as_bytes())
}

/// [`ask`] with any bytes as a body.
///
/// # Errors
/// As there.
pub fn ask_raw(socket: &Path, method: &str, target: &str, body: &[u8]) -> io::Result<Reply> {
    let method = method.to_ascii_uppercase();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    // Of one that is too large, the rest may not be taken any more.
    let sent = stream.write_all(body);
    let mut stream = BufReader::new(stream);
    let (mut code, mut media, mut line) = (None, String::new(), String::new());
    while stream.read_line(&mut line)? > 0 && line != "\r\n" {
        if code.is_none() {
            code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        } else if let Some(value) = line.strip_prefix("content-type: ") {
            media = value.split(';').next().unwrap_or(value).trim().to_owned();
        }
        line.clear();
    }
    let Some(code) = code else {
        sent?;
        return Err(io::Error::other(format!("no answer, but {line:?}")));
    };
    let mut text = Vec::new();
    if media == "application/json" || media.starts_with("text/") {
        match stream.read_to_end(&mut text) {
            // What was left of a request that was refused ends the connection in this way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            read => drop(read?),
        }
    }
    let body = String::from_utf8_lossy(&text).into_owned();
    Ok(Reply { code, media, body })
}

/// An OpenAPI document.
#[derive(Clone, Debug)]
pub struct Document {
    value: Value,
    /// Of schemas that were used, by where they stand: to prepare one takes longer than to use it.
    ready: Arc<Mutex<HashMap<String, Arc<Validator>>>>,
}

impl Document {
    /// That one.
    #[must_use]
    pub fn new(value: Value) -> Self {
        let ready = Arc::default();
        Self { value, ready }
    }

    /// The one that is served on `socket`.
    ///
    /// # Errors
    /// As [`ask`], or when it is no JSON.
    pub fn fetch(socket: &Path) -> io::Result<Self> {
        let reply = ask(socket, "GET", DOCUMENT, None)?;
        Ok(Self::new(serde_json::from_str(&reply.body)?))
    }

    /// All of it.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Every method and path, in order.
    #[must_use]
    pub fn operations(&self) -> Vec<(String, String)> {
        let paths = self.value["paths"].as_object().into_iter().flatten();
        let all = paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.map(move |(method, _)| (method.clone(), path.clone()))
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    }

    /// The schema of the body that `method` of `path` takes.
    #[must_use]
    pub fn order(&self, method: &str, path: &str) -> Option<&Value> {
        self.value.pointer(&order_pointer(method, path))
    }

    /// The schema of what `method` of `path` takes behind the `?`, as if that were an object.
    #[must_use]
    pub fn query(&self, method: &str, path: &str) -> Option<Value> {
        let parameters = self.value["paths"][path][method]["parameters"].as_array()?;
        let in_query = |one: &&Value| one["in"] == "query";
        let all = parameters.iter().filter(in_query);
        let named = |one: &Value| Some((one["name"].as_str()?.to_owned(), one["schema"].clone()));
        let properties: serde_json::Map<_, _> = all.clone().filter_map(named).collect();
        let required: Vec<&Value> = all
            .filter(|one| one["required"] == true)
            .map(|one| &one["name"])
            .collect();
        let none = properties.is_empty();
        let schema = json!({
            "type": "object", "properties": properties, "required": required,
            "additionalProperties": false,
        });
        (!none).then_some(schema)
    }

    /// Whether `body` is one that `method` of `path` takes.
    ///
    /// # Errors
    /// Why not.
    pub fn takes(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        self.validate(&order_pointer(method, path), body)
    }

    /// Whether `reply` is what `method` of `path` gives. One of JSON must have a status that goes
    /// with the HTTP status, and a description.
    ///
    /// # Errors
    /// Why not.
    pub fn gives(&self, method: &str, path: &str, reply: &Reply) -> Result<(), String> {
        let response = if reply.code == 200 { "200" } else { "default" };
        let pointer = format!(
            "/paths/{}/{method}/responses/{response}/content/{}/schema",
            escaped(path),
            escaped(&reply.media)
        );
        let Some(schema) = self.value.pointer(&pointer) else {
            return Err(format!("{} has {:?}", reply.code, reply.media));
        };
        if reply.media != "application/json" {
            return Ok(());
        }
        let body: Value = serde_json::from_str(&reply.body).map_err(|error| error.to_string())?;
        self.validate(&pointer, &body)?;
        let nothing = schema["properties"]["data"]["type"] == "null";
        if path != DOCUMENT && !fits(reply.code, &body, nothing) {
            return Err(format!("{} with {body}", reply.code));
        }
        Ok(())
    }

    fn validate(&self, pointer: &str, value: &Value) -> Result<(), String> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let validator = match ready.get(pointer) {
            Some(validator) => Arc::clone(validator),
            None => {
                let schema = self.value.pointer(pointer);
                let schema = schema.ok_or_else(|| format!("nothing stands at {pointer}"))?;
                let whole = json!({"allOf": [schema], "components": self.value["components"]});
                let made = jsonschema::validator_for(&whole).map_err(|error| error.to_string())?;
                let made = Arc::new(made);
                ready.insert(pointer.to_owned(), Arc::clone(&made));
                made
            }
        };
        drop(ready);
        let errors = validator.iter_errors(value);
        let errors = errors.map(|error| format!("{}: {error}", error.instance_path()));
        let errors: Vec<String> = errors.collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join("\n"))
        }
    }
}

/// Whether `body` has a status that goes with `code`, data if there is something to give, and
/// something to say.
fn fits(code: u16, body: &Value, nothing: bool) -> bool {
    let status = match body["status"].as_str() {
        Some("success" | "warning") => code == 200 && body["data"].is_null() == nothing,
        Some("failed") => code >= 400 && body["data"].is_null(),
        _ => false,
    };
    let said = body["description"].as_str();
    status && said.is_some_and(|said| !said.trim().is_empty())
}

fn order_pointer(method: &str, path: &str) -> String {
    let path = escaped(path);
    format!("/paths/{path}/{method}/requestBody/content/application~1json/schema")
}

/// As part of a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
