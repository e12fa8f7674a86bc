//! One event loop: accepts connections, runs the sessions whose sockets are ready, and carries out commands.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::concurrency::acceptor::{AcceptOutcome, Acceptor, Taker};
use crate::concurrency::control::{Command, Control};
use crate::concurrency::dedicated_threads::{DedicatedThreads, ReturnToLoop};
use crate::concurrency::mailbox::{Mailbox, WakeQueue};
use crate::concurrency::poller::{Events, Poller, SpinWait, Token};
use crate::concurrency::slab::{Key, SessionSlab};
use crate::concurrency::{TURN, run};
use crate::model::{Model, TICK};
use crate::net::eventfd::EventFd;
use crate::net::transport::IoMode;
use crate::service::Service;
use crate::session::{Next, RunOptions, Session, ThreadBuffers, Wake};

const ACCEPTS_PER_TURN: usize = 64;
/// After this many runs without further work, a session moves to a dedicated thread.
const PROMOTE_AFTER: u32 = 16;

/// The state that the loops of one model share.
#[derive(Debug)]
pub(super) struct EventLoops {
    pub acceptor: Arc<Acceptor>,
    pub service: Arc<Service>,
    pub control: Arc<Control>,
    pub loops: Vec<Mailbox>,
    pub dedicated: Arc<DedicatedThreads>,
}

impl ReturnToLoop for EventLoops {
    fn return_session(&self, session: Box<Session>) -> Result<(), Box<Session>> {
        Mailbox::push_to_least_loaded(&self.loops, session)
    }
}

#[derive(Debug)]
struct Entry {
    session: Box<Session>,
    registered: EventFlags,
    /// How many runs ended with nothing more to do.
    idle_runs: u32,
    due: Due,
}

/// When to run a session without an event. A session has at most one such turn pending, however often it requested one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    No,
    /// The session is in `run_queue`: events that arrive meanwhile add no further turn.
    Again,
    /// The session is in `timers` with this time; entries with another time are outdated.
    At(Instant),
}

pub(super) struct EventLoop<'a> {
    shared: &'a Arc<EventLoops>,
    mailbox: &'a Mailbox,
    number: usize,
    poller: Poller,
    entries: SessionSlab<Entry>,
    buffers: ThreadBuffers,
    options: RunOptions,
    /// Sessions to run again without an event.
    run_queue: VecDeque<Key>,
    /// Sessions to run at a time without an event; the soonest first.
    timers: BinaryHeap<Reverse<(Instant, Key)>>,
    woken: Arc<WakeQueue>,
    /// When to watch the listener again after the process ran out of descriptors.
    accept_at: Option<Instant>,
    taker: Taker,
    applied: Command,
}

impl Drop for EventLoop<'_> {
    fn drop(&mut self) {
        // After a panic or a stop: sessions in the mailbox end with the loop.
        self.mailbox.end();
    }
}

impl<'a> EventLoop<'a> {
    pub fn new(shared: &'a Arc<EventLoops>, number: usize) -> Result<Self, (Errno, &'static str)> {
        let mailbox = &shared.loops[number];
        let woken = Arc::new(WakeQueue::new(EventFd::new().map_err(|errno| (errno, "make an eventfd"))?));
        let poller = Poller::new().map_err(|errno| (errno, "make an epoll"))?;
        let add = || {
            poller.add(&mailbox.event_fd, Token::Mailbox, EventFlags::IN)?;
            poller.add(&woken.event_fd, Token::Woken, EventFlags::IN)?;
            poller.add(shared.control.event_fd(), Token::Command, EventFlags::IN | EventFlags::ET)?;
            // The kernel wakes one of the loops that wait.
            poller.add(
                shared.acceptor.event_fd(),
                Token::HandedOver,
                EventFlags::IN | EventFlags::EXCLUSIVE,
            )?;
            poller.add(&*shared.acceptor, Token::Listener, EventFlags::IN | EventFlags::EXCLUSIVE)
        };
        add().map_err(|errno| (errno, "fill an epoll"))?;
        Ok(EventLoop {
            shared,
            mailbox,
            number,
            poller,
            entries: SessionSlab::new(),
            buffers: ThreadBuffers::new(&shared.service, Model::Epoll),
            options: RunOptions {
                io_mode: IoMode::NonBlocking,
                spin: Duration::ZERO,
                reject: false,
                offload_storage: shared.service.settings.async_storage,
                time_budget: Some(TURN),
            },
            run_queue: VecDeque::new(),
            timers: BinaryHeap::new(),
            woken,
            accept_at: None,
            taker: shared.acceptor.serve(),
            applied: Command::Serve,
        })
    }

