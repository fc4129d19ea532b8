//! A control API as a stranger sees it: requests over the socket, and what comes back held against
//! the daemon's own OpenAPI document.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::control::routes::DOCUMENT;

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub code: u16,
    /// The media type, without parameters.
    pub media: String,
    /// The body.
    pub body: String,
}

/// Sends one request to `socket`; without a `body` it has none.
///
/// # Errors
/// When the socket fails, or what comes back is no HTTP.
pub fn ask(socket: &Path, method: &str, target: &str, body: Option<&Value>) -> io::Result<Reply> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let method = method.to_ascii_uppercase();
    let mut stream = UnixStream::connect(socket)?;
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let reply = || {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let media = head.lines().find_map(|line| {
            let value = line.strip_prefix("content-type: ")?;
            value.split(';').next()
        });
        Some(Reply {
            code: head.split(' ').nth(1)?.parse().ok()?,
            media: media.unwrap_or_default().to_owned(),
            body: body.to_owned(),
        })
    };
    reply().ok_or_else(|| io::Error::other(format!("no HTTP: {answer}")))
}

/// An OpenAPI document.
#[derive(Clone, Debug)]
pub struct Document(pub Value);

impl Document {
    /// The one that is served on `socket`.
    ///
    /// # Errors
    /// As [`ask`], or when it is no JSON.
    pub fn fetch(socket: &Path) -> io::Result<Self> {
        let reply = ask(socket, "GET", DOCUMENT, None)?;
        Ok(Self(serde_json::from_str(&reply.body)?))
    }

    /// Every method and path.
    pub fn operations(&self) -> Vec<(String, String)> {
        let paths = self.0["paths"].as_object().into_iter().flatten();
        let all = paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().into_iter().flatten();
            methods.map(move |(method, _)| (method.clone(), path.clone()))
        });
        all.collect()
    }

    /// Whether `body` is one that `method` of `path` takes.
    ///
    /// # Errors
    /// Why not.
    pub fn takes(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let operation = &self.0["paths"][path][method];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        self.validate(schema, body)
    }

    /// Whether `reply` is what `method` of `path` gives. One of JSON must have a status that goes
    /// with the HTTP status, and a description.
    ///
    /// # Errors
    /// Why not.
    pub fn gives(&self, method: &str, path: &str, reply: &Reply) -> Result<(), String> {
        let responses = &self.0["paths"][path][method]["responses"];
        let response = match reply.code {
            200 => &responses["200"],
            _ => &responses["default"],
        };
        let schema = &response["content"][&reply.media]["schema"];
        if schema.is_null() {
            return Err(format!("{} is not in {response}", reply.media));
        }
        if reply.media != "application/json" {
            return Ok(());
        }
        let body: Value = serde_json::from_str(&reply.body).map_err(|error| error.to_string())?;
        self.validate(schema, &body)?;
        if path == DOCUMENT {
            return Ok(());
        }
        let fits = match body["status"].as_str() {
            Some("success" | "warning") => reply.code == 200 && !body["data"].is_null(),
            Some("failed") => reply.code >= 400 && body["data"].is_null(),
            _ => false,
        };
        let nothing = schema["properties"]["data"]["type"] == "null";
        let fits = fits || (reply.code == 200 && nothing && body["status"] == "success");
        let said = body["description"]
            .as_str()
            .is_some_and(|said| !said.trim().is_empty());
        let wrong = || format!("{} with {body}", reply.code);
        (fits && said).then_some(()).ok_or_else(wrong)
    }

    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let whole = json!({"allOf": [schema], "components": self.0["components"]});
        let validator = jsonschema::validator_for(&whole).map_err(|error| error.to_string())?;
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
