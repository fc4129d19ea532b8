//! Servers that say anything: a handshake ends, with a reason, having read no more than it must.

use std::io;

use proptest::prelude::*;

use super::*;

/// A server whose words are decided beforehand: these bytes, and then, for ever, those.
struct Server {
    says: Vec<u8>,
    then: Vec<u8>,
    at: usize,
    heard: Vec<u8>,
}

impl Server {
    fn new(says: &[&[u8]]) -> Server {
        Server {
            says: says.concat(),
            then: Vec::new(),
            at: 0,
            heard: Vec::new(),
        }
    }

    fn endless(says: &[&[u8]], then: &[u8]) -> Server {
        Server {
            then: then.to_owned(),
            ..Server::new(says)
        }
    }
}

impl Read for Server {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        for to in buf.iter_mut() {
            let rest = self.at.checked_sub(self.says.len());
            let byte = match rest {
                None => self.says[self.at],
                Some(_) if self.then.is_empty() => break,
                Some(rest) => self.then[rest % self.then.len()],
            };
            *to = byte;
            self.at += 1;
            n += 1;
        }
        Ok(n)
    }
}

impl Write for Server {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.heard.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hello() -> Vec<u8> {
    let mut bytes = magic::SERVER.to_be_bytes().to_vec();
    bytes.extend(magic::OPTION.to_be_bytes());
    bytes.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

fn answer_of(option: u32, kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = magic::OPTION_REPLY.to_be_bytes().to_vec();
    for field in [option, kind, len] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    answer_of(option, kind, u32::try_from(data.len()).unwrap(), data)
}

fn export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend(size.to_be_bytes());
    data.extend(flags.to_be_bytes());
    answer(OPT_GO, REP_INFO, &data)
}

fn blocks(min: u32, preferred: u32, max: u32) -> Vec<u8> {
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [min, preferred, max] {
        data.extend(size.to_be_bytes());
    }
    answer(OPT_GO, REP_INFO, &data)
}

fn no_structured() -> Vec<u8> {
    answer(OPT_STRUCTURED_REPLY, REP_ERR_UNSUP, b"")
}

fn ack() -> Vec<u8> {
    answer(OPT_GO, REP_ACK, b"")
}

fn refused(mut server: Server) -> String {
    let error = shake(&mut server, "e").unwrap_err().to_string();
    assert!(error.len() < 500, "{error}");
    // A hello, and as many replies as are allowed, of the size that is allowed.
    assert!(server.at < 18 + (MAX_REPLIES + 2) * (20 + MAX_REPLY as usize));
    error
}

#[test]
fn a_server_that_behaves_is_understood() {
    let says = [
        hello(),
        answer(OPT_STRUCTURED_REPLY, REP_ACK, b""),
        answer(OPT_GO, REP_INFO, &[0, 9, 1, 2, 3]),
        export(1 << 30, flag::HAS_FLAGS | flag::SEND_FLUSH),
        blocks(512, 4096, 1 << 20),
        ack(),
    ];
    let says: Vec<&[u8]> = says.iter().map(Vec::as_slice).collect();
    let info = shake(&mut Server::new(&says), "e").unwrap();
    assert_eq!(
        (info.size, info.min_block, info.max_block),
        (1 << 30, 512, 1 << 20)
    );
    assert!(info.structured);
}

#[test]
fn what_is_no_server_of_nbd_is_told_apart() {
    let old = [&magic::SERVER.to_be_bytes()[..], &[0; 200]];
    for (server, said) in [
        (
            Server::new(&[b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"]),
            "no NBDMAGIC",
        ),
        (Server::endless(&[], &[0]), "no NBDMAGIC"),
        (Server::new(&old), "an oldstyle server"),
        (Server::new(&[]), "the connection failed"),
        (Server::new(&[&hello()[..17]]), "the connection failed"),
    ] {
        let error = refused(server);
        assert!(error.contains(said), "{error}");
    }
    let mut plain = hello();
    plain[17] = 0;
    assert!(refused(Server::new(&[&plain])).contains("no fixed newstyle"));
}

#[test]
fn option_replies_without_end_or_bound_end_the_handshake() {
    let start = [hello(), no_structured()];
    let [a, b] = [&start[0][..], &start[1][..]];
    let info = export(1 << 20, flag::HAS_FLAGS);
    let longest = answer(OPT_GO, REP_INFO, &vec![7; MAX_REPLY as usize]);
    let long = answer_of(OPT_GO, REP_INFO, u32::MAX, b"");
    let longer = answer_of(OPT_GO, REP_INFO, MAX_REPLY + 1, b"");
    let other = answer(OPT_EXPORT_NAME, REP_ACK, b"");
    let odd = answer(OPT_GO, 77, b"");
    for (server, said) in [
        (Server::endless(&[a, b], &info), "more than 64 replies"),
        (Server::endless(&[a, b], &longest), "more than 64 replies"),
        (Server::new(&[a, b, &long]), "more than 8 KiB"),
        (Server::new(&[a, b, &longer]), "more than 8 KiB"),
        (Server::endless(&[a, b], &[0xff]), "without its magic"),
        (Server::new(&[a, b, &other]), "another option"),
        (Server::new(&[a, b, &odd]), "unknown reply"),
        (Server::new(&[a, b, &ack()]), "without NBD_INFO_EXPORT"),
        (Server::new(&[a, b, &info[..25]]), "the connection failed"),
        (
            Server::new(&[a, &answer(OPT_STRUCTURED_REPLY, 9, b"")]),
            "unknown reply",
        ),
    ] {
        let error = refused(server);
        assert!(error.contains(said), "{error} is not {said}");
    }
}

#[test]
fn exports_that_cannot_be_are_refused() {
    let flags = flag::HAS_FLAGS;
    for (info, block, said) in [
        (export(1 << 20, 0), blocks(1, 1, 4096), "without HAS_FLAGS"),
        (export(u64::MAX, flags), blocks(1, 1, 4096), "beyond 8 EiB"),
        (export(1 << 20, flags), blocks(0, 0, 0), "minimum block"),
        (
            export(1 << 20, flags),
            blocks(3, 3, 1 << 20),
            "minimum block",
        ),
        (
            export(1 << 20, flags),
            blocks(1 << 20, 1, 1 << 20),
            "minimum block",
        ),
        (export(1 << 20, flags), blocks(1, 1, 1), "maximum block"),
    ] {
        let says = [hello(), no_structured(), info, block, ack()];
        let says: Vec<&[u8]> = says.iter().map(Vec::as_slice).collect();
        let error = refused(Server::new(&says));
        assert!(error.contains(said), "{error} is not {said}");
    }
}

#[test]
fn a_message_is_told_without_what_would_disturb_a_terminal() {
    let nasty = b"\x1b[2Jno such \x07export\n";
    let no = answer(OPT_GO, REP_ERR_UNKNOWN, nasty);
    let error = refused(Server::new(&[&hello(), &no_structured(), &no]));
    assert!(
        error.contains("no such export") && !error.contains('\x1b'),
        "{error}"
    );
    let tls = answer(OPT_STRUCTURED_REPLY, REP_ERR_TLS_REQD, b"");
    let error = refused(Server::new(&[&hello(), &tls]));
    assert!(error.contains("tls-certs"), "{error}");
}

#[test]
fn tls_is_begun_or_the_connection_is_of_no_use() {
    let yes = answer(OPT_STARTTLS, REP_ACK, b"");
    assert!(start_tls(&mut Server::new(&[&hello(), &yes])).is_ok());
    let no = answer(OPT_STARTTLS, REP_ERR_UNSUP, b"");
    let error = start_tls(&mut Server::new(&[&hello(), &no])).unwrap_err();
    assert!(matches!(error, HandshakeError::NoTls), "{error}");
    for wrong in [
        answer(OPT_STARTTLS, REP_ACK, b"x"),
        answer(OPT_STARTTLS, 3, b""),
    ] {
        assert!(start_tls(&mut Server::new(&[&hello(), &wrong])).is_err());
    }
}

proptest! {
    #[test]
    fn noise_never_hangs_and_never_panics(
        noise in prop::collection::vec(any::<u8>(), 0..400),
        start in 0..3_usize,
        forever in any::<bool>(),
    ) {
        let parts = [hello(), no_structured()];
        let mut says: Vec<&[u8]> = parts[..start.min(2)].iter().map(Vec::as_slice).collect();
        says.push(&noise);
        let mut server = Server::new(&says);
        if forever {
            server.then.clone_from(&noise);
        }
        let _ = shake(&mut server, "e");
        prop_assert!(server.at < 18 + (MAX_REPLIES + 3) * (20 + MAX_REPLY as usize));
    }
}
