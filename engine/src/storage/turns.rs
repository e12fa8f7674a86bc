//! The order of clients that wait for storage: users take turns, then the connections of each user.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng, "Start-time fair queueing", 1996) at both levels. Each member
//! has a sum of its jobs' time; the member with the least is next. A member that returns starts at the clock
//! of its round, so it neither saves up time while idle nor waits for the backlog of others. The time of a
//! job is known only afterwards: the queue charges an estimate when it begins, and corrects it when it ends.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::storage::fair_round::{BEGUN, CLASSES, MIN_CHARGE, Member, PLACELESS, Round};

/// The user that storage works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum User {
    /// Of a Unix socket, from the kernel's credentials.
    Uid(u32),
    /// Over TCP and UDP the address identifies the user.
    Address(IpAddr),
    Unknown,
}

/// One connection of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    pub user: User,
    pub connection: u64,
}

/// How to treat a storage job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Done in one turn.
    Short,
    /// The same, before the other waiting jobs of its connection.
    Urgent,
    /// Done in one turn, also after the client has left.
    Write,
    /// Takes any number of turns; a connection runs one at a time.
    Long,
}

/// The limits of long jobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongLimits {
    /// Threads that work on them.
    pub threads: usize,
    /// Places for long jobs that have begun and hold memory.
    pub begun: usize,
}

/// Threads that work for one client at a time, so that a client whose disk does not answer leaves some for others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    pub connection: usize,
    pub user: usize,
}

impl Shares {
    /// The shares of `threads` threads, and of `more` that replace stuck ones. With three or more threads, a
    /// connection leaves one for the same user's other connections, and a user leaves one for other users.
    /// With two, a connection leaves one.
    pub fn new(threads: usize, more: usize) -> Shares {
        let connection = threads.saturating_sub(2).max(1);
        Shares { connection, user: (threads + more).saturating_sub(1).max(2) }
    }
}

/// A job that a thread has taken, and the resources that the end of its turn gives back.
#[derive(Debug)]
pub(super) struct Taken<J> {
    pub client: Client,
    pub kind: Kind,
    pub job: J,
    /// It uses one of the threads for long jobs.
    is_continued: bool,
    /// It has one of the places for long jobs that have begun.
    has_place: bool,
}

/// The place of a job that is not done after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Kept,
    /// The job keeps its place, but others wait for one: it should end soon.
    Wanted,
    /// No place is free: the job must release its memory, and starts again once one is free.
    Refused,
}

/// The waiting jobs of one connection.
#[derive(Debug)]
struct Flow<J> {
    short: VecDeque<(Kind, J)>,
    long: VecDeque<J>,
    /// The state of the first long job.
    front: Front,
    /// The last turn went to a short job.
    short_was_last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    New,
    Begun,
    /// It had a turn, and released its memory.
    Placeless,
    /// A thread works on it.
    Taken,
}

impl<J> Flow<J> {
    fn ready(&self) -> [bool; CLASSES] {
        let front = (!self.long.is_empty()).then_some(self.front);
        [
            !self.short.is_empty() || front == Some(Front::New),
            front == Some(Front::Begun),
            front == Some(Front::Placeless),
        ]
    }
}

/// The waiting jobs of one user.
#[derive(Debug)]
struct Flows<J> {
    /// By connection number.
    round: Round<u64, Flow<J>>,
    /// The places for begun long jobs that this user has.
    places: usize,
}

/// All waiting jobs.
#[derive(Debug)]
pub(super) struct Turns<J> {
    users: Round<User, Flows<J>>,
    limits: LongLimits,
    shares: Shares,
    /// Threads that work on long jobs.
    continuing: usize,
    begun: usize,
    running: usize,
}

impl<J> Turns<J> {
    pub fn new(limits: LongLimits, shares: Shares) -> Self {
        Turns { users: Round::new(), limits, shares, continuing: 0, begun: 0, running: 0 }
    }

    pub fn push(&mut self, client: Client, kind: Kind, job: J) {
        let user = self.users.enter(client.user, || Flows { round: Round::new(), places: 0 });
        let flow = user.value.round.enter(client.connection, || Flow {
            short: VecDeque::new(),
            long: VecDeque::new(),
            front: Front::New,
            short_was_last: false,
        });
        match kind {
            Kind::Short | Kind::Write => flow.value.short.push_back((kind, job)),
            Kind::Urgent => flow.value.short.push_front((kind, job)),
            Kind::Long => flow.value.long.push_back(job),
        }
        self.settle(client);
    }

