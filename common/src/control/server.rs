//! Serves a router on a control socket, with a limit on everything a client can take.
//!
//! One request a connection: the callers are command lines and a scraper, and a connection that
//! ends by itself needs no idle management. A client has [`HEADER_TIMEOUT`] to send its request
//! head and [`CONNECTION_DEADLINE`] for all of it; after that its place is free again. A response
//! whose length is not known when it begins is a stream: it lasts as long as the route that makes
//! it wants, which has to see to clients that do not read.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::answer::Answer;
use super::{Access, Peer};

/// Connections served at once; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 32;
/// A local client sends its request head at once; one that does not is stuck.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection. An action that takes longer goes on; its result is in the log.
pub const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Largest request head, and what a connection buffers.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Pause after the kernel refused to accept (out of descriptors), so as not to spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The times a client may take; constants in a daemon, short in tests.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the request head.
    pub header: Duration,
    /// For the whole connection.
    pub connection: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            header: HEADER_TIMEOUT,
            connection: CONNECTION_DEADLINE,
        }
    }
}

/// Serves `routes` on `listener` until the future is dropped. Must run inside a tokio runtime.
///
/// Paths and methods the router does not know are answered with an [`Answer`] too.
///
/// # Errors
/// When the listener cannot be registered with the runtime.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    routes: Router,
    patience: Patience,
) -> io::Result<()> {
    serve_guarded(listener, routes, patience, Arc::default()).await
}

/// [`serve`] for those whom `access` lets.
///
/// # Errors
/// As there.
pub async fn serve_guarded(
    listener: std::os::unix::net::UnixListener,
    routes: Router,
    patience: Patience,
    access: Arc<Access>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let routes = routes
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = guard(routes.clone(), &stream, &access);
                tokio::spawn(async move {
                    converse(stream, routes, patience).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// `routes` for the client of `stream`.
fn guard(routes: Router, stream: &UnixStream, access: &Arc<Access>) -> Router {
    if access.is_open() {
        return routes;
    }
    // One that the kernel does not name is nobody.
    let peer = Peer::of(stream).unwrap_or(Peer {
        uid: u32::MAX,
        gids: Vec::new(),
    });
    let (access, peer) = (Arc::clone(access), Arc::new(peer));
    routes.layer(from_fn(move |request: Request, next: Next| {
        let refused = access.check(&peer, request.method()).err();
        async move {
            match refused {
                None => next.run(request).await,
                Some(answer) => answer.into_response(),
            }
        }
    }))
}

/// One connection, one request, one answer, within the deadline unless it is a stream.
async fn converse(stream: UnixStream, routes: Router, patience: Patience) {
    let streams = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&streams);
    let routes = routes.layer(map_response(move |response: Response| {
        if response.body().size_hint().exact().is_none() {
            noted.store(true, Ordering::Relaxed);
        }
        ready(response)
    }));
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.header)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(conversation);
    let ended = match timeout(patience.connection, &mut conversation).await {
        Ok(ended) => ended,
        Err(_) if streams.load(Ordering::Relaxed) => conversation.await,
        Err(_) => {
            tracing::warn!("a control connection took too long and was closed");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended early");
    }
}

async fn unknown_path(uri: Uri) -> Answer {
    let path = uri.path();
    Answer::failed(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {path}; try /v1/status"),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Answer {
    let path = uri.path();
    Answer::failed(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} does not apply to {path}"),
    )
}

#[cfg(test)]
mod tests;
