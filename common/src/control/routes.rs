//! The routes of a daemon, and the OpenAPI document that describes them.
//!
//! ```text
//! handler ─▶ Routes ─┬─▶ Router, which answers
//!                    └─▶ operations ─▶ OpenAPI document: `GET /openapi.json`, `… api`
//! ```
//!
//! A route can be added in one way only, so that none is answered and not described. What goes in
//! and comes out is taken from the handler's own signature ([`Describe`]), and the schemas from the
//! types that are sent.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{MethodRouter, delete, get, post};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::describe::{Describe, Operation};

/// Where the document is.
pub const DOCUMENT: &str = "/openapi.json";

/// Routes that know what they take and give.
#[derive(Debug)]
pub struct Routes<S = ()> {
    router: Router<S>,
    table: Table,
}

/// What is known of routes, without what answers them.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<Entry>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    describe: fn(&mut Operation<'_>),
}

/// The document's own.
const ITSELF: Entry = Entry {
    method: "get",
    path: DOCUMENT,
    summary: "This document",
    describe: |operation| operation.gives("application/json", json!({"type": "object"})),
};

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self {
            router: Router::new(),
            table: Table::default(),
        }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is looked at; `summary` is a few words for the document.
    #[must_use]
    pub fn get<H: Handler<X, S> + Describe<Y>, X: 'static, Y>(
        self,
        path: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        self.add("get", path, summary, H::describe, get(handler))
    }

    /// What is done.
    #[must_use]
    pub fn post<H: Handler<X, S> + Describe<Y>, X: 'static, Y>(
        self,
        path: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        self.add("post", path, summary, H::describe, post(handler))
    }

    /// What is ended.
    #[must_use]
    pub fn delete<H: Handler<X, S> + Describe<Y>, X: 'static, Y>(
        self,
        path: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        self.add("delete", path, summary, H::describe, delete(handler))
    }

    fn add(
        mut self,
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        describe: fn(&mut Operation<'_>),
        answer: MethodRouter<S>,
    ) -> Self {
        self.table.0.push(Entry {
            method,
            path,
            summary,
            describe,
        });
        self.router = self.router.route(path, answer);
        self
    }

    /// Routes that can be served.
    #[must_use]
    pub fn with_state(self, state: S) -> Routes {
        Routes {
            router: self.router.with_state(state),
            table: self.table,
        }
    }

    /// What is known of them.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

impl Routes {
    /// These and others.
    #[must_use]
    pub fn merge(self, others: Routes) -> Self {
        Routes {
            router: self.router.merge(others.router),
            table: self.table.and(&others.table),
        }
    }

    /// What answers them, and [`DOCUMENT`] with the document of daemon `title`.
    pub fn router(self, title: &'static str, version: &'static str) -> Router {
        let table = self.table;
        let give = async move || axum::Json(table.document(title, version));
        self.router.route(DOCUMENT, get(give))
    }
}

impl Table {
    /// These and others.
    #[must_use]
    pub fn and(mut self, others: &Table) -> Self {
        self.0.extend_from_slice(&others.0);
        self
    }

    /// The document of daemon `title` (OpenAPI 3.1).
    pub fn document(&self, title: &str, version: &str) -> Value {
        let (mut answers, mut orders) = (answers(), orders());
        let mut paths = Map::new();
        for entry in self.0.iter().chain([&ITSELF]) {
            let mut operation = Operation::new(entry.path, &mut answers, &mut orders);
            (entry.describe)(&mut operation);
            let described = operation.finish(entry.summary);
            let path = paths.entry(entry.path).or_insert_with(|| json!({}));
            if let Some(methods) = path.as_object_mut() {
                methods.insert(entry.method.to_owned(), described);
            }
        }
        json!({
            "openapi": "3.1.1",
            "info": {
                "title": title,
                "version": version,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                "description": "Every JSON answer has a `status` (success, warning, failed), a \
                    `description` for people, and `data`, which is null if the action failed. An \
                    answer that failed has an HTTP status of 400 or more.",
            },
            "servers": [{
                "url": "http://localhost",
                "description": "HTTP over the unix socket of the daemon",
            }],
            "paths": paths,
            "components": {"schemas": answers.take_definitions(true)},
        })
    }
}

/// Schemas of what is sent.
fn answers() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let settings = settings.with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.into_generator()
}

/// Schemas of what is taken: written out each time, since the same type may take more than it
/// sends.
fn orders() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_deserialize();
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator()
}

#[cfg(test)]
mod tests;
