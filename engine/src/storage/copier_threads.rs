//! Threads that copy files that clients pass as descriptors. A file system that does not answer may block any
//! of them for ever, so they do nothing else, each user has a share of them, and every wait for one has a limit.
//!
//! They start when there is work and end when there is none. A user may have a part of the free ones (the
//! dynamic threshold of Choudhury and Hahne, 1998) and at least one, so a user with blocked files leaves
//! threads to all others.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::spawn::spawn;
use crate::storage::pool::{Client, Progress, User};
use crate::sync::unpoisoned;

const STACK: usize = 256 << 10;
/// Threads that users share, by the number of free ones.
const SHARED: usize = 16;
/// Threads in all: the shared ones, and one for each of the remaining users.
const MAX_THREADS: usize = 64;
/// A user may have this fraction of the free threads: one half.
const SHARE: usize = 2;
/// A copy yields its thread to another copy after this time.
const TURN: Duration = Duration::from_millis(20);
/// The list of watched copies grows to this length before finished ones are removed.
const MIN_WATCHED: usize = 64;
/// A step takes milliseconds. A thread that stays in one step this long during a stop is stuck in the source.
const STUCK: Duration = Duration::from_millis(250);
/// Files of one user that may wait to be closed; a file system in user space may never release them.
const MAX_UNCLOSED: usize = 1024;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// A copy, or other work that may wait for the file system of a client's file.
pub trait Copy: Send {
    /// Does a small part of the work.
    fn step(&mut self) -> Progress;
}

/// The state of a copy, visible while a thread may be stuck in it.
pub trait Watched: Send + Sync {
    /// Called about once a second. Answers the client once it has waited too long.
    fn tick(&self, now: Instant);
}

#[derive(Debug)]
pub struct Copiers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    ended: Condvar,
    /// Files that wait to be closed, of all users and of each.
    unclosed: AtomicUsize,
    unclosed_of: Mutex<HashMap<User, usize>>,
}

#[derive(Default)]
struct State {
    /// The waiting copies of each connection, and the order of their turns.
    flows: HashMap<u64, Flow>,
    turns: VecDeque<u64>,
    /// Threads that work for each user.
    running: HashMap<User, usize>,
    busy: usize,
    /// Threads that put a finished copy in its place.
    finishing: usize,
    idle: usize,
    threads: usize,
    watched: Vec<Weak<dyn Watched>>,
    /// At this length, `watched` drops the copies that have ended.
    prune_at: usize,
    is_closed: bool,
    was_stopped: bool,
}

struct Flow {
    user: User,
    copies: VecDeque<Box<dyn Copy>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "State({} connections wait, {} threads)", self.turns.len(), self.threads)
    }
}

impl Default for Copiers {
    fn default() -> Self {
        Copiers(Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            ended: Condvar::new(),
            unclosed: AtomicUsize::new(0),
            unclosed_of: Mutex::default(),
        }))
    }
}

impl Copiers {
    /// Queues a copy for a client; a connection has a bounded number of them. Drops it after a stop.
    pub fn submit(&self, client: Client, copy: Box<dyn Copy>) {
        let mut state = self.0.state();
        if state.is_closed {
            drop(state);
            return drop(copy);
        }
        state.push(client, copy);
        self.0.staff(state);
    }

    /// Calls `watched` on every tick while it exists.
    pub fn watch(&self, watched: &Arc<impl Watched + 'static>) {
        let watched: Weak<dyn Watched> = Arc::<_>::downgrade(watched) as Weak<dyn Watched>;
        let mut state = self.0.state();
        if state.watched.len() >= state.prune_at.max(MIN_WATCHED) {
            state.watched.retain(|watched| watched.strong_count() > 0);
            state.prune_at = 2 * state.watched.len();
        }
        state.watched.push(watched);
    }

    /// Calls everything that is watched.
    pub fn tick(&self, now: Instant) {
        let mut state = self.0.state();
        state.watched.retain(|watched| watched.strong_count() > 0);
        let watched: Vec<_> = state.watched.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        for watched in watched {
            watched.tick(now);
        }
    }

