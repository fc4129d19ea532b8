//! Every operation of a document, asked for with requests made from its own schemas.
//!
//! ```text
//! schema ─▶ body ─┬───────────────▶ socket ─▶ an answer that the document gives
//!                 ├─ one thing wrong ─▶ …  ─▶ if the document does not take it: 4xx, and named
//!                 └─ no JSON at all ──▶ …  ─▶ 4xx
//! path, method that the document has not ─▶ 404, 405
//! ```
//!
//! Each answer shows that the daemon is still there: one that broke on a request hangs up without.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner};
use serde_json::Value;

use super::made::{Spoilt, spoilt, valid};
use super::{Document, Reply, ask_raw, fits};
use crate::control::answer::MAX_BODY_BYTES;

/// How often each HTTP status was answered, by operation.
pub type Seen = BTreeMap<(String, String), BTreeMap<u16, usize>>;

/// What requests are made of.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Where they go.
    pub socket: &'a Path,
    /// What they are made from, and held against.
    pub document: &'a Document,
    /// What stands in paths: names that there are, and some that there are not.
    pub parts: &'a [&'a str],
    /// What stands in bodies for some strings.
    pub words: &'a [&'a str],
    /// Requests of each kind and operation.
    pub cases: u32,
}

/// Bodies that are no JSON, or too much.
const NOISE: &[&[u8]] = &[
    b"{",
    b"nonsense",
    b"{\"a\": 1}{\"b\": 2}",
    b"{\"a\": \"\xff\"}",
    b"\0",
    b"[{}",
    b"{'a': 1}",
];
/// Deeper than anything that is meant.
const DEEP: usize = 10_000;

impl Probe<'_> {
    /// Asks for everything.
    ///
    /// # Errors
    /// The request whose answer was not one that the document gives, and why.
    pub fn run(&self) -> Result<Seen, String> {
        let mut seen = Seen::new();
        for (method, path) in self.document.operations() {
            let codes = seen.entry((method.clone(), path.clone())).or_default();
            self.requests(&method, &path, codes)
                .map_err(|wrong| format!("{method} {path}: {wrong}"))?;
        }
        self.strangers()?;
        Ok(seen)
    }

    fn requests(
        &self,
        method: &str,
        path: &str,
        codes: &mut BTreeMap<u16, usize>,
    ) -> Result<(), String> {
        let targets = self.targets(path);
        if let Some(schema) = self.document.order(method, path) {
            let bodies = valid(schema, self.words);
            let good = (targets.clone(), bodies.clone());
            self.each(good, codes, |(target, body)| {
                self.document.takes(method, path, body)?;
                self.answer(method, path, target, body.to_string().as_bytes())
            })?;
            self.each((targets.clone(), spoilt(bodies)), codes, |(target, bad)| {
                let send = |body: &Value| {
                    let body = body.to_string();
                    self.answer(method, path, target, body.as_bytes())
                };
                let (before, reply) = (send(&bad.before)?, send(&bad.value)?);
                let taken = self.document.takes(method, path, &bad.value).is_ok();
                refused(&before, reply, taken, bad)
            })?;
            let target = path_with(path, self.parts.first().unwrap_or(&"x"));
            self.noise(method, path, &target)?;
        } else if let Some(schema) = self.document.query(method, path) {
            let values = valid(&schema, self.words);
            let good = (targets.clone(), values.clone());
            self.each(good, codes, |(target, value)| {
                self.answer(method, path, &with_query(target, value), b"")
            })?;
            let sent = |bad: &Spoilt| bad.value.is_object();
            let bad = spoilt(values).prop_filter("keys are sent, or nothing", sent);
            self.each((targets, bad), codes, |(target, bad)| {
                let send = |value| self.answer(method, path, &with_query(target, value), b"");
                let (before, reply) = (send(&bad.before)?, send(&bad.value)?);
                refused(&before, reply, takes_query(&schema, &bad.value), bad)
            })?;
        } else {
            self.each(targets, codes, |target| {
                self.answer(method, path, target, b"")
            })?;
        }
        if path.contains('{') {
            let broken = path_with(path, "@").replace("%40", "%ff");
            not_done(&self.answer(method, path, &broken, b"{}")?)?;
        }
        Ok(())
    }

    /// `path` with something for its variable.
    fn targets(&self, path: &str) -> BoxedStrategy<String> {
        let path = path.to_owned();
        let parts: Vec<String> = self.parts.iter().map(|part| (*part).to_owned()).collect();
        let part = prop_oneof![4 => select(parts), 1 => "[ -~]{1,20}", 1 => "\\PC{1,8}"];
        part.prop_map(move |part| path_with(&path, &part)).boxed()
    }

    /// Does `ask` for `cases` of `requests`, always the same ones.
    fn each<S: Strategy>(
        &self,
        requests: S,
        codes: &mut BTreeMap<u16, usize>,
        ask: impl Fn(&S::Value) -> Result<Reply, String>,
    ) -> Result<(), String> {
        let config = Config {
            cases: self.cases,
            failure_persistence: None,
            rng_algorithm: RngAlgorithm::ChaCha,
            rng_seed: RngSeed::Fixed(0),
            ..Config::default()
        };
        let codes = std::cell::RefCell::new(codes);
        let done = TestRunner::new(config).run(&requests, |request| {
            let reply = ask(&request).map_err(TestCaseError::fail)?;
            *codes.borrow_mut().entry(reply.code).or_default() += 1;
            Ok(())
        });
        done.map_err(|error| match error {
            TestError::Fail(why, request) => format!("{request:?}: {why}"),
            TestError::Abort(why) => why.to_string(),
        })
    }

    /// An answer that the document gives.
    fn answer(&self, method: &str, path: &str, target: &str, body: &[u8]) -> Result<Reply, String> {
        // A body that nobody asked for is not read.
        let wanted = self.document.order(method, path).is_some();
        let body = if wanted { body } else { b"" };
        let reply = ask_raw(self.socket, method, target, body).map_err(|no| no.to_string())?;
        let given = self.document.gives(method, path, &reply);
        given.map_err(|wrong| format!("{target}: {} {}: {wrong}", reply.code, reply.body))?;
        if reply.body.contains("the request broke") {
            return Err(format!("{target}: {}", reply.body));
        }
        let absent = reply.code == 404 && reply.body.contains("there is nothing at");
        if absent || reply.code == 405 {
            let (code, body) = (reply.code, &reply.body);
            return Err(format!("{target}: {code}, no such route: {body}"));
        }
        Ok(reply)
    }

    fn noise(&self, method: &str, path: &str, target: &str) -> Result<(), String> {
        let deep = "[".repeat(DEEP);
        let large = format!("{{\"a\": \"{}\"}}", "a".repeat(MAX_BODY_BYTES));
        for body in NOISE.iter().chain([&deep.as_bytes(), &large.as_bytes()]) {
            let reply = self.answer(method, path, target, body)?;
            not_done(&reply)?;
            if !reply.body.contains("the request body") {
                return Err(format!(
                    "does not say that the body is wrong: {}",
                    reply.body
                ));
            }
        }
        Ok(())
    }

    /// What the document has not is not there.
    fn strangers(&self) -> Result<(), String> {
        let all = self.document.operations();
        let absent = |method: &str, target: &str, code: u16| {
            let reply = ask_raw(self.socket, method, target, b"").map_err(|no| no.to_string())?;
            let body: Value = serde_json::from_str(&reply.body).unwrap_or_default();
            if reply.code == code && fits(code, &body, true) {
                return Ok(());
            }
            Err(format!("{method} {target}, which is not in it: {reply:?}"))
        };
        for (_, path) in &all {
            let target = path_with(path, self.parts.first().unwrap_or(&"x"));
            for method in ["get", "post", "put", "patch", "delete"] {
                if !all.iter().any(|(m, p)| m == method && p == path) {
                    absent(method, &target, 405)?;
                }
            }
        }
        absent("get", "/v1/no_such_path", 404)
    }
}

