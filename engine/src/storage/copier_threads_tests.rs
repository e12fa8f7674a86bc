#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;

fn client(uid: u32, connection: u64) -> Client {
    Client { user: User::Uid(uid), connection }
}

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + LONG
}

/// Work that blocks until its channel closes, as in a file system that does not answer.
struct Stuck(mpsc::Receiver<()>);

impl Copy for Stuck {
    fn step(&mut self) -> Progress {
        let _ = self.0.recv();
        Progress::Done
    }
}

/// Work that reports its end, after a number of steps.
struct Reported(mpsc::Sender<u64>, u64, usize);

impl Copy for Reported {
    fn step(&mut self) -> Progress {
        if self.2 > 0 {
            self.2 -= 1;
            std::thread::sleep(Duration::from_millis(1));
            return Progress::More;
        }
        let _ = self.0.send(self.1);
        Progress::Done
    }
}

#[test]
fn a_user_whose_files_are_stuck_leaves_threads_to_all_others() {
    let copiers = Copiers::default();
    let mut held = Vec::new();
    // Three users, each with several connections and many more copies than threads.
    for number in 0..120 {
        let (hold, stuck) = mpsc::channel();
        held.push(hold);
        copiers.submit(client(number % 3, u64::from(number)), Box::new(Stuck(stuck)));
    }
    let (done, reported) = mpsc::channel();
    for number in 0..20 {
        copiers.submit(client(7, 1000), Box::new(Reported(done.clone(), number, 3)));
        assert_eq!(reported.recv_timeout(LONG), Ok(number));
    }
    // A blocked copy ends once its file answers.
    drop(held);
    assert!(copiers.stop(soon()));
}

#[test]
fn connections_take_turns() {
    let copiers = Copiers::default();
    let (done, reported) = mpsc::channel();
    for number in 0..200 {
        copiers.submit(client(1, 1), Box::new(Reported(done.clone(), number, 100)));
    }
    copiers.submit(client(1, 2), Box::new(Reported(done.clone(), 4711, 0)));
    let before = reported.iter().take_while(|number| *number != 4711).count();
    assert!(before < 40, "{before} of another connection before");
    copiers.cancel(client(1, 1));
    assert!(copiers.stop(soon()));
}

#[test]
fn a_stop_does_not_wait_for_stuck_threads() {
    let copiers = Copiers::default();
    let (hold, stuck) = mpsc::channel();
    copiers.submit(client(1, 1), Box::new(Stuck(stuck)));
    let began = Instant::now();
    while copiers.0.state().busy == 0 {
        std::thread::yield_now();
    }
    assert!(!copiers.stop(soon()));
    assert!(began.elapsed() < LONG / 2);
    let (done, reported) = mpsc::channel();
    copiers.submit(client(1, 1), Box::new(Reported(done, 1, 0)));
    assert!(reported.recv().is_err(), "dropped after a stop");
    drop(hold);
    while copiers.0.state().threads > 0 {
        std::thread::yield_now();
    }
    assert!(copiers.stop(soon()));
}

#[test]
fn a_stop_waits_for_commits() {
    struct Finishes(Arc<Copiers>, mpsc::Sender<()>, Arc<AtomicBool>);
    impl Copy for Finishes {
        fn step(&mut self) -> Progress {
            let finishing = self.0.finish();
            self.1.send(()).unwrap();
            std::thread::sleep(3 * STUCK);
            self.2.store(true, SeqCst);
            drop(finishing);
            Progress::Done
        }
    }
    let copiers = Arc::new(Copiers::default());
    let (begins, begun) = mpsc::channel();
    let is_done = Arc::new(AtomicBool::new(false));
    copiers.submit(client(1, 1), Box::new(Finishes(Arc::clone(&copiers), begins, Arc::clone(&is_done))));
    begun.recv().unwrap();
    copiers.stop(soon());
    assert!(is_done.load(SeqCst));
}

#[test]
fn queued_copies_of_an_ended_connection_are_dropped_on_a_copier_thread() {
    struct Noted(Arc<AtomicUsize>, std::thread::ThreadId);
    impl Copy for Noted {
        fn step(&mut self) -> Progress {
            Progress::More
        }
    }
    impl Drop for Noted {
        fn drop(&mut self) {
            assert_ne!(std::thread::current().id(), self.1);
            self.0.fetch_add(1, SeqCst);
        }
    }
    let copiers = Copiers::default();
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut held = Vec::new();
    for _ in 0..100 {
        let (hold, stuck) = mpsc::channel();
        held.push(hold);
        copiers.submit(client(1, 1), Box::new(Stuck(stuck)));
    }
    for _ in 0..10 {
        copiers.submit(client(1, 2), Box::new(Noted(Arc::clone(&dropped), std::thread::current().id())));
    }
    copiers.cancel(client(1, 2));
    drop(held);
    let until = soon();
    while dropped.load(SeqCst) < 10 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(dropped.load(SeqCst), 10);
    assert!(copiers.stop(soon()));
}

#[test]
fn watched_copies_are_ticked_while_they_exist() {
    struct Seen(AtomicBool);
    impl Watched for Seen {
        fn tick(&self, _: Instant) {
            self.0.store(true, SeqCst);
        }
    }
    let copiers = Copiers::default();
    let seen = Arc::new(Seen(false.into()));
    copiers.watch(&seen);
    copiers.tick(Instant::now());
    assert!(seen.0.load(SeqCst));
    drop(seen);
    for _ in 0..1000 {
        copiers.watch(&Arc::new(Seen(false.into())));
    }
    assert!(copiers.0.state().watched.len() <= 2 * MIN_WATCHED);
}

/// A file whose close blocks until its channel closes.
struct HeldUp(mpsc::Receiver<()>);

impl Drop for HeldUp {
    fn drop(&mut self) {
        let _ = self.0.recv();
    }
}

#[test]
fn files_that_wait_to_be_closed_are_counted_for_their_user_until_they_are() {
    let copiers = Copiers::default();
    let mut held = Vec::new();
    for number in 0..MAX_UNCLOSED {
        assert!(!copiers.has_too_many(|| client(1, 0)), "{number}");
        let (hold, stuck) = mpsc::channel();
        held.push(hold);
        copiers.dispose(client(1, number as u64), HeldUp(stuck));
    }
    assert!(copiers.has_too_many(|| client(1, 0)));
    assert!(!copiers.has_too_many(|| client(2, 0)), "of another user");
    // The end of a connection removes its waiting files from the queue, but not from the count.
    copiers.cancel(client(1, MAX_UNCLOSED as u64 - 1));
    assert!(copiers.has_too_many(|| client(1, 0)));
    drop(held);
    let until = soon();
    while copiers.pending() > 0 || copiers.has_too_many(|| client(1, 0)) {
        assert!(Instant::now() < until, "they are never closed");
        std::thread::yield_now();
    }
    assert!(copiers.0.unclosed_of().is_empty());
    assert!(copiers.stop(soon()));
}