    /// Drops the queued copies of a connection that has ended.
    pub fn cancel(&self, client: Client) {
        let mut state = self.0.state();
        let left = state.flows.remove(&client.connection);
        state.turns.retain(|connection| *connection != client.connection);
        drop(state);
        if let Some(left) = left {
            self.drop_elsewhere(client, left.copies);
        }
    }

    /// A drop closes the client's file, which may block as well.
    fn drop_elsewhere(&self, client: Client, copies: VecDeque<Box<dyn Copy>>) {
        if !copies.is_empty() {
            self.submit(client, Box::new(Dropping(Some(copies))));
        }
    }

    /// Closes a client's file, and drops `file`'s other parts, on a thread that may block.
    pub fn dispose(&self, client: Client, file: impl Send + 'static) {
        let unclosed = Unclosed::new(&self.0, client.user);
        // Rust drops fields in order: the file counts until it is closed.
        self.submit(client, Box::new(Dropping(Some((file, unclosed)))));
    }

    /// Whether too many files of this user wait to be closed for the server to accept another.
    pub fn has_too_many(&self, client: impl FnOnce() -> Client) -> bool {
        // The only check in the normal case.
        self.0.unclosed.load(Relaxed) >= MAX_UNCLOSED
            && self.0.unclosed_of().get(&client().user).is_some_and(|count| *count >= MAX_UNCLOSED)
    }

    /// Pieces of work that are not done.
    pub fn pending(&self) -> usize {
        let state = self.0.state();
        state.busy + state.flows.values().map(|flow| flow.copies.len()).sum::<usize>()
    }

    /// Marks the thread as done with the source until this is dropped: a stop waits for it.
    pub fn finish(&self) -> Finishing<'_> {
        self.0.state().finishing += 1;
        Finishing(&self.0)
    }

    /// Makes the running copies give up at their next step.
    pub fn close(&self) {
        self.0.state().is_closed = true;
    }

    /// Drops the queue, and ends the threads: waits until `until` for those that put a copy in its place, and
    /// a moment for those in a source. Leaves a stuck thread behind for good. False where it leaves one.
    pub fn stop(&self, until: Instant) -> bool {
        let mut state = self.0.state();
        state.is_closed = true;
        let now = Instant::now();
        let until = if std::mem::replace(&mut state.was_stopped, true) { now } else { until };
        let soon = until.min(now + STUCK);
        state.turns.clear();
        let left = std::mem::take(&mut state.flows);
        drop(state);
        self.0.filled.notify_all();
        // Only on a thread of its own: closing a client's file may block for ever, too.
        let dropping = spawn("objmapper-copier", STACK, move || drop(left));
        let mut state = self.0.state();
        while state.threads > 0 {
            let until = if state.finishing > 0 { until } else { soon };
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            state = unpoisoned(self.0.ended.wait_timeout(state, wait)).0;
        }
        state.threads == 0 && dropping.is_ok()
    }

    /// Whether copies must give up.
    pub fn is_stopped(&self) -> bool {
        self.0.state().is_closed
    }
}

/// While this exists, a stop waits for the finished copy.
#[derive(Debug)]
pub struct Finishing<'a>(&'a Shared);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        self.0.state().finishing -= 1;
        self.0.ended.notify_all();
    }
}

/// A file that waits to be closed; counted until this is dropped.
struct Unclosed {
    shared: Arc<Shared>,
    user: User,
}

impl Unclosed {
    fn new(shared: &Arc<Shared>, user: User) -> Unclosed {
        *shared.unclosed_of().entry(user).or_default() += 1;
        shared.unclosed.fetch_add(1, Relaxed);
        Unclosed { shared: Arc::clone(shared), user }
    }
}

