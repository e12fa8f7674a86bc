//! Workers that steal from each other, each with its own stealing queue; see `stealing_queue.rs`. The reactor accepts
//! and waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::Control;
use crate::concurrency::poller::SpinWait;
use crate::concurrency::reactor::{Dispatch, Reactor, Ready};
use crate::concurrency::start_gate::{StartReport, Starting, start_error};
use crate::concurrency::stealing_queue::{LocalQueue, StealingQueues};
use crate::model::Model;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::ThreadBuffers;

const STACK: usize = 256 << 10;

#[derive(Debug)]
struct Pool {
    queues: Arc<StealingQueues<Ready>>,
    service: Arc<Service>,
    transport: Transport,
}

impl Dispatch for Pool {
    fn capacity(&self) -> usize {
        self.service.settings.max_queue_depth.saturating_sub(self.queues.depth())
    }

    fn dispatch(&self, ready: &mut VecDeque<Ready>) {
        for ready in ready.drain(..self.capacity().min(ready.len())) {
            self.queues.push(ready);
        }
        self.queues.count_depth(self.service.statistics.gauges(self.transport));
    }

    fn requeue(&self, ready: Ready) {
        self.queues.push(ready);
    }
}

pub fn serve(acceptor: &Arc<Acceptor>, service: &Arc<Service>, control: &Arc<Control>, report: StartReport) {
    let error_for = |(errno, what)| start_error(errno, what, acceptor.address());
    let reactor = match Reactor::new(Model::WorkStealing, acceptor, service, control) {
        Ok(reactor) => reactor,
        Err(failed) => return report.report_failure(error_for(failed)),
    };
    let (queues, slots) = StealingQueues::new(service.settings.workers());
    let pool = Arc::new(Pool { queues, service: Arc::clone(service), transport: acceptor.transport() });
    let mut starting = Starting::default();
    for local in slots {
        let (reactor, pool) = (Arc::clone(&reactor), Arc::clone(&pool));
        starting.spawn("objmapper-worker", STACK, move |gate| {
            if gate.pass(Ok(())).is_some() {
                work(&reactor, &pool, local);
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
    pool.queues.close();
    for worker in workers {
        // The runtime has reported a panic on stderr.
        let _ = worker.join();
    }
}

fn work(reactor: &Arc<Reactor>, pool: &Arc<Pool>, mut local: LocalQueue<Ready>) {
    let gauges = reactor.service.statistics.gauges(reactor.acceptor.transport());
    gauges.active_threads.fetch_add(1, Relaxed);
    let mut buffers = ThreadBuffers::new(&reactor.service, Model::WorkStealing);
    let mut spin = SpinWait::new(&reactor.service);
    while let Some(ready) = pool.queues.pop(&mut local, &mut spin, gauges) {
        reactor.work(ready, &mut buffers, pool);
    }
    gauges.active_threads.fetch_sub(1, Relaxed);
}