    pub fn run(&mut self) {
        let service = Arc::clone(&self.shared.service);
        let gauges = service.statistics.gauges(self.shared.acceptor.transport());
        gauges.active_threads.fetch_add(1, Relaxed);
        let mut events = Events::new();
        let mut spin = SpinWait::new(&self.shared.service);
        while !self.is_over() {
            let due = match self.run_queue.is_empty() {
                true => {
                    self.timers.peek().map(|Reverse((due, _))| *due).into_iter().chain(self.accept_at).min()
                }
                false => Some(Instant::now()),
            };
            self.poller.wait(&mut events, due, &mut spin);
            for token in events.drain() {
                self.handle(token);
            }
            self.run_due();
        }
        gauges.active_threads.fetch_sub(1, Relaxed);
    }

    /// Whether a command ends this loop: it has no session left, and none can arrive.
    fn is_over(&mut self) -> bool {
        match self.applied {
            Command::Serve => return false,
            Command::Stop => return true,
            Command::Handover | Command::Drain => {}
        }
        while self.entries.is_empty() {
            let session = match self.mailbox.close() {
                true if self.taker.leave() => return true,
                true => self.shared.acceptor.take_over().inspect(|_| self.count_registered()),
                false => self.mailbox.take(),
            };
            if let Some(session) = session {
                self.register(session);
            }
        }
        false
    }

    /// Queues a session for one run in this round, however much work it has.
    fn run_soon(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.due != Due::Again
        {
            entry.due = Due::Again;
            self.run_queue.push_back(key);
        }
    }

    /// Runs the sessions that are due without an event.
    fn run_due(&mut self) {
        for _ in 0..self.run_queue.len() {
            if let Some(key) = self.run_queue.pop_front()
                && let Some(entry) = self.entries.get_mut(key)
            {
                entry.due = Due::No;
                self.run_session(key);
            }
        }
        if self.timers.is_empty() && self.accept_at.is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(&Reverse((due, key))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            if self.entries.get_mut(key).is_some_and(|entry| entry.due == Due::At(due)) {
                self.run_session(key);
            }
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.resume_accepting();
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Session(key) => self.run_session(key),
            Token::Listener => self.accept(),
            Token::Mailbox => {
                while let Some(session) = self.mailbox.take() {
                    self.register(session);
                }
            }
            Token::Woken => {
                for key in self.woken.take() {
                    self.run_soon(key);
                }
            }
            Token::HandedOver => {
                if self.taker.is_registered()
                    && let Some(session) = self.shared.acceptor.take_over()
                {
                    self.shared.dedicated.count(true);
                    self.assign(session);
                }
            }
            Token::Command => self.apply(),
            Token::Tick => {
                self.poller.take_tick();
                self.tick(Instant::now());
            }
        }
    }

    /// Accepts waiting connections, at most ACCEPTS_PER_TURN of them, so that neither new nor established connections
    /// starve.
    fn accept(&mut self) {
        if self.applied != Command::Serve {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            match self.shared.acceptor.accept(&self.shared.service) {
                AcceptOutcome::Session(session) => {
                    self.shared.dedicated.count(true);
                    self.assign(session);
                }
                AcceptOutcome::Refused => {}
                AcceptOutcome::Nothing => return,
                AcceptOutcome::Exhausted(retry_after) => {
                    // epoll would report the listener as readable all the time.
                    let _ = self.poller.delete(&*self.shared.acceptor);
                    self.accept_at = Some(Instant::now() + retry_after);
                    return;
                }
            }
        }
    }

    /// Gives a connection to the loop with the fewest.
    fn assign(&mut self, session: Box<Session>) {
        let own_sessions = self.mailbox.sessions.load(Relaxed);
        let kept = match Mailbox::least_loaded(&self.shared.loops, self.number) {
            Some((number, mailbox))
                if number != self.number && mailbox.sessions.load(Relaxed) < own_sessions =>
            {
                mailbox.push(session)
            }
            _ => Err(session),
        };
        if let Err(session) = kept {
            self.adopt(session);
        }
    }

    fn adopt(&mut self, session: Box<Session>) {
        self.mailbox.sessions.fetch_add(1, Relaxed);
        self.register(session);
    }

    fn count_registered(&self) {
        self.mailbox.sessions.fetch_add(1, Relaxed);
        self.shared.dedicated.count(true);
    }