impl Drop for Unclosed {
    fn drop(&mut self) {
        self.shared.unclosed.fetch_sub(1, Relaxed);
        let mut users = self.shared.unclosed_of();
        if let Some(count) = users.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// Work that drops its value.
struct Dropping<T>(Option<T>);

impl<T: Send> Copy for Dropping<T> {
    fn step(&mut self) -> Progress {
        self.0 = None;
        Progress::Done
    }
}

impl State {
    fn push(&mut self, client: Client, copy: Box<dyn Copy>) {
        let flow = self.flows.entry(client.connection);
        let flow = flow.or_insert_with(|| Flow { user: client.user, copies: VecDeque::new() });
        if flow.copies.is_empty() {
            self.turns.push_back(client.connection);
        }
        flow.copies.push_back(copy);
    }

    /// Whether the user may have one more thread.
    fn may_have_one(&self, user: User) -> bool {
        let own = self.running.get(&user).copied().unwrap_or(0);
        own == 0 || own < SHARED.saturating_sub(self.busy) / SHARE
    }

    fn has_next(&self) -> bool {
        self.turns
            .iter()
            .any(|connection| self.flows.get(connection).is_some_and(|flow| self.may_have_one(flow.user)))
    }

    /// Takes out the next work.
    fn pop(&mut self) -> Option<(Client, Box<dyn Copy>)> {
        let at = self.turns.iter().position(|connection| {
            self.flows.get(connection).is_some_and(|flow| self.may_have_one(flow.user))
        })?;
        let connection = self.turns.remove(at)?;
        let flow = self.flows.get_mut(&connection)?;
        let client = Client { user: flow.user, connection };
        let copy = flow.copies.pop_front()?;
        if flow.copies.is_empty() {
            self.flows.remove(&connection);
        } else {
            self.turns.push_back(connection);
        }
        *self.running.entry(client.user).or_default() += 1;
        self.busy += 1;
        Some((client, copy))
    }

    fn end_turn(&mut self, client: Client) {
        self.busy -= 1;
        if let Some(running) = self.running.get_mut(&client.user) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&client.user);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    fn unclosed_of(&self) -> MutexGuard<'_, HashMap<User, usize>> {
        unpoisoned(self.unclosed_of.lock())
    }

    /// Wakes a thread for the waiting work, or starts one.
    fn staff(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if !state.has_next() {
            return;
        }
        if state.idle > 0 {
            drop(state);
            return self.filled.notify_one();
        }
        if state.threads >= MAX_THREADS {
            return;
        }
        state.threads += 1;
        let shared = Arc::clone(self);
        if spawn("objmapper-copier", STACK, move || shared.work()).is_err() {
            // Other threads take the work, or the next submit tries again.
            state.threads -= 1;
        }
    }

    /// The loop of one thread.
    fn work(self: &Arc<Self>) {
        let mut state = self.state();
        loop {
            if state.is_closed {
                break;
            }
            let Some((client, mut copy)) = state.pop() else {
                state.idle += 1;
                let (woken, waited) = unpoisoned(self.filled.wait_timeout(state, IDLE));
                state = woken;
                state.idle -= 1;
                if waited.timed_out() && !state.has_next() {
                    break;
                }
                continue;
            };
            // More work may wait than this thread takes.
            self.staff(state);
            let until = Instant::now() + TURN;
            let progress = loop {
                // The runtime has reported a panic on stderr; the dropped copy answers its client.
                let step = catch_unwind(AssertUnwindSafe(|| copy.step())).unwrap_or(Progress::Done);
                if step == Progress::Done || Instant::now() >= until {
                    break step;
                }
            };
            let unfinished = match progress {
                Progress::More => Some(copy),
                Progress::Done => {
                    drop(copy);
                    None
                }
            };
            state = self.state();
            state.end_turn(client);
            match unfinished {
                Some(copy) if !state.is_closed => state.push(client, copy),
                Some(copy) => {
                    drop(state);
                    drop(copy);
                    state = self.state();
                }
                None => {}
            }
        }
        state.threads -= 1;
        drop(state);
        self.ended.notify_all();
    }
}

#[cfg(test)]
#[path = "copier_threads_tests.rs"]
mod tests;
