//! Accepting and waiting for readiness, for the models whose workers take ready sessions: no worker is held by a client
//! that is silent.
//!
//! A session is in one of three hands: the reactor's (armed: epoll will report it once), a queue's or a worker's (taken),
//! or nobody's (gone). A worker gives it back by arming it again.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::hands::Hands;
use super::later::Later;
use super::places::{Key, Places};
use super::poller::{Events, Poller, Source, Spin};
use super::{Model, Order, Shutdown, TICK, TURN, read_on, run};
use crate::listener::{Accepted, Listener, Taker};
use crate::queue::ControlledDelay;
use crate::service::Service;
use crate::session::{Manner, Next, Queued, Scratch, Session, Wake};
use crate::transport::{Bell, Patience};

/// A session that has something to do, since when.
#[derive(Debug)]
pub struct Ready {
    seat: Arc<Seat>,
    since: Instant,
}

/// A session's place: epoll knows it by its key.
#[derive(Debug)]
struct Seat {
    key: Key,
    hands: Hands,
    /// None once it is gone.
    session: Mutex<Option<Box<Session>>>,
}

impl Seat {
    fn session(&self) -> MutexGuard<'_, Option<Box<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the reactor and the workers share.
#[derive(Debug)]
pub struct Reactor {
    pub listener: Arc<Listener>,
    pub service: Arc<Service>,
    pub shutdown: Arc<Shutdown>,
    model: Model,
    poller: Poller,
    seats: Mutex<Places<Arc<Seat>>>,
    /// Sessions that are to be run at a time. The bell tells the reactor of a new one.
    later: Later,
    bell: Bell,
    delay: ControlledDelay,
}

/// How ready sessions get to the workers. What there is no room for stays in the list, and is refused.
pub trait Dispatch {
    /// How many more there may be in the queue.
    fn room(&self) -> usize;
    fn dispatch(&self, ready: &mut VecDeque<Ready>);
    /// One that was being worked at and goes on, whatever the bound.
    fn dispatch_again(&self, ready: Ready);
}

/// How storage has sessions run again.
#[derive(Debug)]
struct Waker<D> {
    reactor: Weak<Reactor>,
    dispatch: Arc<D>,
}

impl<D: Dispatch + Send + Sync + std::fmt::Debug> Wake for Waker<D> {
    fn wake(&self, key: u64) {
        let Some(reactor) = self.reactor.upgrade() else { return };
        let seat = reactor.seats().get(Key::from_number(key)).map(Arc::clone);
        if let Some(seat) = seat
            && seat.hands.take_to_wake()
        {
            self.dispatch.dispatch_again(Ready { seat, since: Instant::now() });
        }
    }
}

impl Reactor {
    pub fn new(
        model: Model,
        listener: &Arc<Listener>,
        service: &Arc<Service>,
        shutdown: &Arc<Shutdown>,
    ) -> Result<Arc<Self>, (Errno, &'static str)> {
        let poller = Poller::new().map_err(|errno| (errno, "make an epoll"))?;
        let bell = Bell::new().map_err(|errno| (errno, "make an eventfd"))?;
        let add = || {
            poller.add(&bell, Source::Mailbox, EventFlags::IN)?;
            poller.add(shutdown.bell(), Source::Order, EventFlags::IN | EventFlags::ET)?;
            poller.add(listener.bell(), Source::HandedOver, EventFlags::IN)?;
            poller.add(&**listener, Source::Listener, EventFlags::IN)
        };
        add().map_err(|errno| (errno, "fill an epoll"))?;
        Ok(Arc::new(Reactor {
            listener: Arc::clone(listener),
            service: Arc::clone(service),
            shutdown: Arc::clone(shutdown),
            model,
            poller,
            seats: Mutex::new(Places::new()),
            later: Later::default(),
            bell,
            delay: ControlledDelay::new(),
        }))
    }

