//! The server over a real socket: honest clients, stuck ones, and nonsense.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;

use axum::body::{Body as ResponseBody, Bytes};
use axum::routing::{get, post};
use hyper::body::Frame;
use serde::Deserialize;
use tokio::time::Sleep;

use super::*;
use crate::control::answer::MAX_BODY_BYTES;
use crate::control::{Body, Client, ClientError, ControlSocket, Status};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    beers: u32,
}

async fn take_order(Body(order): Body<Order>) -> Answer<u32> {
    Answer::success("noted", order.beers)
}

/// A body that ends after a quarter of a second, and does not say how long it is.
#[derive(Default)]
struct Late {
    sleep: Option<Pin<Box<Sleep>>>,
    done: bool,
}

impl HttpBody for Late {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let quarter = Duration::from_millis(250);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(quarter)));
        ready!(sleep.as_mut().poll(context));
        self.done = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"at last")))))
    }
}

/// A server on a thread of its own, which ends with the test process.
struct Running {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn start(patience: Patience) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    thread::spawn(move || {
        let routes = Router::new()
            .route("/hello", get(|| async { Answer::success("hello", 7) }))
            .route("/order", post(take_order))
            .route(
                "/late",
                get(|| async { ResponseBody::new(Late::default()) }),
            );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(serve(socket.listener().unwrap(), routes, patience))
            .unwrap();
    });
    Running { path, _dir: dir }
}

/// Sends raw bytes and returns everything that comes back until the server closes.
fn raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    // The server may refuse and close before it has read all of it.
    let _refused_early = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _reset_after_refusal = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post_order(path: &Path, body: &str) -> String {
    let length = body.len();
    raw(
        path,
        format!("POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
}

#[test]
fn a_client_gets_an_answer() {
    let server = start(Patience::default());
    let answer = Client::new(&server.path).get::<u32>("/hello").unwrap();
    assert_eq!((answer.status, answer.data), (Status::Success, Some(7)));
    let order = serde_json::json!({"beers": 2});
    let answer = Client::new(&server.path)
        .post::<u32>("/order", &order)
        .unwrap();
    assert_eq!(answer.data, Some(2));
}

#[test]
fn unknown_paths_and_methods_are_answered_in_the_same_shape() {
    let server = start(Patience::default());
    let answer = Client::new(&server.path).get::<u32>("/nothing").unwrap();
    assert_eq!(answer.status, Status::Failed);
    assert_eq!(
        answer.description,
        "there is nothing at /nothing; try /v1/status"
    );
    let answer = Client::new(&server.path).get::<u32>("/order").unwrap();
    assert_eq!(answer.description, "GET does not apply to /order");
}

#[test]
fn a_bad_body_is_refused_with_its_place() {
    let server = start(Patience::default());
    let answer = post_order(&server.path, "{\"beers\": many}");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(
        answer.contains("expected value at line 1 column 11"),
        "{answer}"
    );
    let answer = post_order(&server.path, "{\"wine\": 1}");
    assert!(
        answer.contains("unknown field `wine`, expected `beers`"),
        "{answer}"
    );
    let answer = post_order(&server.path, "");
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "an empty body is {{}}: {answer}"
    );
}

#[test]
fn an_oversize_body_is_refused_unread() {
    let server = start(Patience::default());
    let answer = post_order(&server.path, &" ".repeat(MAX_BODY_BYTES + 1));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let head = format!(
        "POST /order HTTP/1.1\r\ncontent-length: {}\r\n\r\n",
        u64::MAX / 2
    );
    let answer = raw(&server.path, head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn nonsense_is_answered_or_closed_and_the_server_goes_on() {
    let server = start(Patience::default());
    let long = "x".repeat(MAX_HEAD_BYTES * 2);
    for bytes in [
        "\0\r\n\r\n",
        "GET / HTTP/9\r\n\r\n",
        &format!("GET /{long} HTTP/1.1\r\n\r\n"),
    ] {
        let answer = raw(&server.path, bytes.as_bytes());
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    Client::new(&server.path).get::<u32>("/hello").unwrap();
}

#[test]
fn stuck_clients_block_nobody_and_are_put_out() {
    let short = Duration::from_millis(100);
    let server = start(Patience {
        header: short,
        connection: short,
    });
    // Every place is taken: by half a head, by a body that never comes, by silence.
    let mut stuck: Vec<UnixStream> = Vec::new();
    for begin in [
        "GET /he",
        "POST /order HTTP/1.1\r\ncontent-length: 9\r\n\r\n",
        "",
    ]
    .into_iter()
    .cycle()
    .take(MAX_CONNECTIONS)
    {
        let mut stream = UnixStream::connect(&server.path).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        stuck.push(stream);
    }
    Client::new(&server.path).get::<u32>("/hello").unwrap();
    for mut stream in stuck {
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let error = Client::new(&path).get::<u32>("/hello").unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }));
    assert!(
        error
            .to_string()
            .ends_with("start it, or name its socket with --control")
    );
}

#[test]
fn an_answer_that_is_none_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let fake = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    let error = Client::new(&path).get::<u32>("/hello").unwrap_err();
    assert!(matches!(error, ClientError::Garbled { .. }), "{error}");
    fake.join().unwrap();
}

#[test]
fn a_stream_outlives_the_deadline_of_its_connection() {
    let server = start(Patience {
        connection: Duration::from_millis(50),
        ..Patience::default()
    });
    let answer = raw(&server.path, b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.contains("at last"), "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
}
