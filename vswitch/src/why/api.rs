//! `GET /v1/why?mac=…[&vlan=…][&port=…]`: [`Ask`] in, [`Why`] out.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use towpath_common::clock::Clock;
use towpath_common::control::{Answer, Asked, Routes, beside};

use super::Snapshot;
use super::ask::{Ask, Why, ask};
use crate::capture::anchor::Anchor;
use crate::mac::Mac;
use crate::recent::Record;
use crate::recent::history::{History, Wanted};

/// What the answer is made of. Verbs may be called from any thread, and may block for as long as
/// the workers take to finish a burst.
pub trait Looking: Send + Sync {
    /// All ports, and where `mac` is known to be.
    fn snapshot(&self, mac: Mac) -> Snapshot;

    /// What all workers remember, in any order.
    fn recent(&self) -> Vec<Record>;
}

/// What the route needs.
pub struct Desk {
    plane: Arc<dyn Looking>,
    clock: Clock,
}

impl Desk {
    /// Answers from `plane`; `clock` is that of the workers.
    #[must_use]
    pub fn new(plane: Arc<dyn Looking>, clock: Clock) -> Desk {
        Desk { plane, clock }
    }

    /// The answer.
    #[must_use]
    pub fn answer(&self, question: &Ask) -> Answer<Why> {
        let snapshot = self.plane.snapshot(question.mac);
        let mut port = None;
        if let Some(name) = &question.port {
            port = snapshot.ports.iter().find(|port| port.name == *name);
            if port.is_none() {
                let description = format!("there is no port {name}");
                return Answer::failed(StatusCode::NOT_FOUND, description);
            }
        }
        let wanted = Wanted {
            mac: Some(question.mac),
            vlan: question.vlan,
            port: port.map(|port| port.number),
        };
        let records = self.plane.recent();
        let anchor = Anchor::new(&self.clock);
        let recent = History::new(&records, &wanted, &anchor, |number| {
            let port = snapshot.port(number);
            port.map_or_else(|| format!("port {}", number.0), |port| port.name.clone())
        });
        let number = port.map(|port| port.number);
        let why = ask(&snapshot, question.mac, question.vlan, number, recent);
        let places = why.places.len();
        Answer::success(format!("known in {places} places"), why)
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// The route, to be merged with the others.
pub fn table() -> Routes<Arc<Desk>> {
    Routes::new().get("/v1/why", "Why frames of an address arrive or do not", why)
}

async fn why(State(desk): State<Arc<Desk>>, Asked(question): Asked<Ask>) -> Answer<Why> {
    beside(move || desk.answer(&question)).await
}
