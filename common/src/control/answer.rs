//! The one shape of every JSON answer, and of every request body that carries JSON.

use axum::body::{HttpBody, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::strict;

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Done.
    Success,
    /// Done, and the description says what deserves attention.
    Warning,
    /// Not done; nothing changed.
    Failed,
}

/// `{"status": …, "description": …, "data": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Answer<T = ()> {
    /// How it ended.
    pub status: Status,
    /// One sentence for a person.
    pub description: String,
    /// What was asked for; absent (`null`) when the action failed.
    pub data: Option<T>,
    /// The HTTP status that goes with it; clients see it in the response line.
    #[serde(skip)]
    code: StatusCode,
}

impl<T> Answer<T> {
    /// It is done; here is the result.
    pub fn success(description: impl Into<String>, data: T) -> Self {
        Self {
            status: Status::Success,
            description: description.into(),
            data: Some(data),
            code: StatusCode::OK,
        }
    }

    /// It is done, but `description` deserves attention.
    pub fn warning(description: impl Into<String>, data: T) -> Self {
        Self {
            status: Status::Warning,
            ..Self::success(description, data)
        }
    }

    /// It is not done, for the reason in `description`.
    pub fn failed(code: StatusCode, description: impl Into<String>) -> Self {
        Self {
            status: Status::Failed,
            description: description.into(),
            data: None,
            code,
        }
    }
}

/// Runs what may block beside the control thread, and answers when it is done.
pub async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let answer = spawn_blocking(work).await;
    answer.unwrap_or_else(|panic| {
        let description = format!("the request broke: {panic}");
        Answer::failed(StatusCode::INTERNAL_SERVER_ERROR, description)
    })
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        (self.code, axum::Json(self)).into_response()
    }
}

/// Largest request body: an order of magnitude above any real one.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// A JSON request body. An empty one reads as `{}`; any content type is taken, so that
/// `curl --data` works; a mistake is answered with an [`Answer`] that says where it is. More than
/// [`MAX_BODY_BYTES`] is refused before it is read when the length is announced, else when they
/// have arrived.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Answer;

    async fn from_request(request: Request, _: &S) -> Result<Self, Answer> {
        let body = request.into_body();
        if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Err(too_large());
        }
        let bytes = to_bytes(body, MAX_BODY_BYTES)
            .await
            .map_err(|_| too_large())?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        strict::read(json).map(Self).map_err(|wrong| {
            let description = format!("the request body is wrong: {wrong}");
            Answer::failed(StatusCode::BAD_REQUEST, description)
        })
    }
}

fn too_large() -> Answer {
    let description = format!("the request body is cut off or exceeds {MAX_BODY_BYTES} bytes");
    Answer::failed(StatusCode::PAYLOAD_TOO_LARGE, description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_on_the_wire() {
        let done = serde_json::to_value(Answer::success("1 disk", vec!["a"])).unwrap();
        let expected =
            serde_json::json!({"status": "success", "description": "1 disk", "data": ["a"]});
        assert_eq!(done, expected);
        let failed = Answer::<()>::failed(StatusCode::NOT_FOUND, "no disk");
        let failed = serde_json::to_value(failed).unwrap();
        let expected =
            serde_json::json!({"status": "failed", "description": "no disk", "data": null});
        assert_eq!(failed, expected);
    }
}
