#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use std::sync::mpsc::{Receiver, Sender, channel};

const CLIENT: Client = Client { user: User::Unknown, connection: 1 };
const LONG: Duration = Duration::from_secs(60);

/// Occupies the only thread until the sender is used or dropped; returns once the job has begun.
fn block(pool: &StoragePool) -> Sender<()> {
    let (unblock, wait): (Sender<()>, Receiver<()>) = channel();
    let (begun, has_begun) = channel();
    pool.submit(Client { user: User::Unknown, connection: 0 }, Kind::Short, move || {
        begun.send(()).expect("the test waits");
        let _ = wait.recv();
    });
    has_begun.recv_timeout(LONG).expect("it begins");
    unblock
}

#[test]
fn a_stop_drops_waiting_jobs_and_does_the_writes() {
    let pool = StoragePool::start("objmapper-storage", 1).expect("a pool");
    let unblock = block(&pool);
    let (done, did) = channel();
    for kind in [Kind::Short, Kind::Write, Kind::Urgent, Kind::Write] {
        let done = done.clone();
        pool.submit(CLIENT, kind, move || done.send(kind).expect("the test listens"));
    }
    drop(done);
    assert_eq!(pool.pending(), 5);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| pool.stop(Instant::now() + LONG));
        while pool.pending() > 3 {
            std::thread::yield_now();
        }
        drop(unblock);
        assert!(stop.join().expect("it stops"));
    });
    assert_eq!(did.iter().collect::<Vec<_>>(), [Kind::Write, Kind::Write]);
    assert_eq!(pool.pending(), 0);
}

#[test]
fn a_stop_does_not_wait_for_a_disk_that_never_answers() {
    let pool = StoragePool::start("objmapper-storage", 1).expect("a pool");
    let stuck = block(&pool);
    let (done, did) = channel();
    pool.submit(CLIENT, Kind::Write, move || done.send(()).expect("the test listens"));
    let began = Instant::now();
    assert!(!pool.stop(began + Duration::from_millis(50)));
    assert!(began.elapsed() < LONG);
    assert!(did.recv().is_err(), "what cannot be done by then is dropped");
    drop(stuck);
}

#[test]
fn a_panicking_job_ends_no_thread() {
    let pool = StoragePool::start("objmapper-storage", 1).expect("a pool");
    let (done, did) = channel();
    let owed = done.clone();
    pool.submit(CLIENT, Kind::Short, move || {
        let _owed = owed;
        panic!("a test panics");
    });
    pool.submit(CLIENT, Kind::Short, move || done.send(()).expect("the test listens"));
    assert_eq!(did.recv_timeout(LONG), Ok(()));
    assert!(pool.stop(Instant::now() + LONG));
}

/// Wants turns until the test stops it.
struct Endless(Receiver<()>);

impl Work for Endless {
    fn run(&mut self, turn: &Turn) -> Progress {
        while !turn.is_over() {
            std::hint::spin_loop();
        }
        if self.0.try_recv().is_ok() { Progress::Done } else { Progress::More }
    }
}

#[test]
fn long_jobs_let_short_ones_through_and_end_with_a_stop() {
    let pool = StoragePool::start("objmapper-storage", 1).expect("a pool");
    let enders: Vec<_> = (2..10)
        .map(|connection| {
            let (enough, is_enough) = channel();
            let client = Client { user: User::Unknown, connection };
            pool.submit_work(client, Kind::Long, Box::new(Endless(is_enough)));
            enough
        })
        .collect();
    for _ in 0..20 {
        let (done, did) = channel();
        pool.submit(CLIENT, Kind::Short, move || done.send(()).expect("the test listens"));
        assert_eq!(did.recv_timeout(LONG), Ok(()));
    }
    enders[0].send(()).expect("it goes on");
    while pool.pending() > 7 {
        std::thread::yield_now();
    }
    assert!(pool.stop(Instant::now() + LONG));
    assert_eq!(pool.pending(), 0);
}

#[test]
fn time_without_a_processor_does_not_count_as_a_turn() {
    let began = processor_time();
    let turn = Turn { ends_at: Instant::now() + LONG, ..Turn::long(Instant::now()) };
    std::thread::sleep(2 * TURN);
    assert!(!turn.is_over(), "it has done nothing yet");
    while !turn.is_over() {
        std::hint::spin_loop();
    }
    assert!(processor_time() >= began + TURN);
}

#[test]
fn a_turn_ends_on_the_clock_too() {
    let Some(began) = Instant::now().checked_sub(MAX_TURN) else { return };
    assert!(Turn::long(began).is_over());
}

/// The pool's count of its threads.
fn threads(pool: &StoragePool) -> usize {
    pool.shared.state().threads
}

#[test]
fn stuck_threads_are_replaced_while_jobs_wait_and_surplus_threads_end() {
    let pool = StoragePool::start("objmapper-storage", 2).expect("a pool");
    let stuck: Vec<_> = [1, 2]
        .map(|connection| {
            let (unblock, wait): (Sender<()>, Receiver<()>) = channel();
            let (begun, has_begun) = channel();
            pool.submit(Client { user: User::Unknown, connection }, Kind::Short, move || {
                begun.send(()).expect("the test waits");
                let _ = wait.recv();
            });
            has_begun.recv_timeout(LONG).expect("it begins");
            unblock
        })
        .into();
    pool.replace_stuck();
    assert_eq!(threads(&pool), 2, "nothing waits");
    let (done, did) = channel();
    let client = Client { user: User::Unknown, connection: 3 };
    pool.submit(client, Kind::Short, move || {
        done.send(()).expect("the test listens");
    });
    while did.try_recv().is_err() {
        pool.replace_stuck();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(threads(&pool), 4);
    drop(stuck);
    while threads(&pool) > 2 {
        // A sleeping thread checks when it wakes.
        pool.submit(client, Kind::Short, || {});
        std::thread::yield_now();
    }
    assert!(pool.stop(Instant::now() + LONG));
}

#[test]
fn one_connection_whose_disk_does_not_answer_leaves_a_thread_for_others() {
    let pool = StoragePool::start("objmapper-storage", 2).expect("a pool");
    let (unblock, wait) = channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    for _ in 0..64 {
        let wait = Arc::clone(&wait);
        pool.submit(CLIENT, Kind::Short, move || _ = unpoisoned(wait.lock()).recv());
    }
    for _ in 0..20 {
        let (done, did) = channel();
        pool.submit(Client { user: User::Unknown, connection: 2 }, Kind::Short, move || {
            done.send(()).expect("the test listens");
        });
        assert_eq!(did.recv_timeout(LONG), Ok(()));
    }
    assert!(pool.pending() >= 64);
    drop(unblock);
    assert!(pool.stop(Instant::now() + LONG));
}
