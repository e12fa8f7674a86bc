//! How sessions and the results of storage reach an event loop: the loop sleeps only on its eventfd.

use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc;

use crate::concurrency::mailbox::{Mailbox, Notify, WakeQueue};
use crate::concurrency::slab::Key;
use crate::session::Wake;
use crate::session::completions::CompletionQueue;

/// A model of an eventfd that counts (EFD_SEMAPHORE), watched by an epoll that reports it while it is readable.
#[derive(Debug)]
struct Bell {
    rings: Mutex<u32>,
    rung: Condvar,
}

impl Bell {
    fn new() -> Self {
        Bell { rings: Mutex::new(0), rung: Condvar::new() }
    }

    /// Sleeps until it is readable.
    fn wait(&self) {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.rung.wait(rings).unwrap();
        }
    }
}

impl Notify for Bell {
    fn notify(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn take(&self) -> bool {
        let mut rings = self.rings.lock().unwrap();
        let was_rung = *rings > 0;
        *rings = rings.saturating_sub(1);
        was_rung
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

const FIRST: u64 = 1 << 32;
const SECOND: u64 = 2 << 32;

/// Two threads each give the loop a session, while it takes sessions and sleeps: it gets both, and counts both.
#[test]
fn a_loop_does_not_sleep_while_its_mailbox_has_a_session() {
    check(|| {
        let mailbox = Arc::new(Mailbox::new(Bell::new()));
        let givers: Vec<_> = [1, 2]
            .map(|session| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(session))
            })
            .into();
        let mut taken: Vec<usize> = Vec::new();
        while taken.len() < 2 {
            mailbox.event_fd.wait();
            while let Some(session) = mailbox.take() {
                taken.push(session);
            }
        }
        for giver in givers {
            assert_eq!(giver.join().unwrap(), Ok(()));
        }
        assert_eq!((taken.iter().sum(), mailbox.sessions.load(Relaxed)), (3, 2));
    });
}

/// Two draining loops leave once they have no session, while a thread gives a session back: a loop takes it, or the
/// thread gets it back; it never stays in the mailbox of a loop that has left.
#[test]
fn no_session_stays_in_the_mailbox_of_a_loop_that_has_left() {
    check(|| {
        let mailboxes: Arc<[_]> = [Mailbox::new(Bell::new()), Mailbox::new(Bell::new())].into();
        let loops: Vec<_> = [0, 1]
            .map(|number| {
                let mailboxes = Arc::clone(&mailboxes);
                thread::spawn(move || {
                    let mut taken = 0;
                    while !mailboxes[number].close() {
                        taken += mailboxes[number].take().unwrap_or(0);
                    }
                    taken
                })
            })
            .into();
        let refused = Mailbox::push_to_least_loaded(&mailboxes, 7_usize).err().unwrap_or(0);
        let taken: usize = loops.into_iter().map(|each| each.join().unwrap()).sum();
        assert_eq!(refused + taken, 7);
        assert!(Mailbox::least_loaded(&mailboxes, 0).is_none());
    });
}

/// Two storage threads have results for two sessions of a loop: the loop runs each session after its result has
/// arrived.
#[test]
fn each_result_of_storage_has_its_session_run() {
    check(|| {
        let woken = Arc::new(WakeQueue::new(Bell::new()));
        let wake: Arc<dyn Wake> = Arc::<WakeQueue<Bell>>::clone(&woken);
        let sessions = [FIRST, SECOND].map(|key| {
            let finished = Arc::new(CompletionQueue::new());
            finished.set_wake(&wake, key);
            finished
        });
        let threads = sessions.clone().map(|finished| thread::spawn(move || finished.add(1)));
        let mut collected = 0;
        while collected < 2 {
            woken.event_fd.wait();
            for key in woken.take() {
                let session = usize::from(key == Key::from_number(SECOND));
                collected += sessions[session].take().len();
            }
        }
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    });
}

/// A session moves from one loop to another while storage has a result for it: the new loop runs it.
#[test]
fn a_result_follows_its_session_to_another_loop() {
    check(|| {
        let finished = Arc::new(CompletionQueue::new());
        let former: Arc<dyn Wake> = Arc::new(WakeQueue::new(Bell::new()));
        finished.set_wake(&former, FIRST);
        let storage = {
            let finished = Arc::clone(&finished);
            thread::spawn(move || finished.add(1))
        };
        let woken = Arc::new(WakeQueue::new(Bell::new()));
        let wake: Arc<dyn Wake> = Arc::<WakeQueue<Bell>>::clone(&woken);
        finished.set_wake(&wake, SECOND);
        let mut collected = 0;
        while collected == 0 {
            woken.event_fd.wait();
            for key in woken.take() {
                assert_eq!(key, Key::from_number(SECOND));
                collected += finished.take().len();
            }
        }
        assert_eq!((storage.join().unwrap(), collected), (Ok(()), 1));
    });
}

/// A session ends while two storage threads have results for it: the session collects each result at the end, or the
/// storage thread gets it back and records it. No result is lost or taken twice.
#[test]
fn a_result_for_an_ending_session_is_returned() {
    check(|| {
        let finished = Arc::new(CompletionQueue::new());
        let returned = Arc::new(AtomicUsize::new(0));
        let threads = [1, 2].map(|result| {
            let (finished, returned) = (Arc::clone(&finished), Arc::clone(&returned));
            thread::spawn(move || {
                if let Err(back) = finished.add(result) {
                    returned.fetch_add(back, Relaxed);
                }
            })
        });
        let collected: usize = finished.take().into_iter().chain(finished.end()).sum();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(collected + returned.load(Relaxed), 3);
        assert!(finished.take().is_empty());
    });
}