    fn seats(&self) -> MutexGuard<'_, Places<Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manner in which workers run sessions.
    fn manner(&self, refuse: bool) -> Manner {
        Manner {
            patience: Patience::Never,
            spin: Duration::ZERO,
            refuse,
            storage_elsewhere: self.service.settings.async_storage,
            most: Some(TURN),
        }
    }

    /// A worker's work: runs a ready session and gives it back.
    pub fn work(
        self: &Arc<Self>,
        ready: Ready,
        scratch: &mut Scratch,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        let now = Instant::now();
        let waited = now.saturating_duration_since(ready.since);
        // Refused requests are counted where they are answered: a session may have several, or none that is whole.
        let refuse = self.delay.is_too_late(waited, now);
        scratch.queued = Some(Queued { wait: waited, until: now });
        self.run(ready.seat, scratch, refuse, dispatch);
    }

    fn run(
        self: &Arc<Self>,
        seat: Arc<Seat>,
        scratch: &mut Scratch,
        refuse: bool,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        let mut held = seat.session();
        let Some(session) = held.as_mut() else { return };
        let next = run(session, scratch, self.manner(refuse));
        self.give_back(&seat, held, next, dispatch);
    }

    /// Whether there is something to answer, which is looked at where a request had begun, or where the places in the queue
    /// are `scarce`: whoever sends a request bit by bit takes none for every bit, nor for its end, so that nobody is refused
    /// because of them.
    fn is_worth_a_worker(
        self: &Arc<Self>,
        seat: &Arc<Seat>,
        scarce: bool,
        scratch: &mut Scratch,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) -> bool {
        let mut held = seat.session();
        let Some(session) = held.as_mut() else { return true };
        let next = if session.is_lingering() {
            Some(run(session, scratch, self.manner(false)))
        } else if session.is_inside_a_frame() || (scarce && session.is_between_requests()) {
            read_on(session, scratch, self.manner(false))
        } else {
            None
        };
        let Some(next) = next else { return true };
        self.give_back(seat, held, next, dispatch);
        false
    }

    /// Puts a session where it gets what it needs next.
    fn give_back(
        self: &Arc<Self>,
        seat: &Arc<Seat>,
        mut held: MutexGuard<'_, Option<Box<Session>>>,
        next: Next,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        if self.shutdown.order() == Order::HandOver
            && next != Next::Closed
            && let Some(session) = held.take()
        {
            let _ = self.poller.delete(session.socket());
            match self.listener.hand_over(session) {
                Ok(()) => {
                    drop(held);
                    return self.leave(seat.key);
                }
                // A drain has overtaken the order: the session is drained here.
                Err(back) => {
                    back.stop_reading();
                    let added =
                        self.poller.add(back.socket(), Source::Session(seat.key), EventFlags::ONESHOT);
                    *held = Some(back);
                    if added.is_err() {
                        return self.end(seat, held);
                    }
                }
            }
        }
        // A client that always has something to do would keep a worker, and with it the model, from its end.
        let next = if self.shutdown.order() == Order::Stop { Next::Closed } else { next };
        let interest = match next {
            Next::Readable => Some(EventFlags::IN),
            Next::Writable => Some(EventFlags::OUT),
            Next::Waiting => None,
            Next::Again => {
                drop(held);
                return dispatch.dispatch_again(Ready { seat: Arc::clone(seat), since: Instant::now() });
            }
            Next::Later(pause) => {
                drop(held);
                self.later.add(Instant::now() + pause, seat.key);
                self.bell.ring();
                return;
            }
            Next::Closed => return self.end(seat, held),
        };
        // Before it is armed: the event may come at once, and finds the session free only then.
        if !seat.hands.release() {
            drop(held);
            return dispatch.dispatch_again(Ready { seat: Arc::clone(seat), since: Instant::now() });
        }
        // Without interest the kernel keeps silent, since it has reported once, until storage has something.
        let Some(interest) = interest else { return };
        let flags = interest | EventFlags::ONESHOT;
        let Some(session) = held.as_ref() else { return };
        if self.poller.modify(session.socket(), Source::Session(seat.key), flags).is_err() {
            self.end(seat, held);
        }
    }

