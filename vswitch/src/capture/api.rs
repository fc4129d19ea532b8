//! Captures in the control API.
//! What is captured is streamed as pcapng while it is read.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body as ResponseBody, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame};
use serde_json::json;
use tokio::sync::mpsc;
use towpath_common::control::describe::{Operation, Reply};
use towpath_common::control::{Answer, Body, Part, Routes};

use super::session::{CaptureError, CaptureStatus, Captures};
use super::{CaptureId, Order};

/// The header of a stream that says which capture it is.
pub const ID_HEADER: &str = "capture-id";
/// The media type of a stream.
pub const MEDIA_TYPE: &str = "application/x-pcapng";

/// The routes, to be merged with the others.
pub fn table() -> Routes<Arc<Captures>> {
    Routes::new()
        .get(
            "/v1/captures",
            "Those that run, and the last that ended",
            list,
        )
        .post(
            "/v1/captures",
            "Capture; header `capture-id` says which it is",
            start,
        )
        .get("/v1/captures/{id}", "One capture", one)
        .delete(
            "/v1/captures/{id}",
            "End it: its stream ends in order",
            stop,
        )
}

async fn list(State(captures): State<Arc<Captures>>) -> Answer<Vec<CaptureStatus>> {
    let list = captures.list();
    let running = list.iter().filter(|c| c.end.is_none()).count();
    Answer::success(format!("{running} running"), list)
}

async fn one(State(captures): State<Arc<Captures>>, Part(id): Part) -> Answer<CaptureStatus> {
    find(&captures, &id).map_or_else(
        || absent(&id),
        |status| {
            let description = format!("{} captured, {} missed", status.captured, status.missed);
            Answer::success(description, status)
        },
    )
}

async fn stop(State(captures): State<Arc<Captures>>, Part(id): Part) -> Answer<CaptureStatus> {
    let Some(status) = find(&captures, &id) else {
        return absent(&id);
    };
    if captures.stop(CaptureId(status.id)) {
        Answer::success("it is ending", status)
    } else {
        Answer::success("it has ended already", status)
    }
}

fn find(captures: &Captures, id: &str) -> Option<CaptureStatus> {
    let id: u64 = id.parse().ok()?;
    captures.list().into_iter().find(|status| status.id == id)
}

fn absent<T>(id: &str) -> Answer<T> {
    let description = format!("there is no capture {id}; GET /v1/captures lists them");
    Answer::failed(StatusCode::NOT_FOUND, description)
}

async fn start(State(captures): State<Arc<Captures>>, Body(order): Body<Order>) -> Stream {
    match captures.start(order).await {
        Ok((id, chunks)) => {
            let headers = [
                (header::CONTENT_TYPE.as_str(), MEDIA_TYPE.to_owned()),
                (ID_HEADER, id.0.to_string()),
            ];
            Stream((headers, ResponseBody::new(Chunks(chunks))).into_response())
        }
        Err(error) => {
            let code = match error {
                CaptureError::Order(_) => StatusCode::UNPROCESSABLE_ENTITY,
                CaptureError::Full => StatusCode::CONFLICT,
                CaptureError::Plane(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Stream(Answer::<()>::failed(code, error.to_string()).into_response())
        }
    }
}

/// What is captured, or why nothing is.
struct Stream(Response);

impl IntoResponse for Stream {
    fn into_response(self) -> Response {
        self.0
    }
}

impl Reply for Stream {
    fn describe(operation: &mut Operation<'_>) {
        operation.gives(MEDIA_TYPE, json!({}));
    }
}

/// A body of chunks as they come.
struct Chunks(mpsc::Receiver<Bytes>);

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}
