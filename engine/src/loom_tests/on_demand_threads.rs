//! The threads of thread-per-connection: which threads are counted, and which thread serves a waiting connection.

use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use std::sync::Arc;
use std::time::Duration;

use crate::concurrency::on_demand_threads::OnDemandThreads;

const MOST: usize = 2;
/// A thread without work ends at once, unless it is the last.
const AT_ONCE: Duration = Duration::ZERO;
/// A thread without work stays.
const STAYS: Duration = Duration::from_secs(3600);

/// The roster, and a record of its threads' work.
#[derive(Debug)]
struct Crew {
    roster: OnDemandThreads<usize>,
    idle: Duration,
    served: AtomicUsize,
    running: AtomicUsize,
    /// Set if connections stay until the other one is served too.
    stay: Mutex<Option<Meeting>>,
}

type Meeting = Arc<(Mutex<usize>, Condvar)>;

fn wait_for(meeting: &Meeting, count: usize) {
    let mut present = meeting.0.lock().unwrap();
    while *present < count {
        present = meeting.1.wait(present).unwrap();
    }
}

impl Crew {
    /// Makes a roster with its first thread.
    fn begin(idle: Duration) -> (Arc<Crew>, JoinHandle<()>) {
        let crew = Arc::new(Crew {
            roster: OnDemandThreads::new(MOST),
            idle,
            served: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            stay: Mutex::new(None),
        });
        assert!(crew.roster.claim_first());
        let first = crew.start();
        (crew, first)
    }

    fn start(self: &Arc<Self>) -> JoinHandle<()> {
        let crew = Arc::clone(self);
        thread::spawn(move || {
            while let Some(connection) = crew.roster.next(crew.idle) {
                assert!(crew.running.fetch_add(1, Relaxed) < MOST, "more threads than there may be");
                crew.served.fetch_add(connection, Relaxed);
                let meeting = crew.stay.lock().unwrap().clone();
                if let Some(meeting) = meeting {
                    *meeting.0.lock().unwrap() += 1;
                    meeting.1.notify_all();
                    wait_for(&meeting, MOST);
                }
                crew.running.fetch_sub(1, Relaxed);
            }
        })
    }

    fn add(self: &Arc<Self>, connection: usize) -> Option<JoinHandle<()>> {
        self.roster.add(connection).then(|| self.start())
    }

    /// Ends the roster as a model does. Returns once no thread is counted and no connection waits. loom's waits have
    /// no time limit, so a lost wake-up makes this wait for ever, and loom reports a deadlock.
    fn wind_up(&self) {
        self.roster.end();
        while !self.roster.is_over(STAYS) {}
        assert_eq!((self.roster.threads(), self.roster.waiting()), (0, 0));
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Idle threads leave while connections arrive: each connection is served, and each thread leaves the count.
#[test]
fn no_connection_waits_for_a_thread_that_has_left() {
    check(|| {
        let (crew, first) = Crew::begin(AT_ONCE);
        let second = crew.add(1);
        let third = crew.add(2);
        crew.wind_up();
        assert_eq!(crew.served.load(Relaxed), 3);
        for thread in [Some(first), second, third].into_iter().flatten() {
            thread.join().unwrap();
        }
    });
}

/// Two connections arrive and stay, while one thread is idle or about to be: each gets a thread of its own, and no
/// further thread starts.
#[test]
fn each_connection_that_stays_has_a_thread() {
    check(|| {
        let (crew, first) = Crew::begin(STAYS);
        let both_are_served = Arc::new((Mutex::new(0), Condvar::new()));
        *crew.stay.lock().unwrap() = Some(Arc::clone(&both_are_served));
        let more: Vec<_> = [crew.add(1), crew.add(2)].into_iter().flatten().collect();
        assert!(more.len() < MOST);
        wait_for(&both_are_served, 2);
        crew.wind_up();
        assert_eq!(crew.served.load(Relaxed), 3);
        for thread in more.into_iter().chain([first]) {
            thread.join().unwrap();
        }
    });
}

/// The kernel starts no further thread: the existing threads serve the connection, and a later try counts one more.
#[test]
fn a_connection_whose_thread_could_not_be_started_is_served_by_another() {
    check(|| {
        let (crew, first) = Crew::begin(STAYS);
        for connection in [1, 2] {
            if crew.roster.add(connection) {
                crew.roster.thread_failed();
            }
        }
        let second = crew.roster.wants_a_thread().then(|| crew.start());
        crew.wind_up();
        assert_eq!(crew.served.load(Relaxed), 3);
        for thread in [Some(first), second].into_iter().flatten() {
            thread.join().unwrap();
        }
    });
}

/// A connection is added while the roster ends, because another model did not take it: a thread serves it, or the
/// model can still hand it over; never both.
#[test]
fn a_connection_that_arrives_during_the_end_is_served_or_handed_over() {
    check(|| {
        let (crew, first) = Crew::begin(STAYS);
        let adder = {
            let crew = Arc::clone(&crew);
            thread::spawn(move || crew.add(1))
        };
        crew.roster.end();
        let handed_over: usize = crew.roster.take_waiting().into_iter().sum();
        let second = adder.join().unwrap();
        crew.wind_up();
        assert_eq!(handed_over + crew.served.load(Relaxed), 1);
        for thread in [Some(first), second].into_iter().flatten() {
            thread.join().unwrap();
        }
    });
}
