//! Decides which thread runs a session and when, and nothing else. Every model is one file with one `serve` of the
//! same shape.

pub(crate) mod acceptor;
pub(crate) mod blocking;
pub(crate) mod control;
mod dedicated_threads;
mod epoll;
mod event_loop;
pub(crate) mod handover;
pub(crate) mod mailbox;
pub(crate) mod on_demand_threads;
pub(crate) mod poller;
mod reactor;
mod reactor_worker;
pub(crate) mod session_ownership;
pub(crate) mod slab;
pub(crate) mod start_gate;
pub(crate) mod stealing_queue;
mod thread_per_connection;
mod thread_pool;
mod timer_queue;
mod work_stealing;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::Control;
use crate::model::Model;
use crate::service::Service;
use crate::session::{Next, RunOptions, Session, ThreadBuffers};

use crate::concurrency::start_gate::StartReport;

/// The longest turn of a session: other sessions of the same thread wait meanwhile.
const TURN: Duration = Duration::from_micros(500);
/// How long a thread spins before it sleeps when the server optimizes for latency.
pub const SPIN_TIME: Duration = Duration::from_micros(100);

/// Sets up a model, reports success or failure through `report`, and serves until `control` ends it and no session is
/// left.
pub fn serve(
    model: Model,
    acceptor: &Arc<Acceptor>,
    service: &Arc<Service>,
    control: &Arc<Control>,
    report: StartReport,
) {
    match model {
        Model::ThreadPerConnection => thread_per_connection::serve(acceptor, service, control, report),
        Model::ThreadPool => thread_pool::serve(acceptor, service, control, report),
        Model::WorkStealing => work_stealing::serve(acceptor, service, control, report),
        Model::Epoll => epoll::serve(acceptor, service, control, report),
    }
}

/// Runs a session. A panic ends this session only; the server counts it, and the runtime reports it on stderr.
pub fn run(session: &mut Session, buffers: &mut ThreadBuffers, options: RunOptions) -> Next {
    catch_panic(session, buffers, |session, buffers| session.run(buffers, options))
}

/// The same for [`Session::read_on`].
pub fn read_on(session: &mut Session, buffers: &mut ThreadBuffers, options: RunOptions) -> Option<Next> {
    catch_panic(session, buffers, |session, buffers| session.read_on(buffers, options))
}

/// Runs `work` on a session; a panic counts as the end of the session.
fn catch_panic<T: From<Next>>(
    session: &mut Session,
    buffers: &mut ThreadBuffers,
    work: impl FnOnce(&mut Session, &mut ThreadBuffers) -> T,
) -> T {
    // The caller drops the session and this function renews the thread buffers: half-changed state is never used
    // again.
    let result = catch_unwind(AssertUnwindSafe(|| work(session, buffers)));
    result.unwrap_or_else(|_| {
        session.count_panic();
        buffers.renew();
        T::from(Next::Closed)
    })
}
