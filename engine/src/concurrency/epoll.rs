//! Event loops: each thread runs the sessions of its own epoll, descriptors included, and never waits for one of them.
//!
//! All loops watch the listener; who accepts gives the connection to the loop that has the fewest. Nothing is shared
//! between loops while they serve.

use rustix::event::epoll::EventFlags;
use slab::Slab;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::poller::{Events, Poller, Source, Spin};
use super::{Model, Order, Shutdown, TICK, spawn};
use crate::listener::{Accepted, Listener};
use crate::service::Service;
use crate::session::{Manner, Next, Scratch, Session};
use crate::settings::cores;
use crate::transport::{Bell, Patience};

const STACK: usize = 256 << 10;
const ACCEPTS_A_TURN: usize = 64;

/// What the loops know of each other.
#[derive(Debug)]
struct Loops {
    listener: Arc<Listener>,
    service: Arc<Service>,
    shutdown: Arc<Shutdown>,
    loops: Vec<Mailbox>,
}

/// How sessions get into a loop from outside.
#[derive(Debug)]
struct Mailbox {
    sessions: AtomicUsize,
    arrived: Mutex<VecDeque<Box<Session>>>,
    bell: Bell,
}

impl Mailbox {
    fn put(&self, session: Box<Session>) {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push_back(session);
        self.bell.ring();
    }

    fn take(&self) -> Option<Box<Session>> {
        if !self.bell.take() {
            return None;
        }
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

pub fn serve(listener: &Arc<Listener>, service: &Arc<Service>, shutdown: &Arc<Shutdown>) {
    let count = match service.settings.pool_size {
        // The clients live on this machine too, and need cores of their own.
        0 => cores().div_ceil(2),
        size => size.min(cores()),
    };
    let mailboxes = (0..count).filter_map(|_| {
        let bell = Bell::new().ok()?;
        Some(Mailbox { sessions: AtomicUsize::new(0), arrived: Mutex::new(VecDeque::new()), bell })
    });
    let loops = Arc::new(Loops {
        listener: Arc::clone(listener),
        service: Arc::clone(service),
        shutdown: Arc::clone(shutdown),
        loops: mailboxes.collect(),
    });
    let threads: Vec<_> = (1..loops.loops.len())
        .filter_map(|number| {
            let loops = Arc::clone(&loops);
            spawn("objmapper-loop", STACK, move || run_loop(&loops, number)).ok()
        })
        .collect();
    run_loop(&loops, 0);
    for thread in threads {
        // A panic has been reported on stderr by the runtime.
        let _ = thread.join();
    }
    // What came in after the last look of a loop.
    for mailbox in &loops.loops {
        while let Some(session) = mailbox.take() {
            if shutdown.order() == Order::HandOver {
                listener.hand_over(session);
            }
        }
    }
}

fn run_loop(loops: &Loops, number: usize) {
    let gauges = loops.service.statistics.gauges(loops.listener.transport);
    gauges.active_threads.fetch_add(1, Relaxed);
    match EventLoop::new(loops, number) {
        Ok(mut event_loop) => event_loop.run(),
        Err(errno) => eprintln!("objmapper: an event loop could not start: {errno}"),
    }
    gauges.active_threads.fetch_sub(1, Relaxed);
}

#[derive(Debug)]
struct Entry {
    /// None while the storage pool has it.
    session: Option<Box<Session>>,
    interest: EventFlags,
}

struct EventLoop<'a> {
    shared: &'a Loops,
    mailbox: &'a Mailbox,
    number: usize,
    poller: Poller,
    entries: Slab<Entry>,
    scratch: Scratch,
    manner: Manner,
    /// To be run again without an event.
    again: VecDeque<usize>,
    later: VecDeque<(Instant, usize)>,
    /// Sessions back from the storage pool.
    returned: Arc<Returned>,
    accepting_since: Option<Instant>,
    obeyed: Order,
}

#[derive(Debug)]
struct Returned {
    sessions: Mutex<Vec<(usize, Box<Session>)>>,
    bell: Bell,
}

impl<'a> EventLoop<'a> {
    fn new(shared: &'a Loops, number: usize) -> rustix::io::Result<Self> {
        let mailbox = &shared.loops[number];
        let returned = Arc::new(Returned { sessions: Mutex::new(Vec::new()), bell: Bell::new()? });
        let poller = Poller::new()?;
        poller.add(&mailbox.bell, Source::Mailbox, EventFlags::IN)?;
        poller.add(&returned.bell, Source::Returned, EventFlags::IN)?;
        poller.add(shared.shutdown.bell(), Source::Order, EventFlags::IN)?;
        // Of all the loops that wait, the kernel wakes one.
        poller.add(shared.listener.bell(), Source::HandedOver, EventFlags::IN | EventFlags::EXCLUSIVE)?;
        poller.add(&*shared.listener, Source::Listener, EventFlags::IN | EventFlags::EXCLUSIVE)?;
        Ok(EventLoop {
            shared,
            mailbox,
            number,
            poller,
            entries: Slab::new(),
            scratch: Scratch::new(&shared.service, Model::Epoll),
            manner: Manner {
                patience: Patience::Never,
                spin: Duration::ZERO,
                refuse: false,
                storage_elsewhere: shared.service.storage_pool.is_some(),
            },
            again: VecDeque::new(),
            later: VecDeque::new(),
            returned,
            accepting_since: None,
            obeyed: Order::Serve,
        })
    }

