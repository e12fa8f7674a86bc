//! Accepts connections and waits for readiness, for the models whose workers take ready sessions: a silent client
//! occupies no worker.
//!
//! A session is in one of three states: armed (epoll reports it once), taken (in a queue or on a worker), or gone. A
//! worker gives a session back by arming it again.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::codel::CoDel;
use crate::concurrency::acceptor::{AcceptOutcome, Acceptor, Taker};
use crate::concurrency::control::{Command, Control};
use crate::concurrency::poller::{Events, Poller, SpinWait, Token};
use crate::concurrency::session_ownership::RunState;
use crate::concurrency::slab::{Key, SessionSlab};
use crate::concurrency::timer_queue::TimerQueue;
use crate::model::{Model, TICK};
use crate::net::eventfd::EventFd;
use crate::service::Service;
use crate::session::{QueueWait, Session, ThreadBuffers, Wake};
use crate::sync::unpoisoned;

/// A session with work to do, and since when.
#[derive(Debug)]
pub struct Ready {
    pub(super) slot: Arc<Slot>,
    pub(super) since: Instant,
}

/// A session's slot: epoll knows it by its key.
#[derive(Debug)]
pub(super) struct Slot {
    pub key: Key,
    pub run_state: RunState,
    /// None once the session is gone.
    session: Mutex<Option<Box<Session>>>,
}

impl Slot {
    pub fn session(&self) -> MutexGuard<'_, Option<Box<Session>>> {
        unpoisoned(self.session.lock())
    }
}

/// State that the reactor and the workers share.
#[derive(Debug)]
pub struct Reactor {
    pub acceptor: Arc<Acceptor>,
    pub service: Arc<Service>,
    pub control: Arc<Control>,
    model: Model,
    pub(super) poller: Poller,
    slots: Mutex<SessionSlab<Arc<Slot>>>,
    /// Sessions to run at a time. The eventfd wakes the reactor for a new one.
    pub(super) timers: TimerQueue,
    pub(super) event_fd: EventFd,
    pub(super) delay: CoDel,
}

/// How ready sessions get to the workers. Sessions that do not fit into the queue stay in the list, and the reactor
/// refuses them.
pub trait Dispatch {
    /// How many more sessions the queue may take.
    fn capacity(&self) -> usize;
    fn dispatch(&self, ready: &mut VecDeque<Ready>);
    /// Queues a session that a worker has run and that continues, whatever the bound.
    fn requeue(&self, ready: Ready);
}

/// How storage makes sessions run again.
#[derive(Debug)]
struct Waker<D> {
    reactor: Weak<Reactor>,
    dispatch: Arc<D>,
}

impl<D: Dispatch + Send + Sync + std::fmt::Debug> Wake for Waker<D> {
    fn wake(&self, key: u64) {
        let Some(reactor) = self.reactor.upgrade() else { return };
        let slot = reactor.slots().get(Key::from_number(key)).map(Arc::clone);
        if let Some(slot) = slot
            && slot.run_state.mark_woken()
        {
            self.dispatch.requeue(Ready { slot, since: Instant::now() });
        }
    }
}

