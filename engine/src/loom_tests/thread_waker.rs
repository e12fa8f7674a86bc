//! How a storage thread wakes a thread that sleeps in the socket of its session.

use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc;

use crate::concurrency::blocking::ThreadWaker;
use crate::concurrency::mailbox::Notify;
use crate::session::Wake;
use crate::session::completions::CompletionQueue;

/// A model of poll(2), without a time limit: the descriptors that are readable.
#[derive(Debug)]
struct Poll {
    readable: Mutex<Vec<bool>>,
    changed: Condvar,
}

/// A descriptor that stays readable once it is.
#[derive(Debug)]
struct Source {
    number: usize,
    poll: Arc<Poll>,
}

impl Poll {
    fn new() -> Arc<Self> {
        Arc::new(Poll { readable: Mutex::new(Vec::new()), changed: Condvar::new() })
    }

    fn open(self: &Arc<Self>) -> Source {
        let mut readable = self.readable.lock().unwrap();
        readable.push(false);
        Source { number: readable.len() - 1, poll: Arc::clone(self) }
    }

    /// Sleeps until one of them is readable.
    fn wait(&self, sources: &[&Source]) {
        let mut readable = self.readable.lock().unwrap();
        while !sources.iter().any(|source| readable[source.number]) {
            readable = self.changed.wait(readable).unwrap();
        }
    }
}

impl Source {
    fn is_readable(&self) -> bool {
        self.poll.readable.lock().unwrap()[self.number]
    }
}

impl Notify for Source {
    fn notify(&self) {
        self.poll.readable.lock().unwrap()[self.number] = true;
        self.poll.changed.notify_all();
    }

    fn take(&self) -> bool {
        std::mem::take(&mut self.poll.readable.lock().unwrap()[self.number])
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A session's results, and the waker that the storage threads call for them.
fn session() -> (Arc<CompletionQueue<usize>>, Arc<ThreadWaker<Source>>) {
    let finished = Arc::new(CompletionQueue::new());
    let waker = Arc::new(ThreadWaker::new());
    let wake: Arc<dyn Wake> = Arc::<ThreadWaker<Source>>::clone(&waker);
    finished.set_wake(&wake, 0);
    (finished, waker)
}

/// Two storage threads each have a result, while the session's thread collects results and sleeps: it gets both. A
/// lost wake-up would leave it asleep, and loom fails on a deadlock.
#[test]
fn a_thread_does_not_sleep_while_its_session_has_a_result() {
    check(|| {
        let (finished, waker) = session();
        let storage = [1, 2].map(|result| {
            let finished = Arc::clone(&finished);
            thread::spawn(move || finished.add(result))
        });
        let poll = Poll::new();
        let mut collected: usize = finished.take().into_iter().sum();
        while collected < 3 {
            waker.sleep(|| Some(poll.open()), |event_fd| poll.wait(&[event_fd.unwrap()]));
            collected += finished.take().into_iter().sum::<usize>();
        }
        for thread in storage {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
        assert_eq!(collected, 3);
    });
}

/// The client sends while storage has a result: whichever ends the sleep, the thread notices both.
#[test]
fn a_thread_that_its_client_wakes_gets_the_result_too() {
    check(|| {
        let (finished, waker) = session();
        let poll = Poll::new();
        let socket = Arc::new(poll.open());
        let client = {
            let socket = Arc::clone(&socket);
            thread::spawn(move || socket.notify())
        };
        let storage = {
            let finished = Arc::clone(&finished);
            thread::spawn(move || finished.add(1))
        };
        let (mut collected, mut has_read) = (0, false);
        while collected == 0 || !has_read {
            waker.sleep(
                || Some(poll.open()),
                |event_fd| {
                    let event_fd = event_fd.unwrap();
                    // A session that has read its request waits for storage alone.
                    let both = [event_fd, &*socket];
                    poll.wait(if has_read { &both[..1] } else { &both });
                },
            );
            has_read |= socket.is_readable();
            collected += finished.take().len();
        }
        client.join().unwrap();
        assert_eq!((storage.join().unwrap(), collected), (Ok(()), 1));
    });
}
