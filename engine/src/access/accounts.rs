//! Who may connect, to what, and how much one user may have of it: lists of users and groups for Unix sockets and for the
//! URIs below a prefix, caps for each user.
//!
//! The kernel vouches for the other end of a Unix socket (SO_PEERCRED, SO_PEERGROUPS): the user and the groups that it had
//! at connect(2), the supplementary ones too. Elsewhere nobody has a user: what is below a prefix with a list stays shut.
//!
//! Without rules nothing is asked and nothing is counted: sessions compare one number a turn.

use crate::net::credentials;
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::access::denials::{Denials, Reason};
use crate::access::rules::{Rules, View};
use crate::errors::Error;
use crate::net::credentials::Credentials;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::Connection;

/// How long the connections of a user who is at the cap, and receives nothing, are not asked again what was received.
const SETTLE_INTERVAL: Duration = Duration::from_millis(2);

/// What one user has, over all its connections.
#[derive(Debug, Default)]
pub struct UserAccount {
    connections: AtomicU32,
    /// Opened for it, passed by it, or passed to it and, as far as is known, not received.
    descriptors: AtomicU32,
    members: Mutex<UserConnections>,
}

#[derive(Debug, Default)]
struct UserConnections {
    connections: Vec<Weak<Connection>>,
    /// When it was last looked what they had received, and they had received nothing.
    vain_at: Option<Instant>,
}

impl UserAccount {
    pub fn take(&self, count: u32) {
        self.descriptors.fetch_add(count, Ordering::Relaxed);
    }

    pub fn release(&self, count: u32) {
        self.descriptors.fetch_sub(count, Ordering::Relaxed);
    }

    /// From now on the connection is looked at when the user is at the cap.
    pub fn track(&self, connection: &Arc<Connection>) {
        let mut members = lock(&self.members);
        if members.connections.len() == members.connections.capacity() {
            members.connections.retain(|member| member.strong_count() > 0);
        }
        members.connections.push(Arc::downgrade(connection));
    }

