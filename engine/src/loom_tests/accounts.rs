//! The counts of a user's connections and descriptors, while threads admit, judge again and drop connections.

use loom::thread;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::sync::Arc;

use crate::access::accounts::{ClientAccess, Clients};
use crate::access::rules::{IdSet, Rules};
use crate::fd::budget::FdBudget;
use crate::net::transport::Transport;

fn check(model: impl Fn(&Arc<OwnedFd>) + Sync + Send + 'static) {
    // Both ends stay open; the kernel names this process as the client.
    let (_theirs, socket) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let socket = Arc::new(socket);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || model(&socket));
}

fn clients(max_connections: u32) -> Arc<Clients> {
    let clients = Arc::new(Clients::default());
    clients.set(rules(max_connections));
    clients
}

fn rules(max_connections: u32) -> Rules {
    Rules::new(IdSet::default(), Vec::new(), max_connections, 0)
}

fn admit(clients: &Clients, socket: &OwnedFd) -> Option<Box<ClientAccess>> {
    clients.admit(socket, Transport::Unix).ok().map(Option::unwrap)
}

fn count(access: &ClientAccess) -> u32 {
    access.account().unwrap().connections()
}

/// Two threads admit connections of a user at the cap of one: exactly one gets in, and the place is free afterwards.
#[test]
fn two_that_arrive_at_once_share_the_cap() {
    check(|socket| {
        let clients = clients(1);
        let other = {
            let (clients, socket) = (Arc::clone(&clients), Arc::clone(socket));
            thread::spawn(move || admit(&clients, &socket))
        };
        let admitted = [admit(&clients, socket), other.join().unwrap()];
        assert_eq!(admitted.iter().flatten().map(|access| count(access)).collect::<Vec<_>>(), [1]);
        drop(admitted);
        assert_eq!(count(&admit(&clients, socket).expect("the place is free")), 1);
    });
}

/// One connection ends while another thread admits one: the count follows both, whichever comes first.
#[test]
fn an_ended_connection_is_uncounted_once() {
    check(|socket| {
        let clients = clients(2);
        let (first, second) = (admit(&clients, socket).unwrap(), admit(&clients, socket).unwrap());
        let other = {
            let (clients, socket) = (Arc::clone(&clients), Arc::clone(socket));
            thread::spawn(move || admit(&clients, &socket))
        };
        drop(first);
        let third = other.join().unwrap();
        assert_eq!(count(&second), 1 + u32::from(third.is_some()));
        drop(third);
        assert_eq!(count(&second), 1);
    });
}

/// The rules change while a session judges its client again and another connection of the user arrives: each
/// connection counts once.
#[test]
fn new_rules_count_each_connection_once() {
    check(|socket| {
        let clients = clients(3);
        let first = admit(&clients, socket);
        let session = {
            let (clients, socket) = (Arc::clone(&clients), Arc::clone(socket));
            thread::spawn(move || clients.reevaluate(&socket, Transport::Unix, first).unwrap())
        };
        let other = {
            let (clients, socket) = (Arc::clone(&clients), Arc::clone(socket));
            thread::spawn(move || admit(&clients, &socket).unwrap())
        };
        clients.set(rules(2));
        let (session, other) = (session.join().unwrap(), other.join().unwrap());
        assert_eq!(count(&session), 2);
        drop(other);
        assert_eq!(count(&session), 1);
    });
}

/// Two threads charge descriptors to a user and to the server's budget, and release them: nothing stays charged.
#[test]
fn each_charged_descriptor_is_released() {
    check(|socket| {
        let access = admit(&clients(1), socket).unwrap();
        let account = Arc::clone(access.account().unwrap());
        let budget = Arc::new(FdBudget::new(8));
        let other = {
            let (account, budget) = (Arc::clone(&account), Arc::clone(&budget));
            thread::spawn(move || {
                account.take(2);
                budget.take(2);
                assert!((2..=3).contains(&budget.taken()));
                account.release(1);
                budget.release(1);
            })
        };
        account.take(1);
        budget.take(1);
        assert!(account.descriptors() >= 1);
        account.release(1);
        budget.release(1);
        other.join().unwrap();
        assert_eq!((account.descriptors(), budget.taken()), (1, 1));
    });
}
