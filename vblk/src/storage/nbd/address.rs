//! Where an NBD server is and which of its exports is meant.
//!
//! `nbd:unix:/path[:export]`, or `nbd://host[:port][/export]`. The default export is the one with
//! the empty name.

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

/// An export of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server.
    pub endpoint: Endpoint,
    /// The export's name.
    pub export: String,
}

/// How an address is written.
const RULE: &str = "write nbd:unix:/path[:export] or nbd://host[:port][/export]";

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Address, &'static str> {
        let (endpoint, export) = if let Some(rest) = text.strip_prefix("nbd:unix:") {
            let (path, export) = rest.split_once(':').unwrap_or((rest, ""));
            if !path.starts_with('/') || path.len() > MAX_PATH {
                return Err("the path of an NBD server's socket is absolute, of 107 bytes at most");
            }
            (Endpoint::Unix(path.into()), export)
        } else if let Some(rest) = text.strip_prefix("nbd://") {
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
        match &self.endpoint {
            Endpoint::Unix(path) => {
                write!(f, "nbd:unix:{}", path.display())?;
                if export.is_empty() {
                    return Ok(());
                }
                write!(f, ":{export}")
            }
            Endpoint::Tcp { host, port } => {
                if host.contains(':') {
                    write!(f, "nbd://[{host}]:{port}/{export}")
                } else {
                    write!(f, "nbd://{host}:{port}/{export}")
                }
            }
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
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let long = format!("nbd:unix:/{}", "x".repeat(107));
        assert!(long.parse::<Address>().is_err());
    }
}
