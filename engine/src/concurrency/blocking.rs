//! Runs a session on a thread that sleeps in the session's socket.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::concurrency::control::{Command, Control};
use crate::concurrency::mailbox::Notify;
use crate::concurrency::{SPIN_TIME, run};
use crate::model::TICK;
use crate::net::eventfd::EventFd;
use crate::net::transport::IoMode;
use crate::service::Service;
use crate::session::{Next, RunOptions, Session, ThreadBuffers, Wake};
use crate::settings::OptimizeFor;
use crate::sync::{Mutex, MutexGuard, unpoisoned};

/// How often a thread checks its session for results when no descriptor is left for an eventfd to wake it.
const FALLBACK_POLL: Duration = Duration::from_millis(5);

/// How the storage pool wakes a thread. The eventfd exists only while the thread waits: keeping one per connection
/// would cost a descriptor for each connection that has ever waited.
#[derive(Debug)]
pub struct ThreadWaker<B = EventFd>(Mutex<WakeState<B>>);

#[derive(Debug)]
struct WakeState<B> {
    is_called: bool,
    event_fd: Option<Arc<B>>,
}

impl<B: Notify> ThreadWaker<B> {
    pub fn new() -> Self {
        ThreadWaker(Mutex::new(WakeState { is_called: false, event_fd: None }))
    }

    fn wake_state(&self) -> MutexGuard<'_, WakeState<B>> {
        unpoisoned(self.0.lock())
    }

    /// Sleeps in `sleep`, which gets the eventfd that ends the sleep, if `open` made one. Returns at once if the
    /// thread was called since its last sleep.
    pub fn sleep(&self, open: impl FnOnce() -> Option<B>, sleep: impl FnOnce(Option<&B>)) {
        let event_fd = {
            let mut wake_state = self.wake_state();
            if std::mem::take(&mut wake_state.is_called) {
                return;
            }
            wake_state.event_fd = open().map(Arc::new);
            wake_state.event_fd.clone()
        };
        sleep(event_fd.as_deref());
        // The caller checks for results next, whether or not storage woke it.
        *self.wake_state() = WakeState { is_called: false, event_fd: None };
    }
}

impl<B: Notify> Wake for ThreadWaker<B> {
    fn wake(&self, _: u64) {
        let mut wake_state = self.wake_state();
        wake_state.is_called = true;
        if let Some(event_fd) = &wake_state.event_fd {
            event_fd.notify();
        }
    }
}

/// Runs a session until it ends and returns None. Returns the session when another model takes over, or when the
/// thread is recalled.
pub fn run_session_blocking(
    mut session: Box<Session>,
    buffers: &mut ThreadBuffers,
    service: &Service,
    control: &Control,
) -> Option<Box<Session>> {
    if session.prepare_to_sleep().is_err() {
        return None;
    }
    // One waker per session, so that its descriptor closes with the session: idle threads would otherwise keep
    // theirs.
    let waker = Arc::new(ThreadWaker::new());
    let wake: Arc<dyn Wake> = Arc::<ThreadWaker>::clone(&waker);
    session.connection().set_wake(&wake, 0);
    let spin = match service.settings.optimize_for {
        OptimizeFor::Latency => SPIN_TIME,
        OptimizeFor::Throughput => Duration::ZERO,
    };
    let options = RunOptions {
        io_mode: IoMode::Blocking,
        spin,
        reject: false,
        offload_storage: false,
        time_budget: None,
    };
    loop {
        // Covers a command that arrived before this thread registered its socket.
        match control.command() {
            Command::Serve => {}
            Command::Handover => return Some(session),
            Command::Drain => session.stop_reading(),
            Command::Stop => return None,
        }
        let next = run(&mut session, buffers, options);
        match next {
            Next::Closed => return None,
            Next::Yield => continue,
            Next::After(pause) => std::thread::sleep(pause),
            // Without pending jobs, the socket's own timeout has expired.
            Next::Readable | Next::Writable | Next::Waiting => {
                if session.has_jobs() {
                    wait_for_wake(&session, service, &waker, next);
                } else if buffers.is_reclaimed() && control.command() == Command::Serve {
                    return Some(session);
                } else {
                    buffers.trim(service);
                }
            }
        }
        if session.is_overdue(Instant::now()) {
            return None;
        }
    }
}

/// Sleeps until the storage pool has a result for the session, or the client sends or reads.
fn wait_for_wake(session: &Session, service: &Service, waker: &ThreadWaker, next: Next) {
    let interest = match next {
        Next::Readable => PollFlags::IN,
        Next::Writable => PollFlags::OUT,
        _ => PollFlags::empty(),
    };
    let open = || EventFd::new().ok().filter(|event_fd| service.has_fd_headroom(event_fd));
    waker.sleep(open, |event_fd| {
        let mut sources = Vec::with_capacity(2);
        if let Some(event_fd) = event_fd {
            sources.push(PollFd::new(event_fd, PollFlags::IN));
        }
        if !interest.is_empty() {
            sources.push(PollFd::new(session.socket(), interest));
        }
        let timeout = Timespec::try_from(if event_fd.is_some() { TICK } else { FALLBACK_POLL }).ok();
        // EINTR and ENOMEM: the caller's loop tries again.
        let _ = poll(&mut sources, timeout.as_ref());
    });
}