impl Reactor {
    pub fn new(
        model: Model,
        acceptor: &Arc<Acceptor>,
        service: &Arc<Service>,
        control: &Arc<Control>,
    ) -> Result<Arc<Self>, (Errno, &'static str)> {
        let poller = Poller::new().map_err(|errno| (errno, "make an epoll"))?;
        let event_fd = EventFd::new().map_err(|errno| (errno, "make an eventfd"))?;
        let add = || {
            poller.add(&event_fd, Token::Mailbox, EventFlags::IN)?;
            poller.add(control.event_fd(), Token::Command, EventFlags::IN | EventFlags::ET)?;
            poller.add(acceptor.event_fd(), Token::HandedOver, EventFlags::IN)?;
            poller.add(&**acceptor, Token::Listener, EventFlags::IN)
        };
        add().map_err(|errno| (errno, "fill an epoll"))?;
        Ok(Arc::new(Reactor {
            acceptor: Arc::clone(acceptor),
            service: Arc::clone(service),
            control: Arc::clone(control),
            model,
            poller,
            slots: Mutex::new(SessionSlab::new()),
            timers: TimerQueue::default(),
            event_fd,
            delay: CoDel::new(),
        }))
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, SessionSlab<Arc<Slot>>> {
        unpoisoned(self.slots.lock())
    }

    /// Accepts and waits until a command ends the reactor and no session is left.
    pub fn run_reactor(
        self: &Arc<Self>,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
        mut taker: Taker,
    ) {
        let mut events = Events::new();
        let mut spin = SpinWait::new(&self.service);
        let mut buffers = ThreadBuffers::new(&self.service, self.model);
        let wake: Arc<dyn Wake> =
            Arc::new(Waker { reactor: Arc::downgrade(self), dispatch: Arc::clone(dispatch) });
        let mut ready = VecDeque::new();
        let mut accept_at: Option<Instant> = None;
        let mut applied = Command::Serve;
        while !self.is_over(applied, &mut taker, &wake) {
            let due = self.timers.next().into_iter().chain(accept_at).min();
            self.poller.wait(&mut events, due, &mut spin);
            let now = Instant::now();
            let (mut commanded, mut ticked) = (false, false);
            {
                let slots = self.slots();
                let mut others = VecDeque::new();
                for token in events.drain() {
                    match token {
                        Token::Session(key) => {
                            if let Some(slot) = slots.get(key)
                                && slot.run_state.take()
                            {
                                ready.push_back(Ready { slot: Arc::clone(slot), since: now });
                            }
                        }
                        other => others.push_back(other),
                    }
                }
                drop(slots);
                for token in others {
                    match token {
                        Token::Listener if applied == Command::Serve => {
                            accept_at = self.accept(&wake).map(|others| now + others);
                        }
                        Token::HandedOver if taker.is_registered() => {
                            if let Some(session) = self.acceptor.take_over() {
                                self.register(session, &wake);
                            }
                        }
                        Token::Command => commanded = true,
                        Token::Tick => {
                            self.poller.take_tick();
                            ticked = true;
                        }
                        Token::Mailbox => while self.event_fd.take() {},
                        _ => {}
                    }
                }
            }
            self.due_now(now, &mut ready);
            self.dispatch_ready(&mut ready, &mut buffers, dispatch);
            if accept_at.is_some_and(|at| at <= now) && applied == Command::Serve {
                accept_at = self
                    .poller
                    .add(&*self.acceptor, Token::Listener, EventFlags::IN)
                    .is_err()
                    .then(|| now + TICK);
            }
            if ticked {
                self.tick(now, &mut ready);
                self.dispatch_ready(&mut ready, &mut buffers, dispatch);
                commanded = true;
            }
            if commanded {
                applied = self.apply(applied, &mut taker, &wake);
            }
        }
        // On a stop, sessions that workers still hold end with the workers.
        self.slots().clear();
    }

    /// Gives the ready sessions to the workers. Refuses those that do not fit into the queue at once, before any
    /// work.
    fn dispatch_ready(
        self: &Arc<Self>,
        ready: &mut VecDeque<Ready>,
        buffers: &mut ThreadBuffers,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        if ready.is_empty() {
            return;
        }
        let scarce = ready.len() > dispatch.capacity();
        ready.retain(|ready| self.needs_worker(&ready.slot, scarce, buffers, dispatch));
        dispatch.dispatch(ready);
        for refused in ready.drain(..) {
            buffers.queued = Some(QueueWait { wait: Duration::ZERO, until: Instant::now() });
            self.run(refused.slot, buffers, true, dispatch);
        }
    }

    fn due_now(&self, now: Instant, ready: &mut VecDeque<Ready>) {
        let due = self.timers.take_due(now);
        if !due.is_empty() {
            let slots = self.slots();
            let slots = due.into_iter().filter_map(|key| slots.get(key).map(Arc::clone));
            ready.extend(slots.map(|slot| Ready { slot, since: now }));
        }
    }

    /// Accepts waiting connections. Returns how long to pause when the process has no descriptor or memory left.
    fn accept(&self, wake: &Arc<dyn Wake>) -> Option<Duration> {
        for _ in 0..64 {
            match self.acceptor.accept(&self.service) {
                AcceptOutcome::Session(session) => self.register(session, wake),
                AcceptOutcome::Refused => {}
                AcceptOutcome::Nothing => return None,
                AcceptOutcome::Exhausted(others) => {
                    // epoll would report the listener as readable all the time.
                    let _ = self.poller.delete(&*self.acceptor);
                    return Some(others);
                }
            }
        }
        None
    }

    fn register(&self, session: Box<Session>, wake: &Arc<dyn Wake>) {
        if self.control.command() == Command::Drain {
            session.stop_reading();
        }
        let mut slots = self.slots();
        let key = slots.next_key();
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        if self.poller.add(session.socket(), Token::Session(key), flags).is_ok() {
            let connection = Arc::clone(session.connection());
            let has_pending_work = session.has_pending_work();
            let (run_state, session) = (RunState::idle(), Mutex::new(Some(session)));
            slots.insert(Arc::new(Slot { key, run_state, session }));
            drop(slots);
            connection.set_wake(wake, key.number());
            if has_pending_work {
                // The session comes from another model and has unfinished work.
                wake.wake(key.number());
            }
        }
    }

    /// Drops overdue sessions that are armed.
    fn tick(&self, now: Instant, ready: &mut VecDeque<Ready>) {
        self.slots().retain(|slot| {
            if !slot.run_state.take() {
                return true;
            }
            let mut guard = slot.session();
            let overdue = guard.as_mut().is_none_or(|session| session.is_overdue(now));
            if overdue && let Some(session) = guard.take() {
                self.poller.drop_session(session);
            }
            drop(guard);
            if !slot.run_state.release() && !overdue {
                ready.push_back(Ready { slot: Arc::clone(slot), since: now });
            }
            !overdue
        });
    }

    fn apply(&self, applied: Command, taker: &mut Taker, wake: &Arc<dyn Wake>) -> Command {
        let command = self.control.command();
        if applied == Command::Serve && command != Command::Serve {
            if command == Command::Drain {
                self.acceptor.accept_rest(&self.service, |session| self.register(session, wake));
            } else {
                taker.withdraw();
                let _ = self.poller.delete(self.acceptor.event_fd());
            }
            let _ = self.poller.delete(&*self.acceptor);
        }
        if command == Command::Handover {
            self.migrate_all(wake);
        }
        if command == applied {
            return command;
        }
        if command == Command::Drain {
            let slots: Vec<_> = self.slots().iter().map(Arc::clone).collect();
            for slot in slots {
                if let Some(session) = slot.session().as_ref() {
                    session.stop_reading();
                }
            }
        }
        command
    }

    /// Whether a command ends the reactor: no session is left, and none can arrive.
    fn is_over(&self, applied: Command, taker: &mut Taker, wake: &Arc<dyn Wake>) -> bool {
        match applied {
            Command::Serve => return false,
            Command::Stop => return true,
            Command::Handover | Command::Drain => {}
        }
        while self.slots().is_empty() {
            if taker.leave() {
                return true;
            }
            if let Some(session) = self.acceptor.take_over() {
                self.register(session, wake);
            }
        }
        false
    }

    /// Hands over the armed sessions; the workers hand over those that they hold.
    fn migrate_all(&self, wake: &Arc<dyn Wake>) {
        let mut free = Vec::new();
        self.slots().retain(|slot| {
            if slot.run_state.take() {
                free.extend(slot.session().take());
                return false;
            }
            true
        });
        for session in free {
            let _ = self.poller.delete(session.socket());
            if let Err(back) = self.acceptor.hand_over(session) {
                // A drain overtook the handover: this reactor drains the session.
                self.register(back, wake);
            }
        }
    }
}
