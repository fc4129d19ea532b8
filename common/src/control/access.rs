//! Who may ask a daemon, and who may change something: the table `[control]`.
//!
//! Without it the socket's mode decides, as for any file: whoever can connect may do everything.
//! With it the kernel's word about the peer decides ([`Peer`]), and the socket is open to all:
//! `write` may do everything, `read` may look (GET), root and the daemon's own user may do
//! everything always, others nothing. A client without the right is answered 403, with what it
//! lacks.

use std::fs;

use axum::http::{Method, StatusCode};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::{Answer, Peer};
use crate::config::ValueError;

/// Most users and groups in a list.
pub const MAX_NAMES: usize = 64;

/// A user or a group, as `"user:kvm"`, `"group:kvm"`, or with a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Principal {
    text: String,
    who: Who,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    User(u32),
    Group(u32),
}

impl TryFrom<String> for Principal {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        let fix = "write user:NAME, group:NAME, or the number, of somebody in /etc/passwd or \
                   /etc/group";
        let who = match text.split_once(':') {
            Some(("user" | "uid", name)) => number(name, "/etc/passwd").map(Who::User),
            Some(("group" | "gid", name)) => number(name, "/etc/group").map(Who::Group),
            _ => None,
        };
        match who {
            Some(who) => Ok(Self { text, who }),
            None => Err(ValueError::form("user or group", text, fix)),
        }
    }
}

impl From<Principal> for String {
    fn from(principal: Principal) -> Self {
        principal.text
    }
}

/// `name` as a number, looked up in the third field of `table` if it is none.
fn number(name: &str, table: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let table = fs::read_to_string(table).ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name) && !name.is_empty()).then(|| fields.nth(1)?.parse().ok())?
    })
}

impl Principal {
    /// Whether `peer` is that user, or in that group.
    #[must_use]
    pub fn is(&self, peer: &Peer) -> bool {
        match self.who {
            Who::User(uid) => peer.uid == uid,
            Who::Group(gid) => peer.gids.contains(&gid),
        }
    }
}

/// The table `[control]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Who may look.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub read: Vec<Principal>,
    /// Who may do everything.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub write: Vec<Principal>,
}

/// A list of at most [`MAX_NAMES`], for `serde(deserialize_with)`.
///
/// # Errors
/// When there are more, or one is nobody.
pub fn some<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Principal>, D::Error> {
    let all = Vec::<Principal>::deserialize(from)?;
    if all.len() > MAX_NAMES {
        let text = format!(
            "{} entries; write at most {MAX_NAMES}, or a group",
            all.len()
        );
        return Err(D::Error::custom(text));
    }
    Ok(all)
}

impl Access {
    /// Whether the socket's mode decides.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.read.is_empty() && self.write.is_empty()
    }

    /// Whether `peer` may ask for `method`; the answer if not.
    ///
    /// # Errors
    /// 403, with what is missing.
    pub fn check(&self, peer: &Peer, method: &Method) -> Result<(), Answer> {
        let own = rustix::process::geteuid().as_raw();
        let among = |list: &[Principal]| list.iter().any(|principal| principal.is(peer));
        if self.is_open() || peer.uid == 0 || peer.uid == own || among(&self.write) {
            return Ok(());
        }
        let looks = matches!(*method, Method::GET | Method::HEAD);
        let reads = among(&self.read);
        if looks && reads {
            return Ok(());
        }
        let uid = peer.uid;
        let (may, list) = if reads {
            ("may look and not change anything", "write")
        } else if looks {
            ("may not look", "read")
        } else {
            ("may not change anything", "write")
        };
        Err(Answer::failed(
            StatusCode::FORBIDDEN,
            format!(
                "user {uid} {may}: it is not in `{list}` of [control], by itself or by a group"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(text: &str) -> Access {
        toml::from_str(text).unwrap()
    }

    fn peer(uid: u32, gids: &[u32]) -> Peer {
        let gids = gids.to_vec();
        Peer { uid, gids }
    }

    #[test]
    fn lists_decide_what_is_answered() {
        let access = access("read = [\"group:70001\"]\nwrite = [\"user:70002\", \"gid:70003\"]");
        let may = |peer: &Peer, method| access.check(peer, &method).is_ok();
        let cases = [
            (peer(0, &[0]), true, true),
            (peer(rustix::process::geteuid().as_raw(), &[]), true, true),
            (peer(70002, &[1]), true, true),
            (peer(5, &[1, 70003]), true, true),
            (peer(5, &[70001, 1]), true, false),
            (peer(70001, &[70002]), false, false),
        ];
        for (peer, reads, writes) in cases {
            assert_eq!(may(&peer, Method::GET), reads, "{peer:?}");
            assert_eq!(may(&peer, Method::POST), writes, "{peer:?}");
            assert_eq!(may(&peer, Method::DELETE), writes, "{peer:?}");
        }
        assert!(
            Access::default()
                .check(&peer(5, &[]), &Method::POST)
                .is_ok()
        );
    }

    #[test]
    fn the_answer_says_what_is_missing() {
        let access = access("read = [\"group:70001\"]");
        let said = |peer: &Peer, method| access.check(peer, &method).unwrap_err().description;
        let said = [
            said(&peer(5, &[70001]), Method::POST),
            said(&peer(5, &[]), Method::GET),
            said(&peer(5, &[]), Method::POST),
        ];
        assert!(
            said[0].contains("user 5 may look and not change anything"),
            "{said:?}"
        );
        assert!(said[0].contains("not in `write` of [control]"), "{said:?}");
        assert!(said[1].contains("not in `read`") && said[2].contains("not in `write`"));
    }

    #[test]
    fn names_are_looked_up_and_mistakes_named() {
        let access = access("read = [\"user:root\", \"group:root\"]");
        assert!(access.check(&peer(5, &[0]), &Method::GET).is_ok());
        for text in [
            "root",
            "group:",
            "user:no-such-user",
            "group:-1",
            "host:root",
        ] {
            let error = Principal::try_from(text.to_owned())
                .unwrap_err()
                .to_string();
            assert!(error.contains("group:NAME"), "{error}");
        }
        let many = format!("read = [{}]", "\"uid:7\", ".repeat(MAX_NAMES + 1));
        let error = toml::from_str::<Access>(&many).unwrap_err().to_string();
        assert!(error.contains("65 entries; write at most 64"), "{error}");
        let again = toml::to_string(&access).unwrap();
        assert_eq!(toml::from_str::<Access>(&again).unwrap(), access);
    }
}