    /// Ends the session of a seat that one has in one's hands.
    fn end(&self, seat: &Seat, mut held: MutexGuard<'_, Option<Box<Session>>>) {
        if let Some(session) = held.take() {
            self.poller.drop_session(session);
        }
        drop(held);
        self.leave(seat.key);
    }

    fn leave(&self, key: Key) {
        self.seats().remove(key);
    }

    /// Accepts and waits until an order ends it and no session is left.
    pub fn run_reactor(
        self: &Arc<Self>,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
        mut taker: Taker,
    ) {
        let mut events = Events::new();
        let mut spin = Spin::new(&self.service);
        let mut scratch = Scratch::new(&self.service, self.model);
        let wake: Arc<dyn Wake> =
            Arc::new(Waker { reactor: Arc::downgrade(self), dispatch: Arc::clone(dispatch) });
        let mut ready = VecDeque::new();
        let mut accept_at: Option<Instant> = None;
        let mut obeyed = Order::Serve;
        while !self.is_over(obeyed, &mut taker, &wake) {
            let due = self.later.next().into_iter().chain(accept_at).min();
            self.poller.wait(&mut events, due, &mut spin);
            let now = Instant::now();
            let (mut ordered, mut ticked) = (false, false);
            {
                let seats = self.seats();
                let mut rest = VecDeque::new();
                for source in events.drain() {
                    match source {
                        Source::Session(key) => {
                            if let Some(seat) = seats.get(key)
                                && seat.hands.take()
                            {
                                ready.push_back(Ready { seat: Arc::clone(seat), since: now });
                            }
                        }
                        other => rest.push_back(other),
                    }
                }
                drop(seats);
                for source in rest {
                    match source {
                        Source::Listener if obeyed == Order::Serve => {
                            accept_at = self.accept(&wake).map(|rest| now + rest);
                        }
                        Source::HandedOver if taker.is_enlisted() => {
                            if let Some(session) = self.listener.take_over() {
                                self.adopt(session, &wake);
                            }
                        }
                        Source::Order => ordered = true,
                        Source::Tick => {
                            self.poller.take_tick();
                            ticked = true;
                        }
                        Source::Mailbox => while self.bell.take() {},
                        _ => {}
                    }
                }
            }
            self.due_now(now, &mut ready);
            self.hand_out(&mut ready, &mut scratch, dispatch);
            if accept_at.is_some_and(|at| at <= now) && obeyed == Order::Serve {
                accept_at = self
                    .poller
                    .add(&*self.listener, Source::Listener, EventFlags::IN)
                    .is_err()
                    .then(|| now + TICK);
            }
            if ticked {
                self.tick(now, &mut ready);
                self.hand_out(&mut ready, &mut scratch, dispatch);
                ordered = true;
            }
            if ordered {
                obeyed = self.obey(obeyed, &mut taker, &wake);
            }
        }
        // On a stop, what the workers still hold ends with them.
        self.seats().clear();
    }

    /// Gives the ready sessions to the workers; answers those that there is no room for at once, before any work.
    fn hand_out(
        self: &Arc<Self>,
        ready: &mut VecDeque<Ready>,
        scratch: &mut Scratch,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        if ready.is_empty() {
            return;
        }
        let scarce = ready.len() > dispatch.room();
        ready.retain(|ready| self.is_worth_a_worker(&ready.seat, scarce, scratch, dispatch));
        dispatch.dispatch(ready);
        for refused in ready.drain(..) {
            scratch.queued = Some(Queued { wait: Duration::ZERO, until: Instant::now() });
            self.run(refused.seat, scratch, true, dispatch);
        }
    }

    fn due_now(&self, now: Instant, ready: &mut VecDeque<Ready>) {
        let due = self.later.take_due(now);
        if !due.is_empty() {
            let seats = self.seats();
            let seats = due.into_iter().filter_map(|key| seats.get(key).map(Arc::clone));
            ready.extend(seats.map(|seat| Ready { seat, since: now }));
        }
    }

