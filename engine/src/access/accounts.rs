//! Which users may connect, what they may use, and how much one user may have: lists of users and groups for Unix
//! sockets and for the URIs below a prefix, and caps for each user.
//!
//! The kernel names the user and the groups at the other end of a Unix socket (SO_PEERCRED, SO_PEERGROUPS),
//! supplementary groups included, as of connect(2). Clients of other transports have no user: paths below a prefix with
//! a list stay closed to them.
//!
//! Without rules the server checks and counts nothing: sessions compare one number per turn.

use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::access::denials::{Denials, Reason};
use crate::access::rules::{Rules, View};
use crate::errors::Error;
use crate::fd::counted_connection::CountedConnection;
use crate::net::credentials::{self, Credentials};
use crate::net::transport::Transport;
use crate::sync::{AtomicU32, AtomicU64, Mutex, Ordering, unpoisoned};

/// The pause between checks of what a user at the cap has received, after a check that found nothing.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);

/// The connections and descriptors of one user, over all its connections.
#[derive(Debug, Default)]
pub struct UserAccount {
    connections: AtomicU32,
    /// Opened for it, passed by it, or passed to it and, as far as the server knows, not received.
    descriptors: AtomicU32,
    members: Mutex<UserConnections>,
}

#[derive(Debug, Default)]
struct UserConnections {
    connections: Vec<Weak<dyn CountedConnection>>,
    /// When the last check found that they had received nothing.
    empty_scan_at: Option<Instant>,
}

impl UserAccount {
    pub fn take(&self, count: u32) {
        self.descriptors.fetch_add(count, Ordering::Relaxed);
    }

    pub fn release(&self, count: u32) {
        self.descriptors.fetch_sub(count, Ordering::Relaxed);
    }

    /// Adds the connection to those that the server checks when the user is at the cap.
    pub fn track(&self, connection: Weak<dyn CountedConnection>) {
        let mut members = unpoisoned(self.members.lock());
        if members.connections.len() == members.connections.capacity() {
            members.connections.retain(|member| member.strong_count() > 0);
        }
        members.connections.push(connection);
    }

