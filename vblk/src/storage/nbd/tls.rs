//! TLS to a server: the handshake, and a thread that relays between TLS and the client.
//!
//! A client reads and writes its socket through io_uring, straight from and to guest memory. With
//! TLS, that socket is one end of a pair, and a thread stands at the other end: it encrypts what
//! the client writes and decrypts what the server sends. So the client, its retries and what it
//! promises are the same with TLS and without. The kernel could do it on the TCP socket itself
//! (kTLS), which would save a copy each way; but that needs a kernel module that many hosts do not
//! have, is for TCP only, and leaves re-keying and alerts to us all the same.
//!
//! The relay holds [`BUFFER`] bytes each way, reads from one side only what the other one has room
//! for, and ends both when either ends.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::address::{Endpoint, Tls};
use super::handshake::HandshakeError;

/// Bytes on their way in one direction.
const BUFFER: usize = 64 * 1024;

fn bad(what: impl Into<String>) -> HandshakeError {
    HandshakeError::Tls(what.into())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HandshakeError> {
    let said = |e| bad(format!("{}: {e}", path.display()));
    let read = CertificateDer::pem_file_iter(path).map_err(said)?;
    let all: Result<Vec<_>, _> = read.collect();
    let all = all.map_err(said)?;
    if all.is_empty() {
        return Err(bad(format!("{} holds no certificate", path.display())));
    }
    Ok(all)
}

/// A session that believes the authorities in `tls.certs` and nobody else, for one connection.
pub(super) fn session(tls: &Tls, endpoint: &Endpoint) -> Result<ClientConnection, HandshakeError> {
    let mut roots = RootCertStore::empty();
    let authorities = tls.certs.join("ca-cert.pem");
    for authority in certificates(&authorities)? {
        let added = roots.add(authority);
        added.map_err(|e| bad(format!("{}: {e}", authorities.display())))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions();
    let config = config.map_err(|e| bad(e.to_string()))?;
    let config = config.with_root_certificates(roots);
    let ours = tls.certs.join("client-cert.pem");
    let config = if ours.exists() {
        let path = tls.certs.join("client-key.pem");
        let key = PrivateKeyDer::from_pem_file(&path);
        let key = key.map_err(|e| bad(format!("{}: {e}", path.display())))?;
        let with = config.with_client_auth_cert(certificates(&ours)?, key);
        with.map_err(|e| bad(format!("{}: {e}", ours.display())))?
    } else {
        config.with_no_client_auth()
    };
    let name = match (&tls.name, endpoint) {
        (Some(name), _) => name,
        (None, Endpoint::Tcp { host, .. }) => host,
        (None, Endpoint::Unix(_)) => "localhost",
    };
    let server = ServerName::try_from(name.to_owned());
    let server = server.map_err(|_| bad(format!("{name:?} is no name of a server")))?;
    let mut session =
        ClientConnection::new(Arc::new(config), server).map_err(|e| bad(e.to_string()))?;
    session.set_buffer_limit(Some(BUFFER));
    Ok(session)
}

/// A failure within TLS as one of TLS.
pub(super) fn why(error: HandshakeError) -> HandshakeError {
    match error {
        HandshakeError::Io(e) if e.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
            bad(e.to_string())
        }
        other => other,
    }
}

/// A socket on which the other end of `session` is spoken to in plain, until either end closes.
pub(super) fn relay(server: OwnedFd, session: ClientConnection) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::ioctl_fionbio(&server, true)?;
    ours.set_nonblocking(true)?;
    let relay = Relay {
        server: UnixStream::from(server),
        client: ours,
        session,
        up: Pending::default(),
        down: Pending::default(),
    };
    let thread = std::thread::Builder::new().name("nbd-tls".to_owned());
    thread.spawn(move || relay.run())?;
    Ok(theirs.into())
}

/// Bytes that the other side has not taken yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    at: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Take at most a buffer's worth from `from`; how many bytes that was.
    fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.at = 0;
        self.bytes.resize(BUFFER, 0);
        let read = from.read(&mut self.bytes);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        read
    }

    fn drain(&mut self, to: &mut impl Write) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.at..).filter(|r| !r.is_empty()) {
            match to.write(rest)? {
                0 => return Ok(()),
                n => self.at += n,
            }
        }
        Ok(())
    }
}

/// The thread's. (The server's socket may be one of TCP: only reads, writes and shutdown are used,
/// which are the same.)
struct Relay {
    server: UnixStream,
    client: UnixStream,
    session: ClientConnection,
    /// From the client, not yet in the session.
    up: Pending,
    /// From the session, not yet at the client.
    down: Pending,
}

/// `WouldBlock` is no failure.
fn later(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Relay {
    fn run(mut self) {
        let ended = self.pump();
        if let Err(error) = ended {
            tracing::debug!(%error, "a TLS connection ended");
        }
        self.session.send_close_notify();
        // It may be gone, or not read: then it learns by the shutdown.
        let _ = self.session.write_tls(&mut self.server);
        let _ = self.server.shutdown(Shutdown::Both);
        let _ = self.client.shutdown(Shutdown::Both);
    }

    /// Relay until one side is at its end.
    fn pump(&mut self) -> io::Result<()> {
        loop {
            if self.wait()? || self.step()? {
                return Ok(());
            }
        }
    }

    /// Wait for something that can be done; true if one side is gone.
    fn wait(&self) -> io::Result<bool> {
        let mut server = PollFlags::empty();
        server.set(
            PollFlags::IN,
            self.session.wants_read() && self.down.is_empty(),
        );
        server.set(PollFlags::OUT, self.session.wants_write());
        let mut client = PollFlags::empty();
        client.set(PollFlags::IN, self.up.is_empty());
        client.set(PollFlags::OUT, !self.down.is_empty());
        let mut fds = [
            PollFd::from_borrowed_fd(self.server.as_fd(), server),
            PollFd::from_borrowed_fd(self.client.as_fd(), client),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        // Asked for or not, an end is told; where nothing can be read any more it would be told
        // for ever.
        let [server, client] = fds.map(|fd| fd.revents());
        let gone = |e: PollFlags| {
            e.intersects(PollFlags::HUP | PollFlags::ERR) && !e.contains(PollFlags::IN)
        };
        Ok(gone(server) || gone(client))
    }

    /// Do all that can be done; true at the end.
    fn step(&mut self) -> io::Result<bool> {
        if self.up.is_empty() && later(self.up.fill(&mut self.client))? == Some(0) {
            return Ok(true);
        }
        loop {
            // A full session takes no more until some of it was sent.
            self.up.drain(&mut self.session.writer())?;
            while self.session.wants_write() {
                if later(self.session.write_tls(&mut self.server))?.is_none() {
                    break;
                }
            }
            if self.up.is_empty() || self.session.wants_write() {
                break;
            }
        }
        if self.down.is_empty() && self.session.wants_read() {
            if later(self.session.read_tls(&mut self.server))? == Some(0) {
                return Ok(true);
            }
            self.session
                .process_new_packets()
                .map_err(io::Error::other)?;
        }
        loop {
            match self.down.drain(&mut self.client) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
            if !self.down.is_empty() {
                return Ok(false);
            }
            match later(self.down.fill(&mut self.session.reader()))? {
                None => return Ok(false),
                Some(0) => return Ok(true),
                Some(_) => {}
            }
        }
    }
}