    /// Accepts what waits. Returns how long to rest where the machine has nothing left.
    fn accept(&self, wake: &Arc<dyn Wake>) -> Option<Duration> {
        for _ in 0..64 {
            match self.listener.accept(&self.service) {
                Accepted::Session(session) => self.adopt(session, wake),
                Accepted::Refused => {}
                Accepted::Nothing => return None,
                Accepted::Exhausted(rest) => {
                    // It would be reported as readable all the time.
                    let _ = self.poller.delete(&*self.listener);
                    return Some(rest);
                }
            }
        }
        None
    }

    fn adopt(&self, session: Box<Session>, wake: &Arc<dyn Wake>) {
        if self.shutdown.order() == Order::Drain {
            session.stop_reading();
        }
        let mut seats = self.seats();
        let key = seats.next_key();
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        if self.poller.add(session.socket(), Source::Session(key), flags).is_ok() {
            let connection = Arc::clone(session.connection());
            let wants_a_turn = session.wants_a_turn();
            let (hands, session) = (Hands::armed(), Mutex::new(Some(session)));
            seats.insert(Arc::new(Seat { key, hands, session }));
            drop(seats);
            connection.set_wake(wake, key.number());
            if wants_a_turn {
                // It comes from another model, which had begun something.
                wake.wake(key.number());
            }
        }
    }

    /// Drops the sessions whose time is over, of those that nobody works at.
    fn tick(&self, now: Instant, ready: &mut VecDeque<Ready>) {
        self.seats().retain(|seat| {
            if !seat.hands.take() {
                return true;
            }
            let mut held = seat.session();
            let overdue = held.as_mut().is_none_or(|session| session.is_overdue(now));
            if overdue && let Some(session) = held.take() {
                self.poller.drop_session(session);
            }
            drop(held);
            if !seat.hands.release() && !overdue {
                ready.push_back(Ready { seat: Arc::clone(seat), since: now });
            }
            !overdue
        });
    }

    fn obey(&self, obeyed: Order, taker: &mut Taker, wake: &Arc<dyn Wake>) -> Order {
        let order = self.shutdown.order();
        if obeyed == Order::Serve && order != Order::Serve {
            if order == Order::Drain {
                self.listener.accept_rest(&self.service, |session| self.adopt(session, wake));
            } else {
                taker.resign();
                let _ = self.poller.delete(self.listener.bell());
            }
            let _ = self.poller.delete(&*self.listener);
        }
        if order == Order::HandOver {
            self.hand_over_all(wake);
        }
        if order == obeyed {
            return order;
        }
        if order == Order::Drain {
            let seats: Vec<_> = self.seats().iter().map(Arc::clone).collect();
            for seat in seats {
                if let Some(session) = seat.session().as_ref() {
                    session.stop_reading();
                }
            }
        }
        order
    }

    /// Whether an order ends it: no session is left, and none can come any more.
    fn is_over(&self, obeyed: Order, taker: &mut Taker, wake: &Arc<dyn Wake>) -> bool {
        match obeyed {
            Order::Serve => return false,
            Order::Stop => return true,
            Order::HandOver | Order::Drain => {}
        }
        while self.seats().is_empty() {
            if taker.leave() {
                return true;
            }
            if let Some(session) = self.listener.take_over() {
                self.adopt(session, wake);
            }
        }
        false
    }

    /// Hands over what nobody works at; the workers hand over what they hold.
    fn hand_over_all(&self, wake: &Arc<dyn Wake>) {
        let mut free = Vec::new();
        self.seats().retain(|seat| {
            if seat.hands.take() {
                free.extend(seat.session().take());
                return false;
            }
            true
        });
        for session in free {
            let _ = self.poller.delete(session.socket());
            if let Err(back) = self.listener.hand_over(session) {
                // A drain has overtaken the order: the session is drained here.
                self.adopt(back, wake);
            }
        }
    }
}