    pub fn descriptors(&self) -> u32 {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// Finds out what the user has received meanwhile. Many connections cost many calls, so a check that finds
    /// nothing pauses the next ones.
    fn settle(&self) {
        let mut members = unpoisoned(self.members.lock());
        let now = Instant::now();
        if members.empty_scan_at.is_some_and(|at| now.duration_since(at) < SETTLE_INTERVAL) {
            return;
        }
        let before = self.descriptors();
        for member in members.connections.iter().filter_map(Weak::upgrade) {
            member.settle_unread();
        }
        members.empty_scan_at = (self.descriptors() >= before).then_some(now);
    }

    /// The counted connections of the user.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// One counted connection of a user.
#[derive(Debug)]
struct ConnectionCharge(Arc<UserAccount>);

impl Drop for ConnectionCharge {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Access facts about a client while there are rules.
#[derive(Debug)]
pub struct ClientAccess {
    /// The version of the rules that were evaluated for the client.
    pub generation: u64,
    /// None for a client without a user.
    peer: Option<Credentials>,
    view: View,
    /// None for a client without a user: the server counts users only.
    charge: Option<ConnectionCharge>,
}

impl ClientAccess {
    /// What the client may list.
    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn account(&self) -> Option<&Arc<UserAccount>> {
        self.charge.as_ref().map(|charge| &charge.0)
    }

    /// FORBIDDEN if this client may not use the path; with a slash at its end, anything below the path.
    pub fn check(&self, path: &[u8], clients: &Clients) -> Result<(), Error> {
        if !self.view.excludes(path) {
            return Ok(());
        }
        if self.view.is_admitted() {
            clients.denials.note(Reason::Prefix, self.peer.as_ref(), path);
            return Err(Error::NotForThisUser);
        }
        clients.denials.note(Reason::User, self.peer.as_ref(), b"");
        Err(Error::NotAdmitted)
    }

    /// UNAVAILABLE if the client's user may not have `more` further descriptors. A user without any may always have
    /// one of those available. Two threads that check at the same moment may both pass.
    pub fn check_descriptors(
        &self,
        own: &dyn CountedConnection,
        clients: &Clients,
        more: u32,
    ) -> Result<(), Error> {
        let max = self.view.rules().max_descriptors;
        let Some(account) = self.account().filter(|_| max > 0) else { return Ok(()) };
        // A write opens several at once; a cap below that must not forbid writes altogether.
        let max_before = max - more.min(max);
        if account.descriptors() > max_before {
            own.settle_unread();
        }
        if account.descriptors() > max_before {
            account.settle();
            if account.descriptors() > max_before {
                clients.denials.note(Reason::Descriptors, self.peer.as_ref(), b"");
                return Err(Error::Busy("this user has reached its limit of file descriptors; try again"));
            }
        }
        Ok(())
    }
}

/// The rules in force, and the accounts of the users that they concern.
#[derive(Debug, Default)]
pub struct Clients {
    /// 0 while there are no rules; each change of the rules sets another number.
    generation: AtomicU64,
    rules: Mutex<(u64, Arc<Rules>)>,
    accounts: Mutex<HashMap<u32, Weak<UserAccount>>>,
    pub denials: Denials,
}

impl Clients {
    /// Changes the rules. Sessions apply them at their next turn, or within a second.
    pub fn set(&self, rules: Rules) {
        let mut current = unpoisoned(self.rules.lock());
        if *current.1 != rules {
            let is_free = rules == Rules::default();
            *current = (current.0 + 1, Arc::new(rules));
            self.generation.store(if is_free { 0 } else { current.0 }, Ordering::Release);
        }
    }

    /// 0 while there are no rules.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Evaluates the rules for a new connection: None if no rules concern it. A denial is an error, and is counted.
    pub fn admit(&self, socket: &OwnedFd, transport: Transport) -> Result<Option<Box<ClientAccess>>, Error> {
        let Some(mut client_access) = self.evaluate(socket, transport) else { return Ok(None) };
        let Some(peer) = &client_access.peer else { return Ok(Some(client_access)) };
        if !client_access.view.is_admitted() {
            self.denials.note(Reason::User, Some(peer), b"");
            return Err(Error::NotAdmitted);
        }
        client_access.charge = self.charge_connection(peer.uid, client_access.view.rules().max_connections);
        if client_access.charge.is_none() {
            self.denials.note(Reason::Connections, Some(peer), b"");
            return Err(Error::Busy("this user has reached its limit of connections; try again"));
        }
        Ok(Some(client_access))
    }

    /// Evaluates the rules for a connected client again. It stays connected, but a client that may no longer connect
    /// may use nothing.
    pub fn reevaluate(
        &self,
        socket: &OwnedFd,
        transport: Transport,
        before: Option<Box<ClientAccess>>,
    ) -> Option<Box<ClientAccess>> {
        let mut client_access = self.evaluate(socket, transport)?;
        let charge = before.and_then(|before| before.charge);
        client_access.charge = client_access
            .peer
            .as_ref()
            .and_then(|peer| charge.or_else(|| self.charge_connection(peer.uid, 0)));
        Some(client_access)
    }

    /// FORBIDDEN if the path has a list: clients that ask in datagrams are on none.
    pub fn check_without_user(&self, path: &[u8]) -> Result<(), Error> {
        if self.generation() == 0 || !unpoisoned(self.rules.lock()).1.applies_to(path) {
            return Ok(());
        }
        self.denials.note(Reason::Prefix, None, path);
        Err(Error::NotForThisUser)
    }

    fn evaluate(&self, socket: &OwnedFd, transport: Transport) -> Option<Box<ClientAccess>> {
        if self.generation() == 0 {
            return None;
        }
        let (generation, rules) = unpoisoned(self.rules.lock()).clone();
        let peer = match transport {
            // No kernel credentials: treat as unknown user.
            Transport::Unix => Some(credentials::credentials(socket).unwrap_or(Credentials::UNKNOWN)),
            _ if !rules.has_prefixes() => return None,
            _ => None,
        };
        let view = View::new(rules, peer.as_ref());
        Some(Box::new(ClientAccess { generation, peer, view, charge: None }))
    }

    /// Counts a connection; None if the user has reached the cap.
    fn charge_connection(&self, uid: u32, max_connections: u32) -> Option<ConnectionCharge> {
        let mut accounts = unpoisoned(self.accounts.lock());
        let account = match accounts.get(&uid).and_then(Weak::upgrade) {
            Some(account) => account,
            None => {
                if accounts.len() == accounts.capacity() {
                    accounts.retain(|_, account| account.strong_count() > 0);
                }
                let account = Arc::new(UserAccount::default());
                accounts.insert(uid, Arc::downgrade(&account));
                account
            }
        };
        // The count grows only here, under the lock.
        if max_connections > 0 && account.connections() >= max_connections {
            return None;
        }
        account.connections.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionCharge(account))
    }
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
