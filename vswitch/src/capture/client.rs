//! The client side of a capture: from the control API into a file, until there is enough.

use std::io::{self, Write};
use std::path::Path;

use axum::body::Bytes;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use towpath_common::control::{Answer, ClientError};

use super::api::ID_HEADER;
use super::{CaptureStatus, Order};

/// Largest answer that is not a stream.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why there is no capture, or no end to it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureClientError {
    /// The daemon could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// What came could not be written.
    #[error("cannot write the capture: {0}")]
    Write(#[source] io::Error),
    /// The connection broke before the end.
    #[error("the capture broke off: {0}")]
    BrokeOff(String),
}

/// Captures what `order` says into `out`, until that is done, the daemon ends it, or `stop`
/// completes (such as at Ctrl-C), and says how it went. Blocks; not for use inside a runtime.
///
/// # Errors
/// [`CaptureClientError`]. What was written until then can be read.
pub fn capture(
    control: &Path,
    order: &Order,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> Result<CaptureStatus, CaptureClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| io_error(control, error))?;
    runtime.block_on(run(control, order, out, stop))
}

async fn run(
    control: &Path,
    order: &Order,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> Result<CaptureStatus, CaptureClientError> {
    let body = serde_json::to_vec(order).map_err(|error| garbled(control, &error))?;
    let response = send(control, Method::POST, "/v1/captures", body.into()).await?;
    if response.status() != StatusCode::OK {
        let answer: Answer<()> = whole(control, response).await?;
        return Err(CaptureClientError::Refused(answer.description));
    }
    let id = response.headers().get(ID_HEADER);
    let id = id.and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let id = id.ok_or_else(|| garbled(control, "the capture has no number"))?;
    let target = format!("/v1/captures/{id}");

    let mut body = response.into_body();
    tokio::pin!(stop);
    let mut stopping = false;
    loop {
        tokio::select! {
            () = &mut stop, if !stopping => {
                stopping = true;
                send(control, Method::DELETE, &target, Bytes::new()).await?;
            }
            frame = body.frame() => match frame {
                None => break,
                Some(Ok(frame)) => if let Some(bytes) = frame.data_ref() {
                    out.write_all(bytes).map_err(CaptureClientError::Write)?;
                    out.flush().map_err(CaptureClientError::Write)?;
                },
                Some(Err(error)) => return Err(CaptureClientError::BrokeOff(error.to_string())),
            }
        }
    }
    let response = send(control, Method::GET, &target, Bytes::new()).await?;
    let answer: Answer<CaptureStatus> = whole(control, response).await?;
    answer
        .data
        .ok_or(CaptureClientError::Refused(answer.description))
}

/// All captures the daemon knows of.
///
/// # Errors
/// [`ClientError`].
pub fn list(control: &Path) -> Result<Answer<Vec<CaptureStatus>>, ClientError> {
    towpath_common::control::Client::new(control).get("/v1/captures")
}

/// One request over one connection, up to the head of its response.
async fn send(
    control: &Path,
    method: Method,
    target: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
    let stream = UnixStream::connect(control)
        .await
        .map_err(|error| io_error(control, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| garbled(control, &error))?;
    // Ends with the response's body, or with the runtime.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| garbled(control, &error))?;
    let response = sender.send_request(request).await;
    response.map_err(|error| garbled(control, &error))
}

async fn whole<T: DeserializeOwned>(
    control: &Path,
    response: Response<Incoming>,
) -> Result<Answer<T>, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await;
    let bytes = body.map_err(|error| garbled(control, &error))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| garbled(control, &error))
}

fn io_error(control: &Path, source: io::Error) -> ClientError {
    let path = control.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { path }
        }
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
        _ => ClientError::Io { path, source },
    }
}

fn garbled(control: &Path, reason: &(impl std::fmt::Display + ?Sized)) -> ClientError {
    ClientError::Garbled {
        path: control.to_owned(),
        reason: reason.to_string(),
    }
}