    /// Registers a session that is counted already.
    fn register(&mut self, mut session: Box<Session>) {
        if self.applied == Command::Handover {
            match self.shared.acceptor.hand_over(session) {
                Ok(()) => return self.count_removed(),
                // A drain overtook the handover: this loop drains the session.
                Err(back) => session = back,
            }
        }
        if self.shared.control.command() == Command::Drain {
            session.stop_reading();
        }
        let key = self.entries.next_key();
        if self.poller.add(session.socket(), Token::Session(key), EventFlags::IN).is_ok() {
            let wake: Arc<dyn Wake> = Arc::<WakeQueue>::clone(&self.woken);
            session.connection().set_wake(&wake, key.number());
            let mut due = Due::No;
            if session.has_pending_work() {
                // The session comes from another model and has unfinished work.
                self.run_queue.push_back(key);
                due = Due::Again;
            }
            self.entries.insert(Entry { session, registered: EventFlags::IN, idle_runs: 0, due });
        } else {
            self.count_removed();
        }
    }

    fn run_session(&mut self, key: Key) {
        let Some(Entry { session, registered, idle_runs, due }) = self.entries.get_mut(key) else {
            return;
        };
        if *due == Due::Again {
            return;
        }
        *due = Due::No;
        // The kernel reports the end of a connection whatever the loop waits for; with ONESHOT it does so once.
        let nothing = EventFlags::ONESHOT;
        let interest = match run(session, &mut self.buffers, self.options) {
            Next::Readable => {
                *idle_runs += 1;
                if *idle_runs >= PROMOTE_AFTER && self.shared.dedicated.has_capacity() && !session.has_jobs()
                {
                    return self.promote(key);
                }
                EventFlags::IN
            }
            Next::Writable => EventFlags::OUT,
            Next::Yield => return self.run_soon(key),
            Next::After(pause) => {
                let at = Instant::now() + pause;
                *due = Due::At(at);
                self.timers.push(Reverse((at, key)));
                nothing
            }
            Next::Waiting => nothing,
            Next::Closed => return self.remove(key),
        };
        if *registered != interest {
            *registered = interest;
            if self.poller.modify(session.socket(), Token::Session(key), interest).is_err() {
                self.remove(key);
            }
        }
    }

    /// Moves a session that stays busy to a dedicated thread.
    fn promote(&mut self, key: Key) {
        let Some(Entry { session, .. }) = self.entries.remove(key) else { return };
        let _ = self.poller.delete(session.socket());
        let origin: Arc<dyn ReturnToLoop> = Arc::<EventLoops>::clone(self.shared);
        match self.shared.dedicated.take(session, &origin) {
            Ok(()) => {
                self.mailbox.sessions.fetch_sub(1, Relaxed);
            }
            Err(session) => self.register(session),
        }
    }

    fn resume_accepting(&mut self) {
        self.accept_at = None;
        if self.applied == Command::Serve {
            let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
            // The listener was registered before; if the kernel has no memory for it now, try again after a tick.
            if self.poller.add(&*self.shared.acceptor, Token::Listener, flags).is_err() {
                self.accept_at = Some(Instant::now() + TICK);
            }
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.poller.drop_session(entry.session);
            self.count_removed();
        }
    }

    /// Counts one session fewer, in this loop and in all.
    fn count_removed(&self) {
        self.mailbox.sessions.fetch_sub(1, Relaxed);
        self.shared.dedicated.count(false);
    }

    fn tick(&mut self, now: Instant) {
        let overdue = |(key, entry): (Key, &mut Entry)| entry.session.is_overdue(now).then_some(key);
        let overdue: Vec<Key> = self.entries.iter_mut().filter_map(overdue).collect();
        for key in overdue {
            self.remove(key);
        }
        self.apply();
    }

    /// Carries out the current command, once for each change.
    fn apply(&mut self) {
        let command = self.shared.control.command();
        if command == self.applied {
            if command == Command::Handover {
                self.migrate_all();
            }
            return;
        }
        if self.applied == Command::Serve {
            if command == Command::Drain {
                let shared = Arc::clone(self.shared);
                shared.acceptor.accept_rest(&shared.service, |session| {
                    shared.dedicated.count(true);
                    self.adopt(session);
                });
            } else {
                self.taker.withdraw();
                let _ = self.poller.delete(self.shared.acceptor.event_fd());
            }
            let _ = self.poller.delete(&*self.shared.acceptor);
        }
        self.applied = command;
        self.shared.dedicated.apply(command);
        match command {
            Command::Serve | Command::Stop => {}
            Command::Handover => self.migrate_all(),
            Command::Drain => {
                for entry in self.entries.iter() {
                    entry.session.stop_reading();
                }
            }
        }
    }

    fn migrate_all(&mut self) {
        for entry in self.entries.take_all() {
            let _ = self.poller.delete(entry.session.socket());
            self.register(entry.session);
        }
    }
}
