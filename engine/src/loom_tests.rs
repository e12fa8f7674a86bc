//! The server's own protocols between threads, in every order of their steps: `make models` runs these under loom.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

mod accounts;
mod mailbox;
mod on_demand_threads;
mod stealing_queue;
mod thread_waker;

use crate::bounded_queue::BoundedQueue;
use crate::concurrency::handover::Handover;
use crate::concurrency::session_ownership::RunState;
use std::collections::VecDeque;

/// A worker runs a session while storage wakes it and epoll reports it: a run that begins after storage's write sees
/// it, and no two threads run the session at once.
#[test]
fn a_session_that_is_woken_is_run_after_it_and_by_one_thread_at_a_time() {
    loom::model(|| {
        let run_state = Arc::new(RunState::idle());
        let output = Arc::new(AtomicUsize::new(0));
        let seen = Arc::new(AtomicUsize::new(0));
        let running = Arc::new(AtomicUsize::new(0));
        // The loop of a worker that has the session.
        let work = {
            let (run_state, output) = (Arc::clone(&run_state), Arc::clone(&output));
            let (seen, running) = (Arc::clone(&seen), Arc::clone(&running));
            move || {
                loop {
                    assert_eq!(running.fetch_add(1, Relaxed), 0, "two at once");
                    seen.store(output.load(Relaxed), Relaxed);
                    assert_eq!(running.fetch_sub(1, Relaxed), 1);
                    if run_state.release() {
                        break;
                    }
                }
            }
        };
        let storage = {
            let (run_state, output, work) = (Arc::clone(&run_state), Arc::clone(&output), work.clone());
            thread::spawn(move || {
                output.store(1, loom::sync::atomic::Ordering::Release);
                if run_state.mark_woken() {
                    work();
                }
            })
        };
        if run_state.take() {
            work();
        }
        storage.join().unwrap();
        assert_eq!(seen.load(Relaxed), 1, "a wake-up is lost");
        assert!(run_state.take(), "it stays in a hand");
    });
}

/// Two wake-ups at once for an idle session: a thread runs it, and it is free again at the end.
#[test]
fn wake_ups_that_meet_leave_the_session_free() {
    loom::model(|| {
        let run_state = Arc::new(RunState::idle());
        let runs = Arc::new(AtomicUsize::new(0));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (run_state, runs) = (Arc::clone(&run_state), Arc::clone(&runs));
                thread::spawn(move || {
                    if run_state.mark_woken() {
                        loop {
                            runs.fetch_add(1, Relaxed);
                            if run_state.release() {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        for waker in wakers {
            waker.join().unwrap();
        }
        assert!(runs.load(Relaxed) >= 1);
        assert!(run_state.take());
    });
}

/// One model hands a session over while its successor drains: the successor takes it, or the giver gets it back; it
/// never stays behind.
#[test]
fn no_session_stays_behind_when_the_last_taker_leaves() {
    loom::model(|| {
        let hand_over = Arc::new(Handover::new());
        hand_over.register();
        hand_over.register();
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let hand_over = Arc::clone(&hand_over);
                thread::spawn(move || {
                    let mut taken = 0;
                    loop {
                        taken += usize::from(hand_over.take().is_some());
                        if hand_over.leave() {
                            return taken;
                        }
                    }
                })
            })
            .collect();
        let refused = usize::from(hand_over.offer(7).is_err());
        let taken: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
        assert_eq!(refused + taken, 1);
        assert_eq!(hand_over.take(), None);
    });
}

/// Two workers sleep until the bounded queue has an item, while two threads fill it and one item comes back: each
/// worker gets one. A lost wake-up would leave a worker asleep for ever, and loom fails on a deadlock.
#[test]
fn no_worker_sleeps_while_the_queue_has_an_item_for_it() {
    let mut model = loom::model::Builder::new();
    // loom preempts threads at most three times per run; without a bound this takes hours.
    model.preemption_bound = Some(3);
    model.check(|| {
        let queue = Arc::new(BoundedQueue::new(2));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.pop())
            })
            .collect();
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.requeue(1))
        };
        let mut items = VecDeque::from([2]);
        queue.push_all(&mut items);
        assert!(items.is_empty());
        other.join().unwrap();
        let taken: Option<usize> = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(taken, Some(3));
        assert_eq!((queue.depth(), queue.try_pop()), (0, None));
    });
}

/// Two items at once wake two workers.
#[test]
fn as_many_workers_wake_as_there_is_new_work() {
    loom::model(|| {
        let queue = Arc::new(BoundedQueue::new(2));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.pop())
            })
            .collect();
        queue.push_all(&mut VecDeque::from([1, 2]));
        let taken: Option<usize> = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(taken, Some(3));
    });
}

/// Two threads fill a queue with one place, and a worker pops until it is closed: the queue never exceeds its bound,
/// and a worker gets each item, or the pushing thread keeps it.
#[test]
fn a_full_queue_leaves_each_item_to_exactly_one() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let queue = Arc::new(BoundedQueue::new(1));
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || std::iter::from_fn(|| queue.pop()).sum::<usize>())
        };
        let other = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut items = VecDeque::from([1]);
                queue.push_all(&mut items);
                items.into_iter().sum::<usize>()
            })
        };
        let mut items = VecDeque::from([2]);
        queue.push_all(&mut items);
        assert!(queue.depth() <= 1);
        let left = items.into_iter().sum::<usize>() + other.join().unwrap();
        queue.close();
        assert_eq!(worker.join().unwrap() + left, 3);
    });
}