/// `path` with `part` for its variable.
fn path_with(path: &str, part: &str) -> String {
    let Some((before, rest)) = path.split_once('{') else {
        return path.to_owned();
    };
    let after = rest.split_once('}').map_or("", |(_, after)| after);
    format!("{before}{}{after}", encoded(part))
}

fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.bytes().map(encode).collect()
}

/// `target` with the members of `value` behind the `?`; what is null is left out.
fn with_query(target: &str, value: &Value) -> String {
    let members = value.as_object().into_iter().flatten();
    let members = members.filter(|(_, value)| !value.is_null());
    let pairs = members.map(|(key, value)| format!("{}={}", encoded(key), encoded(&text(value))));
    let pairs: Vec<String> = pairs.collect();
    format!("{target}?{}", pairs.join("&"))
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether `schema` takes `value`, all of whose members are sent as text.
fn takes_query(schema: &Value, value: &Value) -> bool {
    let members = value.as_object().into_iter().flatten();
    let read = |(key, value): (&String, &Value)| {
        let schema = &schema["properties"][key];
        let as_text = Value::String(text(value));
        let known = !schema.is_null() && jsonschema::is_valid(schema, &as_text);
        let value = if known { as_text } else { value.clone() };
        (key.clone(), value)
    };
    let sent = members.filter(|(_, value)| !value.is_null());
    jsonschema::is_valid(schema, &Value::Object(sent.map(read).collect()))
}

/// What the document does not take is refused; in words that name it, if all was well before it was
/// spoilt, so that there is nothing else to name.
fn refused(before: &Reply, reply: Reply, taken: bool, bad: &Spoilt) -> Result<Reply, String> {
    if taken {
        return Ok(reply);
    }
    not_done(&reply)?;
    let sound = ![400, 422].contains(&before.code);
    let named = |name: &String| reply.body.contains(name.as_str());
    if !sound || bad.names.is_empty() || bad.names.iter().any(named) {
        return Ok(reply);
    }
    Err(format!("names none of {:?}: {}", bad.names, reply.body))
}

/// The client's mistake.
fn not_done(reply: &Reply) -> Result<(), String> {
    match reply.code {
        400..500 => Ok(()),
        code => Err(format!("{code}, not 4xx: {}", reply.body)),
    }
}
