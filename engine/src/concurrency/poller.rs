//! epoll with typed tokens, and the brief spin before sleep of `--optimize-for latency`.

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::SPIN_TIME;
use crate::concurrency::slab::Key;
use crate::net::timerfd::TimerFd;
use crate::service::Service;
use crate::session::Session;
use crate::settings::OptimizeFor;

const MAX_EVENTS: usize = 256;

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    Session(Key),
    Listener,
    /// Another model handed a session over.
    HandedOver,
    /// Another thread of the same model handed a session over.
    Mailbox,
    /// Storage has results for sessions.
    Woken,
    Command,
    /// A second has passed.
    Tick,
}

impl Token {
    const NAMED: [Token; 6] =
        [Token::Listener, Token::HandedOver, Token::Mailbox, Token::Woken, Token::Command, Token::Tick];

    fn token(self) -> u64 {
        match self {
            Token::Session(key) => key.number(),
            named => Self::NAMED.iter().position(|&other| other == named).unwrap_or(0) as u64,
        }
    }

    fn from_token(token: u64) -> Self {
        match Self::NAMED.get(usize::try_from(token).unwrap_or(usize::MAX)) {
            Some(named) => *named,
            None => Token::Session(Key::from_number(token)),
        }
    }
}

/// An epoll with a timer that fires every second.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    ticker: TimerFd,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let poller = Poller {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ticker: TimerFd::new(crate::model::TICK)?,
        };
        poller.add(&poller.ticker, Token::Tick, EventFlags::IN)?;
        Ok(poller)
    }

    pub fn add(&self, descriptor: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token.token()), flags)
    }

    pub fn modify(&self, descriptor: impl AsFd, token: Token, flags: EventFlags) -> io::Result<()> {
        epoll::modify(&self.epoll, descriptor, EventData::new_u64(token.token()), flags)
    }

    pub fn delete(&self, descriptor: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, descriptor)
    }

    /// Ends a registered session. The kernel removes a socket from epoll only when its last descriptor is closed, and
    /// others may hold one: the list of sockets with unread descriptors, a storage job, a forked process. Until then
    /// epoll would go on reporting it.
    pub fn drop_session(&self, session: Box<Session>) {
        // ENOENT: registering the socket had failed.
        let _ = self.delete(session.socket());
        drop(session);
    }

    /// Waits for events, at most until `due`; without `due` until the next event, which is at most a tick away.
    pub fn wait(&self, events: &mut Events, due: Option<Instant>, spin: &mut SpinWait) {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let may_sleep = left.is_none_or(|left| !left.is_zero());
        if may_sleep && spin.until_true(|| self.fill(events, Some(Duration::ZERO))) {
            return;
        }
        self.fill(events, left);
    }

    /// Rearms the timer for the next tick.
    pub fn take_tick(&self) {
        self.ticker.take();
    }

    fn fill(&self, events: &mut Events, timeout: Option<Duration>) -> bool {
        let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
        // EINTR yields no event. Other errors cannot occur: epoll and memory belong to this process.
        events.filled = match epoll::wait(&self.epoll, &mut events.buffer, timeout.as_ref()) {
            Ok((ready, _)) => ready.len(),
            Err(_) => 0,
        };
        events.filled > 0
    }
}

#[derive(Debug)]
pub struct Events {
    buffer: [MaybeUninit<epoll::Event>; MAX_EVENTS],
    filled: usize,
}

impl Events {
    pub fn new() -> Self {
        Events { buffer: [MaybeUninit::uninit(); MAX_EVENTS], filled: 0 }
    }

    /// The ready sources, in the kernel's order.
    pub fn drain(&mut self) -> impl Iterator<Item = Token> + use<> {
        let mut tokens = [Token::Command; MAX_EVENTS];
        let filled = std::mem::take(&mut self.filled);
        for (token, event) in tokens.iter_mut().zip(&self.buffer[..filled]) {
            // SAFETY: epoll_wait filled the first `filled` events.
            let event = unsafe { event.assume_init() };
            *token = Token::from_token(event.data.u64());
        }
        tokens.into_iter().take(filled)
    }
}

/// Polls for a while before the thread sleeps: waking a sleeping core costs more than a short wait. At most
/// `max_spinners` threads spin at once, which leaves a core for the work that they wait for.
#[derive(Debug)]
pub struct SpinWait {
    service: Arc<Service>,
    spin_time: Duration,
}

impl SpinWait {
    pub fn new(service: &Arc<Service>) -> Self {
        let spin_time = match service.settings.optimize_for {
            OptimizeFor::Latency => SPIN_TIME,
            OptimizeFor::Throughput => Duration::ZERO,
        };
        SpinWait { service: Arc::clone(service), spin_time }
    }

    pub fn until_true(&mut self, mut attempt: impl FnMut() -> bool) -> bool {
        if self.spin_time.is_zero() {
            return false;
        }
        let mut succeeded = false;
        if self.service.spinners.fetch_add(1, Relaxed) < self.service.max_spinners {
            let until = Instant::now() + self.spin_time;
            while !succeeded && Instant::now() < until {
                succeeded = attempt();
                std::hint::spin_loop();
            }
        }
        self.service.spinners.fetch_sub(1, Relaxed);
        succeeded
    }
}
