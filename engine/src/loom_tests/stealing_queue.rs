//! The workers of work-stealing: when they sleep, who wakes them, and how they end. `crossbeam-deque` knows nothing of
//! loom: its operations are single steps here.

use loom::thread;
use std::sync::Arc;

use crate::concurrency::stealing_queue::{LocalQueue, Spin, StealingQueues};
use crate::statistics::Gauges;

/// Sleeps without spinning before.
struct NoSpin;

impl Spin for NoSpin {
    fn until_true(&mut self, _: impl FnMut() -> bool) -> bool {
        false
    }
}

type Queues = Arc<StealingQueues<usize>>;

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn pop(queues: &Queues, local: &mut LocalQueue<usize>) -> Option<usize> {
    queues.pop(local, &mut NoSpin, &Gauges::default())
}

/// One worker pops while a thread pushes: the worker gets the item. A lost wake-up would leave it asleep, and loom
/// fails on a deadlock.
#[test]
fn a_worker_that_falls_asleep_gets_the_item_that_arrives() {
    check(3, || {
        let (queues, mut locals) = StealingQueues::new(1);
        let mut local = locals.remove(0);
        let worker = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || [pop(&queues, &mut local), pop(&queues, &mut local)])
        };
        queues.push(1);
        queues.push(2);
        let taken: Option<usize> = worker.join().unwrap().into_iter().sum();
        assert_eq!((taken, queues.depth()), (Some(3), 0));
    });
}

/// Two workers pop an item each while two arrive: both get one, from their own queue or by stealing.
#[test]
fn each_worker_gets_an_item_while_there_are_two() {
    check(2, || {
        let (queues, locals) = StealingQueues::new(2);
        let workers: Vec<_> = locals
            .into_iter()
            .map(|mut local| {
                let queues = Arc::clone(&queues);
                thread::spawn(move || pop(&queues, &mut local))
            })
            .collect();
        queues.push(1);
        queues.push(2);
        let taken: Option<usize> = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!((taken, queues.depth()), (Some(3), 0));
    });
}

/// The queues close while a worker looks for work or falls asleep: the worker takes what was pushed before, and ends.
#[test]
fn a_worker_ends_with_closed_queues_once_they_are_empty() {
    check(3, || {
        let (queues, mut locals) = StealingQueues::new(1);
        let mut local = locals.remove(0);
        let worker = {
            let queues = Arc::clone(&queues);
            thread::spawn(move || std::iter::from_fn(|| pop(&queues, &mut local)).sum::<usize>())
        };
        queues.push(1);
        queues.close();
        assert_eq!((worker.join().unwrap(), queues.depth()), (1, 0));
    });
}

/// The queues close while two workers fall asleep: both end.
#[test]
fn closing_wakes_each_worker() {
    check(2, || {
        let (queues, locals) = StealingQueues::<usize>::new(2);
        let workers = locals.into_iter().map(|mut local| {
            let queues = Arc::clone(&queues);
            thread::spawn(move || pop(&queues, &mut local))
        });
        let workers: Vec<_> = workers.collect();
        queues.close();
        for worker in workers {
            assert_eq!(worker.join().unwrap(), None);
        }
    });
}
