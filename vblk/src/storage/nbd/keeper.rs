//! The keeper: a thread that makes an export's connections, and makes them anew when they break.
//!
//! It lives until the export and all its clients are gone. One order at a time: while the server
//! does not answer, nobody else's order would get further.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::address::{Address, Endpoint};
use super::handshake::{self, HandshakeError, Info};
use super::{Desk, Mail, NbdError, Shared, tls};

/// How long a connect, or one read or write of a handshake, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a handshake may take in all.
const WHOLE: Duration = Duration::from_secs(15);

/// Waiting time between two attempts: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long a peer may leave sent data unanswered, and how long a silent connection is trusted
/// before it is probed, every so often, so many times: a dead host is noticed within a minute.
const USER_TIMEOUT_MS: u32 = 30_000;
const KEEP_IDLE: Duration = Duration::from_secs(20);
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_COUNT: u32 = 4;

/// An order for a connection.
#[derive(Debug)]
pub(super) struct Order {
    /// Who wants it.
    pub(super) desk: Weak<Desk>,
    /// Which of the client's connections it is.
    pub(super) number: u8,
}

/// Connect and shake hands.
pub(super) fn connect(address: &Address) -> Result<(OwnedFd, Info), NbdError> {
    let failed = |source: io::Error| NbdError::Connect {
        address: address.to_string(),
        source,
    };
    let deadline = Instant::now() + WHOLE;
    match &address.endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).map_err(failed)?;
            let limit = |s: &UnixStream, t| s.set_read_timeout(t).and(s.set_write_timeout(t));
            limit(&stream, Some(PATIENCE)).map_err(failed)?;
            shake(Timed { stream, deadline }, address)
        }
        Endpoint::Tcp { host, port } => {
            let stream = connect_tcp(host, *port).map_err(failed)?;
            let limit = |s: &TcpStream, t| s.set_read_timeout(t).and(s.set_write_timeout(t));
            limit(&stream, Some(PATIENCE)).map_err(failed)?;
            shake(Timed { stream, deadline }, address)
        }
    }
}

/// A stream that gives up at a deadline, however busily the other end trickles.
struct Timed<S> {
    stream: S,
    deadline: Instant,
}

impl<S> Timed<S> {
    fn check(&self) -> io::Result<()> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let why = "the handshake takes too long";
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

impl<S: io::Read> io::Read for Timed<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(buf)
    }
}

impl<S: io::Write> io::Write for Timed<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Shake hands; what the client is to talk to, which with TLS is a relay.
fn shake<S>(mut stream: Timed<S>, address: &Address) -> Result<(OwnedFd, Info), NbdError>
where
    S: io::Read + io::Write + Into<OwnedFd>,
{
    let failed = |source| NbdError::Handshake {
        address: address.to_string(),
        source,
    };
    let Some(wanted) = &address.tls else {
        let info = handshake::shake(&mut stream, &address.export).map_err(failed)?;
        let socket = stream.stream.into();
        patient(&socket).map_err(|e| failed(HandshakeError::Io(e)))?;
        return Ok((socket, info));
    };
    let no_zeroes = handshake::start_tls(&mut stream).map_err(failed)?;
    let mut session = tls::session(wanted, &address.endpoint).map_err(failed)?;
    let info = {
        let mut secure = rustls::Stream::new(&mut session, &mut stream);
        handshake::choose(&mut secure, &address.export, no_zeroes)
            .map_err(|e| failed(tls::why(e)))?
    };
    let socket = stream.stream.into();
    patient(&socket).map_err(|e| failed(HandshakeError::Io(e)))?;
    let relayed = tls::relay(socket, session);
    let relayed = relayed.map_err(|e| failed(HandshakeError::Io(e)))?;
    Ok((relayed, info))
}

/// Take the limits of the handshake away.
fn patient(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, None)?;
    Ok(sockopt::set_socket_timeout(
        socket,
        sockopt::Timeout::Send,
        None,
    )?)
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    use std::net::ToSocketAddrs;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEP_IDLE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEP_INTERVAL)?;
                sockopt::set_tcp_keepcnt(&stream, KEEP_COUNT)?;
                sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Start a keeper, which has one connection already.
pub(super) fn start(shared: Arc<Shared>, first: OwnedFd) -> io::Result<mpsc::Sender<Order>> {
    let (sender, orders) = mpsc::channel::<Order>();
    let mut first = Some(first);
    std::thread::Builder::new()
        .name("nbd-keeper".to_owned())
        .spawn(move || {
            for order in orders {
                deliver(&shared, &order, &mut first);
            }
        })?;
    Ok(sender)
}

/// Deliver one connection, however long it takes, unless nobody wants it any more.
fn deliver(shared: &Shared, order: &Order, first: &mut Option<OwnedFd>) {
    let mut pause = PAUSES.0;
    while let Some(desk) = order.desk.upgrade() {
        let made = match first.take() {
            Some(socket) => Ok((socket, shared.info.size)),
            None => again(shared),
        };
        match made {
            Ok((socket, size)) => {
                shared.set_trouble(None);
                let number = order.number;
                desk.put(Mail {
                    number,
                    socket,
                    size,
                });
                return;
            }
            Err(why) => shared.set_trouble(Some(why)),
        }
        drop(desk);
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Connect to the same export once more; its size, which it is to have.
fn again(shared: &Shared) -> Result<(OwnedFd, u64), String> {
    let (socket, size) = look(shared)?;
    let wanted = shared.size();
    if size == wanted {
        return Ok((socket, size));
    }
    let remedy = if size > wanted {
        "; `vblk disk resize` serves all of it"
    } else {
        ""
    };
    Err(format!(
        "the server has another export now: it had {wanted} bytes, it has {size}{remedy}"
    ))
}

/// Connect to the same export, whatever size it has now.
pub(super) fn look(shared: &Shared) -> Result<(OwnedFd, u64), String> {
    let (socket, info) = connect(&shared.address).map_err(|e| e.to_string())?;
    let (was, is) = (&shared.info, &info);
    let same = was.flags & !is.flags == 0
        && is.flags & super::flag::READ_ONLY == was.flags & super::flag::READ_ONLY
        && is.min_block <= was.min_block
        && is.max_block >= was.max_block;
    if same && was.structured == is.structured {
        Ok((socket, is.size))
    } else {
        Err(format!(
            "the server has another export now: it was {was:?}, it is {is:?}"
        ))
    }
}
