//! Single flight: requests for one object that is not here wait for one download.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

use crate::disk_cache::entry::Entry;
use crate::errors::{Error, OriginFailure};
use crate::sync::unpoisoned;

pub type Outcome = Result<Arc<Entry>, Error>;

/// The downloads of one mount that are under way, by key.
#[derive(Debug, Default)]
pub struct Flights(Mutex<HashMap<Box<str>, Arc<Flight>>>);

#[derive(Debug)]
pub struct Flight {
    outcome: watch::Sender<Option<Outcome>>,
    waiters: AtomicUsize,
}

/// A request that waits for a flight; it counts until it is dropped.
#[derive(Debug)]
pub struct Waiter {
    flight: Arc<Flight>,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The task that fetches for a flight. Dropping it ends the flight for all waiters.
#[derive(Debug)]
pub struct Leader<'a> {
    flights: &'a Flights,
    flight: Arc<Flight>,
    key: Box<str>,
}

impl Flights {
    /// Joins the flight of a key. The flight is the caller's to start where the second value says so.
    pub fn join(&self, key: &str) -> (Waiter, bool) {
        let mut flights = self.flights();
        let begins = !flights.contains_key(key);
        let flight = flights.entry(key.into()).or_insert_with(|| {
            Arc::new(Flight { outcome: watch::Sender::new(None), waiters: AtomicUsize::new(0) })
        });
        (Waiter::new(Arc::clone(flight)), begins)
    }

    /// Takes the lead of the flight that [`join`](Self::join) began.
    pub fn lead(&self, key: &str) -> Option<Leader<'_>> {
        let flight = Arc::clone(self.flights().get(key)?);
        Some(Leader { flights: self, flight, key: key.into() })
    }

    pub fn contains(&self, key: &str) -> bool {
        self.flights().contains_key(key)
    }

    pub fn len(&self) -> usize {
        self.flights().len()
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Flight>>> {
        unpoisoned(self.0.lock())
    }
}

impl Flight {
    pub fn waiters(&self) -> usize {
        self.waiters.load(Relaxed)
    }
}

impl Waiter {
    fn new(flight: Arc<Flight>) -> Waiter {
        flight.waiters.fetch_add(1, Relaxed);
        let outcome = flight.outcome.subscribe();
        Waiter { flight, outcome }
    }

    pub async fn wait(&mut self) -> Outcome {
        let ended = self.outcome.wait_for(Option::is_some).await;
        let outcome = ended.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or(Err(Error::Origin(OriginFailure::Stopped)))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Relaxed);
    }
}

impl Leader<'_> {
    pub fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Ends the flight with this outcome. Requests that come later begin another.
    pub fn land(self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&self, outcome: Outcome) {
        let mut flights = self.flights.flights();
        if flights.get(&*self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.remove(&*self.key);
        }
        drop(flights);
        self.flight.outcome.send_if_modified(|held| {
            let is_first = held.is_none();
            if is_first {
                *held = Some(outcome);
            }
            is_first
        });
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // After `land` this changes nothing.
        self.end(Err(Error::Origin(OriginFailure::Stopped)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_join_get_the_outcome_and_the_next_begins_anew() {
        let flights = Flights::default();
        let (mut first, begins) = flights.join("a");
        let (mut second, begins_again) = flights.join("a");
        assert!(begins && !begins_again && flights.join("b").1);
        let leader = flights.lead("a").unwrap();
        assert_eq!(leader.flight().waiters(), 2);
        leader.land(Err(Error::NotFound));
        assert_eq!(first.wait().await.unwrap_err(), Error::NotFound);
        assert_eq!(second.wait().await.unwrap_err(), Error::NotFound);
        assert!(flights.join("a").1);
    }

    #[tokio::test]
    async fn a_leader_that_breaks_off_leaves_no_waiter_behind() {
        let flights = Flights::default();
        let (mut waiter, _) = flights.join("a");
        drop(flights.lead("a").unwrap());
        assert_eq!(waiter.wait().await.unwrap_err(), Error::Origin(OriginFailure::Stopped));
        assert_eq!(flights.len(), 0);
    }
}
