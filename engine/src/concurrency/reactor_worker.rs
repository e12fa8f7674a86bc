//! The workers' side of the reactor: runs a ready session, and arms, queues or ends it afterwards.

use rustix::event::epoll::EventFlags;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use crate::concurrency::control::Command;
use crate::concurrency::poller::Token;
use crate::concurrency::reactor::{Dispatch, Reactor, Ready, Slot};
use crate::concurrency::slab::Key;
use crate::concurrency::{TURN, read_on, run};
use crate::net::transport::IoMode;
use crate::session::{Next, QueueWait, RunOptions, Session, ThreadBuffers};

impl Reactor {
    /// The options with which workers run sessions.
    fn options(&self, reject: bool) -> RunOptions {
        RunOptions {
            io_mode: IoMode::NonBlocking,
            spin: Duration::ZERO,
            reject,
            offload_storage: self.service.settings.async_storage,
            time_budget: Some(TURN),
        }
    }

    /// Runs a ready session on a worker and gives it back.
    pub fn work(
        self: &Arc<Self>,
        ready: Ready,
        buffers: &mut ThreadBuffers,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        let now = Instant::now();
        let waited = now.saturating_duration_since(ready.since);
        // The session counts refused requests when it answers them: it may have several, or only part of one.
        let reject = self.delay.should_reject(waited, now);
        buffers.queued = Some(QueueWait { wait: waited, until: now });
        self.run(ready.slot, buffers, reject, dispatch);
    }

    pub(super) fn run(
        self: &Arc<Self>,
        slot: Arc<Slot>,
        buffers: &mut ThreadBuffers,
        reject: bool,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        let mut guard = slot.session();
        let Some(session) = guard.as_mut() else { return };
        let next = run(session, buffers, self.options(reject));
        self.return_session(&slot, guard, next, dispatch);
    }

    /// Whether the session has a request to answer. Checks this when a request has begun, or when the queue's places
    /// are `scarce`: a client that sends a request byte by byte takes no place for each byte, so its requests
    /// displace no other client.
    pub(super) fn needs_worker(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        scarce: bool,
        buffers: &mut ThreadBuffers,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) -> bool {
        let mut guard = slot.session();
        let Some(session) = guard.as_mut() else { return true };
        let next = if session.is_lingering() {
            Some(run(session, buffers, self.options(false)))
        } else if session.is_inside_a_frame() || (scarce && session.is_between_requests()) {
            read_on(session, buffers, self.options(false))
        } else {
            None
        };
        let Some(next) = next else { return true };
        self.return_session(slot, guard, next, dispatch);
        false
    }

    /// Arms, queues or ends a session according to what it needs next.
    fn return_session(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        mut guard: MutexGuard<'_, Option<Box<Session>>>,
        next: Next,
        dispatch: &Arc<impl Dispatch + Send + Sync + std::fmt::Debug + 'static>,
    ) {
        if self.control.command() == Command::Handover
            && next != Next::Closed
            && let Some(session) = guard.take()
        {
            let _ = self.poller.delete(session.socket());
            match self.acceptor.hand_over(session) {
                Ok(()) => {
                    drop(guard);
                    return self.remove(slot.key);
                }
                // A drain overtook the handover: this reactor drains the session.
                Err(back) => {
                    back.stop_reading();
                    let added = self.poller.add(back.socket(), Token::Session(slot.key), EventFlags::ONESHOT);
                    *guard = Some(back);
                    if added.is_err() {
                        return self.end(slot, guard);
                    }
                }
            }
        }
        // A client that always has work to do would keep a worker, and with it the model, from ending.
        let next = if self.control.command() == Command::Stop { Next::Closed } else { next };
        let interest = match next {
            Next::Readable => Some(EventFlags::IN),
            Next::Writable => Some(EventFlags::OUT),
            Next::Waiting => None,
            Next::Yield => {
                drop(guard);
                return dispatch.requeue(Ready { slot: Arc::clone(slot), since: Instant::now() });
            }
            Next::After(pause) => {
                drop(guard);
                self.timers.add(Instant::now() + pause, slot.key);
                self.event_fd.notify();
                return;
            }
            Next::Closed => return self.end(slot, guard),
        };
        // Release before arming: the event may arrive at once, and must find the session free.
        if !slot.run_state.release() {
            drop(guard);
            return dispatch.requeue(Ready { slot: Arc::clone(slot), since: Instant::now() });
        }
        // Without interest, the kernel reports nothing (it has reported once) until storage has results.
        let Some(interest) = interest else { return };
        let flags = interest | EventFlags::ONESHOT;
        let Some(session) = guard.as_ref() else { return };
        if self.poller.modify(session.socket(), Token::Session(slot.key), flags).is_err() {
            self.end(slot, guard);
        }
    }

    /// Ends the session of a slot that the caller has taken.
    fn end(&self, slot: &Slot, mut guard: MutexGuard<'_, Option<Box<Session>>>) {
        if let Some(session) = guard.take() {
            self.poller.drop_session(session);
        }
        drop(guard);
        self.remove(slot.key);
    }

    fn remove(&self, key: Key) {
        self.slots().remove(key);
    }
}
