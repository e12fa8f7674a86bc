//! Tests of rules, views and accounts without a server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::access::rules::IdSet;
use crate::sync::unpoisoned;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn listed(uids: &[u32], gids: &[u32]) -> IdSet {
    IdSet::new(uids.to_vec(), gids.to_vec())
}

/// Both ends of a connection within this process.
fn connected() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("sockets")
}

#[test]
fn without_rules_admission_checks_nothing() {
    let clients = Clients::default();
    let (_, theirs) = connected();
    assert_eq!(clients.generation(), 0);
    assert!(clients.admit(&theirs, Transport::Unix).expect("let in").is_none());
}

#[test]
fn connections_of_a_user_are_capped() {
    let clients = Clients::default();
    clients.set(Rules::new(IdSet::default(), Vec::new(), 2, 0));
    let (_, socket) = connected();
    let first = clients.admit(&socket, Transport::Unix).expect("the first").expect("counted");
    let second = clients.admit(&socket, Transport::Unix).expect("the second").expect("counted");
    assert!(matches!(clients.admit(&socket, Transport::Unix), Err(Error::Busy(_))));
    assert_eq!(first.account().expect("a user").connections(), 2);
    drop(second);
    let third = clients.admit(&socket, Transport::Unix).expect("room again").expect("counted");
    // Clients of other transports have no user.
    assert!(clients.admit(&socket, Transport::Tcp).expect("let in").is_none());
    let counts: Vec<_> = clients.denials.counts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, [("connections", 1)]);
    drop((first, third));
    assert!(unpoisoned(clients.accounts.lock()).values().all(|account| account.upgrade().is_none()));
}

#[test]
fn new_rules_apply_to_connected_clients_which_count_once() {
    let clients = Clients::default();
    let (_, socket) = connected();
    clients.set(Rules::new(IdSet::default(), Vec::new(), 1, 0));
    let client_access = clients.admit(&socket, Transport::Unix).expect("let in");
    let no_user = Rules::new(listed(&[u32::MAX - 1], &[]), Vec::new(), 1, 0);
    clients.set(no_user.clone());
    let before = clients.generation();
    clients.set(no_user);
    assert_eq!(clients.generation(), before, "the same rules are no change");
    let client_access = clients.reevaluate(&socket, Transport::Unix, client_access).expect("there are rules");
    assert_eq!(client_access.check(b"a", &clients), Err(Error::NotAdmitted));
    assert_eq!(client_access.account().expect("a user").connections(), 1);
    assert_eq!(clients.admit(&socket, Transport::Unix).err(), Some(Error::NotAdmitted));
    clients.set(Rules::default());
    assert_eq!(clients.generation(), 0);
    assert!(clients.reevaluate(&socket, Transport::Unix, Some(client_access)).is_none());
    assert!(clients.admit(&socket, Transport::Unix).expect("let in").is_none());
}