    fn run(&mut self) {
        let mut events = Events::new();
        let mut spin = Spin::new(&self.shared.service);
        while self.obeyed != Order::Stop && (self.obeyed == Order::Serve || !self.entries.is_empty()) {
            let due = match self.again.is_empty() {
                true => self.later.front().map(|(due, _)| *due),
                false => Some(Instant::now()),
            };
            self.poller.wait(&mut events, due, &mut spin);
            for source in events.drain() {
                self.handle(source);
            }
            for _ in 0..self.again.len() {
                if let Some(key) = self.again.pop_front() {
                    self.run_session(key);
                }
            }
            if !self.later.is_empty() {
                let now = Instant::now();
                while self.later.front().is_some_and(|(due, _)| *due <= now) {
                    if let Some((_, key)) = self.later.pop_front() {
                        self.run_session(key);
                    }
                }
            }
        }
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Session(key) => self.run_session(key),
            Source::Listener => self.accept(),
            Source::Mailbox => {
                while let Some(session) = self.mailbox.take() {
                    self.adopt(session);
                }
            }
            Source::Returned => {
                while self.returned.bell.take() {}
                let back = std::mem::take(
                    &mut *self.returned.sessions.lock().unwrap_or_else(PoisonError::into_inner),
                );
                for (key, session) in back {
                    if let Some(entry) = self.entries.get_mut(key) {
                        entry.session = Some(session);
                    }
                    self.run_session(key);
                }
            }
            Source::HandedOver => {
                if self.obeyed == Order::Serve
                    && let Some(session) = self.shared.listener.take_over()
                {
                    self.place(session);
                }
            }
            Source::Order => self.obey(),
            Source::Tick => {
                self.poller.take_tick();
                self.tick(Instant::now());
            }
        }
    }

    /// Takes what waits, so many at a time that newcomers do not starve behind those who are in, nor the reverse.
    fn accept(&mut self) {
        if self.obeyed != Order::Serve {
            return;
        }
        for _ in 0..ACCEPTS_A_TURN {
            match self.shared.listener.accept(&self.shared.service, Patience::Never) {
                Accepted::Session(session) => self.place(session),
                Accepted::Refused => {}
                Accepted::Nothing => return,
                Accepted::Exhausted(rest) => {
                    // It would be reported as readable all the time.
                    let _ = self.poller.delete(&*self.shared.listener);
                    self.accepting_since = Some(Instant::now() + rest);
                    self.later.push_front((Instant::now() + rest, usize::MAX));
                    return;
                }
            }
        }
    }

    /// Gives a connection to the loop that has the fewest.
    fn place(&mut self, session: Box<Session>) {
        let mine = self.mailbox.sessions.load(Relaxed);
        let least = self
            .shared
            .loops
            .iter()
            .enumerate()
            .min_by_key(|(number, mailbox)| (mailbox.sessions.load(Relaxed), *number != self.number));
        match least {
            Some((number, mailbox)) if number != self.number && mailbox.sessions.load(Relaxed) < mine => {
                mailbox.put(session);
            }
            _ => self.adopt(session),
        }
    }

