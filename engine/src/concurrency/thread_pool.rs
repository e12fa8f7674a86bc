//! A fixed number of workers, fed from one bounded queue of ready sessions. The reactor accepts and waits, so ten
//! thousand idle connections occupy no worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::bounded_queue::BoundedQueue;
use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::Control;
use crate::concurrency::reactor::{Dispatch, Reactor, Ready};
use crate::concurrency::start_gate::{StartReport, Starting, start_error};
use crate::model::Model;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::ThreadBuffers;

const STACK: usize = 256 << 10;

#[derive(Debug)]
struct Pool {
    queue: BoundedQueue<Ready>,
    service: Arc<Service>,
    transport: Transport,
}

impl Dispatch for Pool {
    fn capacity(&self) -> usize {
        self.service.settings.max_queue_depth.saturating_sub(self.queue.depth())
    }

    fn dispatch(&self, ready: &mut VecDeque<Ready>) {
        self.queue.push_all(ready);
        let gauges = self.service.statistics.gauges(self.transport);
        let depth = self.queue.depth();
        gauges.queue_depth.store(depth, Relaxed);
        gauges.queue_depth_max.fetch_max(depth, Relaxed);
    }

    fn requeue(&self, ready: Ready) {
        self.queue.requeue(ready);
    }
}

pub fn serve(acceptor: &Arc<Acceptor>, service: &Arc<Service>, control: &Arc<Control>, report: StartReport) {
    let error_for = |(errno, what)| start_error(errno, what, acceptor.address());
    let reactor = match Reactor::new(Model::ThreadPool, acceptor, service, control) {
        Ok(reactor) => reactor,
        Err(failed) => return report.report_failure(error_for(failed)),
    };
    let pool = Arc::new(Pool {
        queue: BoundedQueue::new(service.settings.max_queue_depth),
        service: Arc::clone(service),
        transport: acceptor.transport(),
    });
    let mut starting = Starting::default();
    for _ in 0..service.settings.workers() {
        let (reactor, pool) = (Arc::clone(&reactor), Arc::clone(&pool));
        starting.spawn("objmapper-worker", STACK, move |gate| {
            if gate.pass(Ok(())).is_some() {
                work(&reactor, &pool);
            }
        });
    }
    let workers = match starting.run(None) {
        Ok(workers) => workers,
        Err(failed) => return report.report_failure(error_for(failed)),
    };
    let taker = acceptor.serve();
    report.report_success();
    reactor.run_reactor(&pool, taker);
    pool.queue.close();
    for worker in workers {
        // The runtime has reported a panic on stderr.
        let _ = worker.join();
    }
}

fn work(reactor: &Arc<Reactor>, pool: &Arc<Pool>) {
    let gauges = reactor.service.statistics.gauges(reactor.acceptor.transport());
    gauges.active_threads.fetch_add(1, Relaxed);
    let mut buffers = ThreadBuffers::new(&reactor.service, Model::ThreadPool);
    let mut spin = crate::concurrency::poller::SpinWait::new(&reactor.service);
    loop {
        let mut next = pool.queue.try_pop();
        if next.is_none() {
            spin.until_true(|| {
                next = pool.queue.try_pop();
                next.is_some()
            });
        }
        let Some(ready) = next.or_else(|| pool.queue.pop()) else { break };
        gauges.queue_depth.store(pool.queue.depth(), Relaxed);
        reactor.work(ready, &mut buffers, pool);
    }
    gauges.active_threads.fetch_sub(1, Relaxed);
}