    /// Whether a ready job may begin or go on.
    pub fn has_next(&self) -> bool {
        self.next_user().is_some()
    }

    /// The next user, and the classes that this user may run.
    fn next_user(&self) -> Option<(User, [bool; CLASSES])> {
        let [short, begun, placeless] = self.allowed();
        let first = self.users.first([short, begun, false]);
        // Each user refused here has a place already, so there are few of them.
        let wait = self.users.ready[PLACELESS].iter().filter(|_| placeless).copied();
        let first =
            first.into_iter().chain(wait.filter(|(_, user)| self.may_have_a_place(*user)).take(1)).min();
        first.map(|(_, user)| (user, [short, begun, placeless && self.may_have_a_place(user)]))
    }

    /// Whether a user may have one more place for begun long jobs: at most as many as are free, so that one
    /// remains for the next user (the dynamic threshold of Choudhury and Hahne, see `fd/budget.rs`).
    fn may_have_a_place(&self, user: User) -> bool {
        let free = self.limits.begun - self.begun;
        let has = self.users.members.get(&user).map_or(0, |user| user.value.places);
        free > 0 && (has == 0 || has < free)
    }

    /// Whether a long job waits until this user gives up a place.
    fn is_place_wanted(&self, user: User) -> bool {
        let is_waiting = self.users.members.get(&user).is_some_and(|member| member.ready[PLACELESS]);
        (is_waiting && !self.may_have_a_place(user))
            || (self.begun >= self.limits.begun && !self.users.ready[PLACELESS].is_empty())
    }

    fn count_place(&mut self, user: User, is_added: bool) {
        let Some(user) = self.users.members.get_mut(&user) else { return };
        let count = |count: &mut usize| *count = if is_added { *count + 1 } else { *count - 1 };
        count(&mut self.begun);
        count(&mut user.value.places);
    }

    /// Takes the next job.
    pub fn pop(&mut self) -> Option<Taken<J>> {
        let (user, allowed) = self.next_user()?;
        let flows = &mut self.users.members.get_mut(&user)?.value.round;
        let (_, connection) = flows.first(allowed)?;
        let flow = &mut flows.members.get_mut(&connection)?.value;
        let front = if flow.long.is_empty() { Front::Taken } else { flow.front };
        let may_go_on = match front {
            Front::New => true,
            Front::Begun => allowed[BEGUN],
            Front::Placeless => allowed[PLACELESS],
            Front::Taken => false,
        };
        let takes_long = may_go_on && (flow.short.is_empty() || flow.short_was_last);
        flow.short_was_last = !takes_long;
        let (kind, job) = match takes_long {
            true => (Kind::Long, flow.long.pop_front()?),
            false => flow.short.pop_front()?,
        };
        let is_continued = takes_long && front != Front::New;
        if takes_long {
            flow.front = Front::Taken;
        }
        self.running += 1;
        flows.begin(connection);
        self.users.begin(user);
        self.continuing += usize::from(is_continued);
        if is_continued && front == Front::Placeless {
            self.count_place(user, true);
        }
        let client = Client { user, connection };
        self.settle(client);
        Some(Taken { client, kind, job, is_continued, has_place: is_continued })
    }

    /// Ends the turn of a job that is done.
    pub fn end<T>(&mut self, taken: &Taken<T>, cost: Duration) {
        if taken.has_place {
            self.count_place(taken.client.user, false);
        }
        self.after_turn(taken, cost, Front::New);
    }

    /// Whether an unfinished long job keeps its place after a turn; called before `put_back`.
    pub fn place(&mut self, taken: &mut Taken<J>) -> Place {
        if taken.has_place {
            return if self.is_place_wanted(taken.client.user) { Place::Wanted } else { Place::Kept };
        }
        if !self.may_have_a_place(taken.client.user) {
            return Place::Refused;
        }
        self.count_place(taken.client.user, true);
        taken.has_place = true;
        Place::Kept
    }

