//! The NBD clients of a worker.

use std::io;

use super::{CLIENT, Client, DiskId, Engine, MemId, OWN, Place, Router, WHAT_BITS, What, Wire};
use crate::storage::nbd::Export;

impl<E: Engine> Router<E> {
    /// A client for `export`.
    pub(super) fn set_client(&mut self, export: &Export) -> io::Result<Place> {
        let number = self.clients.iter().position(Option::is_none);
        let number = number.unwrap_or(self.clients.len());
        let many = || io::Error::other("too many NBD connections on one worker");
        let count = Client::places(export);
        let first = self.vacant.len().checked_sub(count).ok_or_else(many)?;
        let mem = self.vacant_mems.last().copied().ok_or_else(many)?;
        let places: Vec<_> = self.vacant.iter().skip(first).map(|n| DiskId(*n)).collect();
        let base = u32::try_from(number << WHAT_BITS).map_err(|_| many())?;
        let inner = &mut self.inner;
        let client = Client::new(inner, export, &places, MemId(mem), OWN | CLIENT | base)?;
        self.vacant.truncate(first);
        self.vacant_mems.pop();
        if number == self.clients.len() {
            self.clients.push(None);
        }
        if let Some(place) = self.clients.get_mut(number) {
            *place = Some(client);
        }
        self.composed += 1;
        Ok(Place::Client(number))
    }

    /// A client has a completion, or is to push what it can.
    pub(super) fn client(&mut self, number: usize, ended: Option<(What, i32)>) {
        let Some(Some(client)) = self.clients.get_mut(number) else {
            return;
        };
        let mut wire = Wire {
            inner: &mut self.inner,
            mems: &self.mems,
            ready: &mut self.ready,
        };
        match ended {
            Some((what, result)) => client.ended(&mut wire, what, result),
            None => client.pump(&mut wire),
        }
        if client.is_gone() {
            self.forget_client(number);
        }
    }

    /// Give back what a client that is gone had.
    fn forget_client(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.composed -= 1;
        let _ = self.inner.set_memory(client.memory(), None);
        self.vacant_mems.push(client.memory().0);
        for place in client.all_places() {
            let _ = self.inner.set_disk(place, None);
            self.vacant.push(place.0);
        }
    }

    /// Let every client push what it can.
    pub(super) fn pump(&mut self) {
        for number in 0..self.clients.len() {
            let unsettled = |c: &Option<Client>| c.as_ref().is_some_and(Client::is_unsettled);
            if self.clients.get(number).is_some_and(unsettled) {
                self.client(number, None);
            }
        }
        self.pump_mirrors();
    }
}