    fn adopt(&mut self, session: Box<Session>) {
        if self.obeyed == Order::HandOver {
            return self.shared.listener.hand_over(session);
        }
        if session.set_patience(Patience::Never).is_err() {
            return;
        }
        if self.obeyed == Order::Drain {
            session.stop_reading();
        }
        let entry = self.entries.vacant_entry();
        let key = entry.key();
        if self.poller.add(&**session.socket(), Source::Session(key), EventFlags::IN).is_ok() {
            entry.insert(Entry { session: Some(session), interest: EventFlags::IN });
            self.mailbox.sessions.fetch_add(1, Relaxed);
        }
    }

    fn run_session(&mut self, key: usize) {
        if key == usize::MAX {
            return self.accept_again();
        }
        let Some(Entry { session: Some(session), interest }) = self.entries.get_mut(key) else {
            return;
        };
        let mut for_storage = false;
        let wanted = match session.run(&mut self.scratch, self.manner) {
            Next::Readable => EventFlags::IN,
            Next::Writable => EventFlags::OUT,
            Next::Again => {
                self.again.push_back(key);
                return;
            }
            Next::Later(pause) => {
                self.later.push_back((Instant::now() + pause, key));
                EventFlags::empty()
            }
            Next::Storage => {
                for_storage = true;
                EventFlags::empty()
            }
            Next::Closed => return self.remove(key),
        };
        if *interest != wanted {
            *interest = wanted;
            if self.poller.modify(&**session.socket(), Source::Session(key), wanted).is_err() {
                return self.remove(key);
            }
        }
        if for_storage {
            self.read_ahead(key);
        }
    }

    fn read_ahead(&mut self, key: usize) {
        let Some(session) = self.entries.get_mut(key).and_then(|entry| entry.session.take()) else { return };
        let returned = Arc::clone(&self.returned);
        super::read_ahead(&self.shared.service, session, move |session| {
            returned.sessions.lock().unwrap_or_else(PoisonError::into_inner).push((key, session));
            returned.bell.ring();
        });
    }

    fn accept_again(&mut self) {
        if self.obeyed == Order::Serve && self.accepting_since.take().is_some() {
            let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
            // It was there before; without room for it now, the next tick of an accept tries again.
            if self.poller.add(&*self.shared.listener, Source::Listener, flags).is_err() {
                self.accepting_since = Some(Instant::now() + TICK);
                self.later.push_back((Instant::now() + TICK, usize::MAX));
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.entries.remove(key);
        self.mailbox.sessions.fetch_sub(1, Relaxed);
    }

    fn tick(&mut self, now: Instant) {
        let overdue = |(key, entry): (usize, &mut Entry)| {
            entry.session.as_mut().is_some_and(|session| session.is_overdue(now)).then_some(key)
        };
        let overdue: Vec<usize> = self.entries.iter_mut().filter_map(overdue).collect();
        for key in overdue {
            self.remove(key);
        }
        self.obey();
    }

    /// Does what was ordered, once for each order.
    fn obey(&mut self) {
        let order = self.shared.shutdown.order();
        if order == self.obeyed {
            if order == Order::HandOver {
                self.hand_over_all();
            }
            return;
        }
        let _ = self.poller.delete(self.shared.shutdown.bell());
        if self.obeyed == Order::Serve {
            if order == Order::Drain {
                while let Accepted::Session(session) =
                    self.shared.listener.accept(&self.shared.service, Patience::Never)
                {
                    self.adopt(session);
                }
                self.shared.listener.close();
            }
            let _ = self.poller.delete(&*self.shared.listener);
            let _ = self.poller.delete(self.shared.listener.bell());
        }
        self.obeyed = order;
        match order {
            Order::Serve | Order::Stop => {}
            Order::HandOver => self.hand_over_all(),
            Order::Drain => {
                for (_, entry) in &self.entries {
                    if let Some(session) = &entry.session {
                        session.stop_reading();
                    }
                }
            }
        }
    }

    fn hand_over_all(&mut self) {
        let here: Vec<usize> =
            self.entries.iter().filter(|(_, entry)| entry.session.is_some()).map(|(key, _)| key).collect();
        for key in here {
            if let Some(session) = self.entries.remove(key).session {
                self.mailbox.sessions.fetch_sub(1, Relaxed);
                let _ = self.poller.delete(&**session.socket());
                self.shared.listener.hand_over(session);
            }
        }
    }
}