    /// Puts back a long job that is not done after its turn.
    pub fn put_back(&mut self, taken: Taken<J>, cost: Duration) {
        let Taken { client, kind, job, is_continued, has_place } = taken;
        if let Some(flow) = self.flow(client) {
            flow.long.push_front(job);
        }
        let front = if has_place { Front::Begun } else { Front::Placeless };
        self.after_turn(&Taken { client, kind, job: (), is_continued, has_place }, cost, front);
    }

    /// Removes the waiting jobs of a connection, except writes.
    pub fn cancel(&mut self, client: Client) -> Vec<J> {
        let Some(flow) = self.flow(client) else { return Vec::new() };
        let mut left: Vec<J> = Vec::new();
        let (writes, reads) = flow.short.drain(..).partition(|(kind, _)| *kind == Kind::Write);
        flow.short = writes;
        left.extend(VecDeque::into_iter(reads).map(|(_, job)| job));
        let held_place = flow.front == Front::Begun && !flow.long.is_empty();
        left.extend(flow.long.drain(..));
        if flow.front != Front::Taken {
            flow.front = Front::New;
        }
        if held_place {
            self.count_place(client.user, false);
        }
        self.settle(client);
        left
    }

    /// Removes all jobs, with or without writes.
    pub fn clear(&mut self, writes_too: bool) -> Vec<J> {
        let mut left = Vec::new();
        for client in self.clients() {
            left.extend(self.cancel(client));
            if writes_too && let Some(flow) = self.flow(client) {
                left.extend(std::mem::take(&mut flow.short).into_iter().map(|(_, job)| job));
                self.settle(client);
            }
        }
        left
    }

    /// Sets how many threads may work for one client.
    pub fn set_shares(&mut self, shares: Shares) {
        self.shares = shares;
        self.clients().into_iter().for_each(|client| self.settle(client));
    }

    /// Whether any job waits, also one that may not begin yet.
    pub fn has_waiting(&self) -> bool {
        let mut flows = self.users.members.values().flat_map(|user| user.value.round.members.values());
        flows.any(|flow| !flow.value.short.is_empty() || !flow.value.long.is_empty())
    }

    fn clients(&self) -> Vec<Client> {
        let of_user = |(&user, member): (&User, &Member<Flows<J>>)| {
            let connections = member.value.round.members.keys();
            connections.map(|&connection| Client { user, connection }).collect::<Vec<_>>()
        };
        self.users.members.iter().flat_map(of_user).collect()
    }

    fn allowed(&self) -> [bool; CLASSES] {
        let may_go_on = self.continuing < self.limits.threads;
        [true, may_go_on, may_go_on && self.begun < self.limits.begun]
    }

    fn flow(&mut self, client: Client) -> Option<&mut Flow<J>> {
        let user = self.users.members.get_mut(&client.user)?;
        Some(&mut user.value.round.members.get_mut(&client.connection)?.value)
    }

    fn after_turn<T>(&mut self, taken: &Taken<T>, cost: Duration, front: Front) {
        let client = taken.client;
        let cost = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX / 4).clamp(MIN_CHARGE, u64::MAX / 4);
        self.continuing -= usize::from(taken.is_continued);
        self.running -= 1;
        if taken.kind == Kind::Long
            && let Some(flow) = self.flow(client)
        {
            flow.front = front;
        }
        if let Some(user) = self.users.members.get_mut(&client.user) {
            user.value.round.end(client.connection, cost);
        }
        self.users.end(client.user, cost);
        self.settle(client);
        if self.running == 0 && !self.users.ready.iter().any(|set| !set.is_empty()) {
            // All are idle: none has a backlog.
            self.users = Round::new();
        }
    }

    /// Updates the rounds after a change of a connection's jobs.
    fn settle(&mut self, client: Client) {
        let Some(user) = self.users.members.get_mut(&client.user) else { return };
        let flows = &mut user.value.round;
        let Some(flow) = flows.members.get(&client.connection) else { return };
        let has_share = flow.running < self.shares.connection;
        let ready = if has_share { flow.value.ready() } else { [false; CLASSES] };
        flows.set_ready(client.connection, ready);
        let has_share = user.running < self.shares.user;
        let ready = if has_share { flows.ready_classes() } else { [false; CLASSES] };
        self.users.set_ready(client.user, ready);
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
