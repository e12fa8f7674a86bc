//! A session in the hands of a thread that sleeps in its socket.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Order, SPIN, Shutdown, TICK, run};
use crate::service::Service;
use crate::session::{Manner, Next, Scratch, Session, Wake};
use crate::settings::OptimizeFor;
use crate::transport::{Bell, Patience};

/// How often a thread looks after its session where it could not be told, for want of a descriptor.
const DEAF_PAUSE: Duration = Duration::from_millis(5);

/// How the storage pool wakes a thread. The eventfd is there while the thread listens, and no longer: a descriptor more for
/// each connection that has ever waited would be too many.
#[derive(Debug, Default)]
struct Ear(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    is_called: bool,
    bell: Option<Arc<Bell>>,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Ear {
    fn wake(&self, _: u64) {
        let mut heard = self.heard();
        heard.is_called = true;
        if let Some(bell) = &heard.bell {
            bell.ring();
        }
    }
}

/// Runs a session to its end: then None. Gives it back where another model takes over, or where the thread is recalled.
pub fn converse(
    mut session: Box<Session>,
    scratch: &mut Scratch,
    service: &Service,
    shutdown: &Shutdown,
) -> Option<Box<Session>> {
    if session.prepare_to_sleep().is_err() {
        return None;
    }
    // The conversation's own, so that its descriptor goes with it: threads that wait for work would keep theirs.
    let ear = Arc::new(Ear::default());
    let wake: Arc<dyn Wake> = Arc::<Ear>::clone(&ear);
    session.connection().set_wake(&wake, 0);
    let spin = match service.settings.optimize_for {
        OptimizeFor::Latency => SPIN,
        OptimizeFor::Throughput => Duration::ZERO,
    };
    let manner =
        Manner { patience: Patience::Wait, spin, refuse: false, storage_elsewhere: false, most: None };
    loop {
        // For an order that came before this thread's socket was known.
        match shutdown.order() {
            Order::Serve => {}
            Order::HandOver => return Some(session),
            Order::Drain => session.stop_reading(),
            Order::Stop => return None,
        }
        let next = run(&mut session, scratch, manner);
        match next {
            Next::Closed => return None,
            Next::Again => continue,
            Next::Later(pause) => std::thread::sleep(pause),
            // Without jobs the socket's own timeout has passed.
            Next::Readable | Next::Writable | Next::Waiting => {
                if session.has_jobs() {
                    listen(&session, service, &ear, next);
                } else if scratch.is_recalled() && shutdown.order() == Order::Serve {
                    return Some(session);
                } else {
                    scratch.trim(service);
                }
            }
        }
        if session.is_overdue(Instant::now()) {
            return None;
        }
    }
}

/// Sleeps until the storage pool has something for the session, or its client.
fn listen(session: &Session, service: &Service, ear: &Ear, next: Next) {
    let wanted = match next {
        Next::Readable => PollFlags::IN,
        Next::Writable => PollFlags::OUT,
        _ => PollFlags::empty(),
    };
    let bell = {
        let mut heard = ear.heard();
        if std::mem::take(&mut heard.is_called) {
            return;
        }
        heard.bell = Bell::new().ok().filter(|bell| service.may_stay_open(bell)).map(Arc::new);
        heard.bell.clone()
    };
    let mut sources = Vec::with_capacity(2);
    if let Some(bell) = &bell {
        sources.push(PollFd::new(&**bell, PollFlags::IN));
    }
    if !wanted.is_empty() {
        sources.push(PollFd::new(session.socket(), wanted));
    }
    let timeout = Timespec::try_from(if bell.is_some() { TICK } else { DEAF_PAUSE }).ok();
    // EINTR and ENOMEM: go round once more.
    let _ = poll(&mut sources, timeout.as_ref());
    // The session looks for results now, whether or not it was called.
    *ear.heard() = Heard::default();
}