    fn descriptors(&self) -> u32 {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// Finds out what the user has received meanwhile. Many connections cost many calls, so after it was in vain it rests.
    fn settle(&self, service: &Service) {
        let mut members = lock(&self.members);
        let now = Instant::now();
        if members.vain_at.is_some_and(|at| now.duration_since(at) < SETTLE_INTERVAL) {
            return;
        }
        let before = self.descriptors();
        for member in members.connections.iter().filter_map(Weak::upgrade) {
            member.settle_unread(service);
        }
        members.vain_at = (self.descriptors() >= before).then_some(now);
    }

    fn connections(&self) -> u32 {
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

/// What is known of a client while there are rules.
#[derive(Debug)]
pub struct ClientAccess {
    /// The rules by which it was judged.
    pub generation: u64,
    who: Option<Credentials>,
    view: View,
    /// Only users are counted.
    charge: Option<ConnectionCharge>,
}

impl ClientAccess {
    /// What it may list.
    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn account(&self) -> Option<&Arc<UserAccount>> {
        self.charge.as_ref().map(|charge| &charge.0)
    }

    /// FORBIDDEN where this client may not use what is at the path; with a slash at its end, anything below it.
    pub fn check(&self, path: &[u8], peers: &Clients) -> Result<(), Error> {
        if !self.view.excludes(path) {
            return Ok(());
        }
        if self.view.is_admitted() {
            peers.refusals.note(Reason::Prefix, self.who.as_ref(), path);
            return Err(Error::NotForThisUser);
        }
        peers.refusals.note(Reason::User, self.who.as_ref(), b"");
        Err(Error::NotAdmitted)
    }

    /// UNAVAILABLE where its user may not have so many descriptors `more`; whoever has none may always have one of what
    /// there is. Threads that ask at the same moment may each be told that there is room.
    pub fn check_descriptors(&self, own: &Connection, service: &Service, more: u32) -> Result<(), Error> {
        let most = self.view.rules().max_descriptors;
        let Some(account) = self.account().filter(|_| most > 0) else { return Ok(()) };
        // A write has several open at once, which no cap is to forbid altogether.
        let room = most - more.min(most);
        if account.descriptors() > room {
            own.settle_unread(service);
        }
        if account.descriptors() > room {
            account.settle(service);
            if account.descriptors() > room {
                service.peers.refusals.note(Reason::Descriptors, self.who.as_ref(), b"");
                return Err(Error::Busy("this user has as many file descriptors as one may have, try again"));
            }
        }
        Ok(())
    }
}

/// The rules in force, and the accounts of those whom they concern.
#[derive(Debug, Default)]
pub struct Clients {
    /// 0 while there are no rules, else another number for each change of them.
    generation: AtomicU64,
    rules: Mutex<(u64, Arc<Rules>)>,
    accounts: Mutex<HashMap<u32, Weak<UserAccount>>>,
    pub refusals: Denials,
}

impl Clients {
    /// Changes the rules. Sessions find out at their next turn, or within a second.
    pub fn set(&self, rules: Rules) {
        let mut current = lock(&self.rules);
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

    /// Judges who has connected: None where there are no rules for it. What it may not have is an error, and counted.
    pub fn admit(&self, socket: &OwnedFd, transport: Transport) -> Result<Option<Box<ClientAccess>>, Error> {
        let Some(mut client_access) = self.evaluate(socket, transport) else { return Ok(None) };
        let Some(who) = &client_access.who else { return Ok(Some(client_access)) };
        if !client_access.view.is_admitted() {
            self.refusals.note(Reason::User, Some(who), b"");
            return Err(Error::NotAdmitted);
        }
        client_access.charge = self.charge_connection(who.uid, client_access.view.rules().max_connections);
        if client_access.charge.is_none() {
            self.refusals.note(Reason::Connections, Some(who), b"");
            return Err(Error::Busy("this user has as many connections as one may have, try again"));
        }
        Ok(Some(client_access))
    }

    /// Judges a client again who is in already, and stays in: but whoever may not connect any more may use nothing.
    pub fn reevaluate(
        &self,
        socket: &OwnedFd,
        transport: Transport,
        before: Option<Box<ClientAccess>>,
    ) -> Option<Box<ClientAccess>> {
        let mut client_access = self.evaluate(socket, transport)?;
        let seat = before.and_then(|before| before.charge);
        client_access.charge =
            client_access.who.as_ref().and_then(|who| seat.or_else(|| self.charge_connection(who.uid, 0)));
        Some(client_access)
    }

    /// FORBIDDEN where the path has a list: whoever asks in datagrams is on none.
    pub fn check_without_user(&self, path: &[u8]) -> Result<(), Error> {
        if self.generation() == 0 || !lock(&self.rules).1.applies_to(path) {
            return Ok(());
        }
        self.refusals.note(Reason::Prefix, None, path);
        Err(Error::NotForThisUser)
    }

    fn evaluate(&self, socket: &OwnedFd, transport: Transport) -> Option<Box<ClientAccess>> {
        if self.generation() == 0 {
            return None;
        }
        let (generation, rules) = lock(&self.rules).clone();
        let who = match transport {
            // Whom the kernel cannot name, nobody has named.
            Transport::Unix => Some(credentials::credentials(socket).unwrap_or(Credentials::NOBODY)),
            _ if !rules.has_prefixes() => return None,
            _ => None,
        };
        let view = View::new(rules, who.as_ref());
        Some(Box::new(ClientAccess { generation, who, view, charge: None }))
    }

    /// Counts a connection; None where the user has as many as one may have.
    fn charge_connection(&self, uid: u32, most: u32) -> Option<ConnectionCharge> {
        let mut accounts = lock(&self.accounts);
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
        // Only here does it grow, under the lock.
        if most > 0 && account.connections() >= most {
            return None;
        }
        account.connections.fetch_add(1, Ordering::Relaxed);
        Some(ConnectionCharge(account))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
