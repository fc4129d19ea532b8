//! The client side of the control API, for command lines: one blocking call, one [`Answer`].

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::answer::Answer;
use super::server::CONNECTION_DEADLINE;

/// A little longer than the server's own deadline, so that its verdict arrives first.
const DEADLINE: Duration = CONNECTION_DEADLINE.saturating_add(Duration::from_secs(5));
/// Largest answer: ten thousand disks fit.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon is listening on {}: start it, or name its socket with --control",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The user may not connect.
    #[error(
        "you may not connect to {}: run as root, or join the group that owns the socket",
        path.display()
    )]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon did not answer in time.
    #[error("the daemon on {} gave no answer within {} s", path.display(), DEADLINE.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// What came back is not an answer.
    #[error("the answer from {} makes no sense: {reason}; is it a towpath daemon?", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection failed in another way.
    #[error("cannot talk to {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Speaks to the daemon behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `path`; connects at each call.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Asks for `target`, such as `/v1/disks`. Blocks; not for use inside a runtime.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer. An answer that says "failed" is `Ok`.
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<Answer<T>, ClientError> {
        self.call(Method::GET, target, Bytes::new())
    }

    /// Sends `body` to `target` and waits for the outcome. Blocks; not for use inside a runtime.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post<T: DeserializeOwned>(
        &self,
        target: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.garbled(&error))?;
        self.call(Method::POST, target, body.into())
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Answer<T>, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| self.io(error))?;
        let exchange = self.exchange(method, target, body);
        let answer = runtime
            .block_on(async { timeout(DEADLINE, exchange).await })
            .map_err(|_| ClientError::Timeout {
                path: self.path.clone(),
            })??;
        serde_json::from_slice(&answer).map_err(|error| self.garbled(&error))
    }

    /// One request over one connection; returns the body of the response.
    async fn exchange(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.io(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.garbled(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.garbled(&error))?;
        let receive = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| self.garbled(&e))?;
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            body.map(|body| body.to_bytes())
                .map_err(|error| self.garbled(&error))
        };
        alongside(receive, connection).await
    }

    fn io(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => ClientError::Io { path, source },
        }
    }

    fn garbled(&self, reason: &(impl std::fmt::Display + ?Sized)) -> ClientError {
        ClientError::Garbled {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

/// Drives `background` while `main` runs, and returns what `main` does.
async fn alongside<T>(main: impl Future<Output = T>, background: impl Future) -> T {
    tokio::pin!(main);
    tokio::select! {
        outcome = &mut main => outcome,
        _ = background => main.await,
    }
}
