//! TLS with servers that others wrote, and certificates that openssl makes for the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::servers::{SIZE, bench, free_port, image, work};
use crate::disk::{Disk, Serial};
use crate::request::Status;
use crate::storage::nbd::{Export, NbdError};
use crate::testing::FLUSH;

/// A directory with an authority, a server's certificate for `localhost`, and a client's; and one
/// with another authority. None, with a printed reason, where there is no openssl.
fn certificates(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let script = r#"
set -e
authority() {
    mkdir -p "$1"; cd "$1"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -days 2 \
        -subj "/CN=$2" -addext basicConstraints=critical,CA:TRUE
}
issue() {
    openssl req -newkey rsa:2048 -nodes -keyout "$1-key.pem" -out "$1.csr" -subj "/CN=$2"
    printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE\n' "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial \
        -out "$1-cert.pem" -days 2 -extfile "$1.ext"
}
here=$PWD
authority "$here/other" "another authority"
authority "$here/pki" "an authority"
issue server localhost
issue client a-client
"#;
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output();
    match made {
        Ok(made) if made.status.success() => Some((dir.join("pki"), dir.join("other"))),
        other => {
            println!("skipped: openssl makes no certificates here: {other:?}");
            None
        }
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(program: &str, args: &[&str]) -> Option<Server> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = command.stderr(Stdio::null()).spawn();
    let failed = |e: &std::io::Error| println!("skipped: no {program} here: {e}");
    child.inspect_err(failed).ok().map(Server)
}

fn open(address: &str) -> Result<Disk, NbdError> {
    Export::disk(
        &address.parse().unwrap(),
        false,
        2,
        Serial::new("tls").unwrap(),
    )
}

/// The same, once the server listens.
fn connect(address: &str) -> Disk {
    let mut last = None;
    for _ in 0..600 {
        match open(address) {
            Ok(disk) => return disk,
            Err(error @ NbdError::Connect { .. }) => last = Some(error.to_string()),
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{last:?}");
}

/// nbdkit on a unix socket and qemu-nbd on a port, which want TLS and a client's certificate: a
/// server and the address without its scheme.
fn server(kind: &str, dir: &Path, image: &Path, pki: &Path) -> Option<(Server, String)> {
    let image = image.to_str().unwrap();
    let pki = pki.to_str().unwrap();
    match kind {
        "nbdkit" => {
            let socket = dir.join("tls.sock");
            let socket = socket.to_str().unwrap();
            let certs = format!("--tls-certificates={pki}");
            let args = [
                "-f",
                "-U",
                socket,
                "--tls=require",
                &certs,
                "--tls-verify-peer",
                "file",
                image,
            ];
            Some((serve(kind, &args)?, format!("unix:{socket}")))
        }
        _ => {
            let port = free_port().to_string();
            let creds = format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={pki}");
            let args = [
                "-t",
                "-e",
                "8",
                "-f",
                "raw",
                "-b",
                "127.0.0.1",
                "-p",
                &port,
                "--object",
                &creds,
                "--tls-creds",
                "tls0",
                image,
            ];
            Some((serve(kind, &args)?, format!("//localhost:{port}/")))
        }
    }
}

#[test]
fn requests_pass_through_tls_and_survive_a_server_that_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some((pki, _)) = certificates(dir.path()) else {
        return;
    };
    for kind in ["nbdkit", "qemu-nbd"] {
        let image = image(dir.path());
        let Some((running, place)) = server(kind, dir.path(), &image, &pki) else {
            continue;
        };
        let address = format!("nbds:{place}?tls-certs={}", pki.display());
        let mut bench = bench(connect(&address));
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        let mut state = 11;
        work(&mut bench, &mut model, 8, &mut state);
        let flush = bench.ram.request(FLUSH, 0, &[]);
        assert_eq!(bench.run(&flush).status, Status::Ok, "{kind}");
        assert!(fs::read(&image).unwrap() == model, "{kind}");
        if kind == "nbdkit" {
            // Durable writes: nothing can be lost with the server.
            bench.target.set_write_through(true);
            drop(running);
            let _ = fs::remove_file(dir.path().join("tls.sock"));
            let again = server(kind, dir.path(), &image, &pki).unwrap();
            work(&mut bench, &mut model, 3, &mut state);
            assert!(fs::read(&image).unwrap() == model, "{kind}");
            drop(again);
        }
    }
}

#[test]
fn a_server_that_is_somebody_else_is_refused_and_so_is_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let Some((pki, other)) = certificates(dir.path()) else {
        return;
    };
    let image = image(dir.path());
    for kind in ["nbdkit", "qemu-nbd"] {
        let Some((_running, place)) = server(kind, dir.path(), &image, &pki) else {
            continue;
        };
        let good = format!("nbds:{place}?tls-certs={}", pki.display());
        drop(connect(&good));
        let plain = open(&format!("nbd:{place}")).unwrap_err().to_string();
        assert!(plain.contains("it wants TLS"), "{kind}: {plain}");
        let untrusted = format!("nbds:{place}?tls-certs={}", other.display());
        let error = open(&untrusted).unwrap_err().to_string();
        assert!(
            error.contains("TLS") && error.contains("nknown"),
            "{kind}: {error}"
        );
        let error = open(&format!("{good}&tls-name=else.example")).unwrap_err();
        assert!(
            error.to_string().contains("not valid for name"),
            "{kind}: {error}"
        );
        let error = open(&format!("nbds:{place}?tls-certs=/nowhere")).unwrap_err();
        assert!(
            error.to_string().contains("/nowhere/ca-cert.pem"),
            "{kind}: {error}"
        );
    }
    // A server without TLS is not spoken to in plain text instead.
    let socket = dir.path().join("plain.sock");
    let socket = socket.to_str().unwrap();
    let args = ["-f", "-U", socket, "file", image.to_str().unwrap()];
    let Some(_running) = serve("nbdkit", &args) else {
        return;
    };
    drop(connect(&format!("nbd:unix:{socket}")));
    let address = format!("nbds:unix:{socket}?tls-certs={}", pki.display());
    let error = open(&address).unwrap_err().to_string();
    assert!(error.contains("has no TLS"), "{error}");
}
