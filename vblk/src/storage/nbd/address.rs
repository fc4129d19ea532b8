//! Where an NBD server is and which of its exports is meant.
//!
//! `nbd:unix:/path[:export]`, or `nbd://host[:port][/export]`. The default export is the one with
//! the empty name. With `nbds:` in place of `nbd:` and `?tls-certs=DIR` at the end, it is reached
//! through TLS, or not at all; `&tls-name=NAME` says what the server's certificate is for, where
//! that is not the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of an NBD server (IANA).
pub const DEFAULT_PORT: u16 = 10809;

/// Longest export name the protocol allows, in bytes.
const MAX_NAME: usize = 4096;

/// Longest path of a unix socket (unix(7): 108 with the closing zero).
const MAX_PATH: usize = 107;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A host, by name or address, and a TCP port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
}

/// How TLS is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// A directory with `ca-cert.pem`, and, if the server wants to know us, `client-cert.pem` and
    /// `client-key.pem`: the names that QEMU, nbdkit and libnbd use.
    pub certs: PathBuf,
    /// What the server's certificate must be for; none: the host, or `localhost` for a unix socket.
    pub name: Option<String>,
}

/// An export of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server.
    pub endpoint: Endpoint,
    /// The export's name.
    pub export: String,
    /// Through TLS, if at all.
    pub tls: Option<Tls>,
}

/// How an address is written.
const RULE: &str = "write nbd:unix:/path[:export] or nbd://host[:port][/export], with nbds: and \
                    ?tls-certs=DIR[&tls-name=NAME] for TLS";

/// True if `text` is meant as an address.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.starts_with("nbd:") || text.starts_with("nbds:")
}

/// What comes before the `?` of an address with TLS, and what after.
fn tls(rest: &str) -> Result<(&str, Tls), &'static str> {
    let (rest, query) = rest.rsplit_once('?').ok_or(RULE)?;
    let (mut certs, mut name) = (None, None);
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("tls-certs", dir)) if dir.starts_with('/') => certs = Some(dir.into()),
            Some(("tls-name", text)) if !text.is_empty() => name = Some(text.to_owned()),
            _ => return Err(RULE),
        }
    }
    let certs = certs.ok_or("TLS wants tls-certs=DIR, an absolute path")?;
    Ok((rest, Tls { certs, name }))
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Address, &'static str> {
        let (rest, tls) = match text.strip_prefix("nbds:") {
            Some(rest) => tls(rest).map(|(rest, tls)| (rest, Some(tls)))?,
            None => (text.strip_prefix("nbd:").ok_or(RULE)?, None),
        };
        let (endpoint, export) = if let Some(rest) = rest.strip_prefix("unix:") {
            let (path, export) = rest.split_once(':').unwrap_or((rest, ""));
            if !path.starts_with('/') || path.len() > MAX_PATH {
                return Err("the path of an NBD server's socket is absolute, of 107 bytes at most");
            }
            (Endpoint::Unix(path.into()), export)
        } else if let Some(rest) = rest.strip_prefix("//") {
            let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
            (tcp(authority)?, export)
        } else {
            return Err(RULE);
        };
        if export.len() > MAX_NAME || export.contains('\0') {
            return Err("an export's name has at most 4096 bytes, none of them zero");
        }
        Ok(Address {
            endpoint,
            export: export.to_owned(),
            tls,
        })
    }
}

fn tcp(authority: &str) -> Result<Endpoint, &'static str> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(RULE)?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(RULE),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err(RULE);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port.parse().map_err(|_| "a port is a number up to 65535")?,
    };
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = &self.export;
        f.write_str(if self.tls.is_some() { "nbds:" } else { "nbd:" })?;
        match &self.endpoint {
            Endpoint::Unix(path) if export.is_empty() => write!(f, "unix:{}", path.display())?,
            Endpoint::Unix(path) => write!(f, "unix:{}:{export}", path.display())?,
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "//[{host}]:{port}/{export}")?;
            }
            Endpoint::Tcp { host, port } => write!(f, "//{host}:{port}/{export}")?,
        }
        let Some(Tls { certs, name }) = &self.tls else {
            return Ok(());
        };
        write!(f, "?tls-certs={}", certs.display())?;
        match name {
            Some(name) => write!(f, "&tls-name={name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in [
            "nbd:unix:/run/x.sock",
            "nbd:unix:/run/x.sock:disk a:b",
            "nbd://host:10809/",
            "nbd://host:1/a/b",
            "nbd://[::1]:10809/e",
            "nbds://host:1/e?tls-certs=/pki",
            "nbds:unix:/run/x.sock:e?f?tls-certs=/pki&tls-name=a.example",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let short: Address = "nbd://host".parse().unwrap();
        assert_eq!(short.to_string(), "nbd://host:10809/");
        let short: Address = "nbd://[fe80::1]/x".parse().unwrap();
        assert_eq!(short.to_string(), "nbd://[fe80::1]:10809/x");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "nbd:",
            "nbd:unix:",
            "nbd:unix:rel",
            "nbd://",
            "nbd://:5/x",
            "nbd://h:x/",
            "nbd://[::1",
            "nbd://[::1]5",
            "nbd://h:70000/",
            "nbd:tcp:h",
            "nbds://h/e",
            "nbds://h/e?tls-certs=pki",
            "nbds://h/e?tls-name=x",
            "nbds://h/e?tls-certs=/pki&x=y",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let long = format!("nbd:unix:/{}", "x".repeat(107));
        assert!(long.parse::<Address>().is_err());
    }
}
