//! Workers with a desk each, who steal from each other; see `desks.rs`. Accepting and waiting are the reactor's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::desks::{Desks, Seat};
use super::poller::Spin;
use super::reactor::{Dispatch, Reactor, Ready};
use super::starting::{Begun, Starting, start_error};
use super::{Model, Shutdown};
use crate::listener::Listener;
use crate::service::Service;
use crate::session::Scratch;
use crate::transport::Transport;

const STACK: usize = 256 << 10;

#[derive(Debug)]
struct Pool {
    desks: Arc<Desks<Ready>>,
    service: Arc<Service>,
    transport: Transport,
}

impl Dispatch for Pool {
    fn room(&self) -> usize {
        self.service.settings.max_queue_depth.saturating_sub(self.desks.depth())
    }

    fn dispatch(&self, ready: &mut VecDeque<Ready>) {
        for ready in ready.drain(..self.room().min(ready.len())) {
            self.desks.put(ready);
        }
        self.desks.count_depth(self.service.statistics.gauges(self.transport));
    }

    fn dispatch_again(&self, ready: Ready) {
        self.desks.put(ready);
    }
}

pub fn serve(listener: &Arc<Listener>, service: &Arc<Service>, shutdown: &Arc<Shutdown>, begun: Begun) {
    let fail = |(errno, what)| start_error(errno, what, &listener.address);
    let reactor = match Reactor::new(Model::WorkStealing, listener, service, shutdown) {
        Ok(reactor) => reactor,
        Err(failed) => return begun.badly(fail(failed)),
    };
    let (desks, seats) = Desks::new(service.settings.workers());
    let pool = Arc::new(Pool { desks, service: Arc::clone(service), transport: listener.transport });
    let mut starting = Starting::default();
    for seat in seats {
        let (reactor, pool) = (Arc::clone(&reactor), Arc::clone(&pool));
        starting.spawn("objmapper-worker", STACK, move |gate| {
            if gate.pass(Ok(())).is_some() {
                work(&reactor, &pool, seat);
            }
        });
    }
    let workers = match starting.run(None) {
        Ok(workers) => workers,
        Err(failed) => return begun.badly(fail(failed)),
    };
    let taker = listener.serve();
    begun.well();
    reactor.run_reactor(&pool, taker);
    pool.desks.close();
    for worker in workers {
        // A panic has been reported on stderr by the runtime.
        let _ = worker.join();
    }
}

fn work(reactor: &Arc<Reactor>, pool: &Arc<Pool>, mut seat: Seat<Ready>) {
    let gauges = reactor.service.statistics.gauges(reactor.listener.transport);
    gauges.active_threads.fetch_add(1, Relaxed);
    let mut scratch = Scratch::new(&reactor.service, Model::WorkStealing);
    let mut spin = Spin::new(&reactor.service);
    while let Some(ready) = pool.desks.next(&mut seat, &mut spin, gauges) {
        reactor.work(ready, &mut scratch, pool);
    }
    gauges.active_threads.fetch_sub(1, Relaxed);
}
