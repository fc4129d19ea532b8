//! What a handler takes and gives, told from its signature.

use std::future::Future;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use schemars::JsonSchema;
use schemars::generate::SchemaGenerator;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{Answer, Body};
use super::exposition;

/// One operation of the document, while it is described.
#[derive(Debug)]
pub struct Operation<'a> {
    answers: &'a mut SchemaGenerator,
    orders: &'a mut SchemaGenerator,
    parameters: Vec<Value>,
    body: Option<Value>,
    content: Option<(&'static str, Value)>,
}

impl<'a> Operation<'a> {
    /// Of `path`, whose variables are in braces.
    pub(super) fn new(
        path: &str,
        answers: &'a mut SchemaGenerator,
        orders: &'a mut SchemaGenerator,
    ) -> Self {
        let variables = path.split('/').filter_map(|part| {
            let name = part.strip_prefix('{')?.strip_suffix('}')?;
            Some(json!({
                "name": name, "in": "path", "required": true, "schema": {"type": "string"},
            }))
        });
        Self {
            answers,
            orders,
            parameters: variables.collect(),
            body: None,
            content: None,
        }
    }

    /// Success is answered with `media` of this `schema`.
    pub fn gives(&mut self, media: &'static str, schema: Value) {
        self.content = Some((media, schema));
    }

    pub(super) fn finish(self, summary: &str) -> Value {
        let (media, schema) = self.content.unwrap_or(("text/plain", json!({})));
        let failed = self.answers.subschema_for::<Answer<()>>();
        let mut operation = json!({
            "summary": summary,
            "responses": {
                "200": {
                    "description": "Done; a `status` of warning says what deserves attention.",
                    "content": {media: {"schema": schema}},
                },
                "default": {
                    "description": "Not done; nothing has changed.",
                    "content": {"application/json": {"schema": failed}},
                },
            },
        });
        if !self.parameters.is_empty() {
            operation["parameters"] = self.parameters.into();
        }
        if let Some(schema) = self.body {
            let content = json!({"application/json": {"schema": schema}});
            operation["requestBody"] = json!({"content": content});
        }
        operation
    }
}

/// A handler that can be described. `X` keeps handlers of different numbers of arguments apart.
pub trait Describe<X> {
    /// Writes down what it takes and gives.
    fn describe(operation: &mut Operation<'_>);
}

/// What a handler takes.
pub trait Argument {
    /// Writes it down.
    fn describe(operation: &mut Operation<'_>);
}

/// What a handler gives.
pub trait Reply {
    /// Writes it down.
    fn describe(operation: &mut Operation<'_>);
}

macro_rules! describe {
    ($($argument:ident),*) => {
        impl<F, R, $($argument),*> Describe<($($argument,)*)> for F
        where
            F: FnOnce($($argument),*) -> R,
            R: Future<Output: Reply>,
            $($argument: Argument),*
        {
            fn describe(operation: &mut Operation<'_>) {
                $($argument::describe(operation);)*
                R::Output::describe(operation);
            }
        }
    };
}

describe!();
describe!(A);
describe!(A, B);
describe!(A, B, C);

impl<S> Argument for State<S> {
    fn describe(_: &mut Operation<'_>) {}
}

impl<T: JsonSchema> Argument for Body<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.orders.subschema_for::<T>();
        operation.body = Some(schema.into());
    }
}

impl<T: JsonSchema> Reply for Answer<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = operation.answers.subschema_for::<Answer<T>>();
        operation.gives("application/json", schema.into());
    }
}

impl Reply for exposition::Text {
    fn describe(operation: &mut Operation<'_>) {
        operation.gives("text/plain", json!({"type": "string"}));
    }
}

/// The one variable in a path. What is not text is answered with an [`Answer`].
#[derive(Debug)]
pub struct Part(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Answer> {
        let part = Path::from_request_parts(parts, state).await;
        let refused = |no: PathRejection| Answer::failed(no.status(), no.body_text());
        part.map(|Path(part)| Self(part)).map_err(refused)
    }
}

impl Argument for Part {
    // The path names it.
    fn describe(_: &mut Operation<'_>) {}
}

/// What stands behind the `?`. A mistake is answered with an [`Answer`].
#[derive(Debug)]
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Answer;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Answer> {
        let asked = Query::from_request_parts(parts, state).await;
        let refused = |no: QueryRejection| Answer::failed(no.status(), no.body_text());
        asked.map(|Query(asked)| Self(asked)).map_err(refused)
    }
}

impl<T: JsonSchema> Argument for Asked<T> {
    fn describe(operation: &mut Operation<'_>) {
        let schema = Value::from(operation.orders.subschema_for::<T>());
        let required = |name: &str| {
            let required = schema["required"].as_array();
            required.is_some_and(|all| all.iter().any(|one| one == name))
        };
        let properties = schema["properties"].as_object().into_iter().flatten();
        let parameters = properties.map(|(name, schema)| {
            json!({"name": name, "in": "query", "required": required(name), "schema": schema})
        });
        operation.parameters.extend(parameters);
    }
}
