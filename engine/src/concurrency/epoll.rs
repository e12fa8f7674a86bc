//! Event loops: each thread runs the sessions of its own epoll, descriptors included, and never waits for one of
//! them.
//!
//! All loops watch the listener; the loop that accepts a connection gives it to the loop with the fewest. The loops
//! share nothing while they serve. One loop is in `event_loop.rs`.

use std::sync::Arc;

use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::Control;
use crate::concurrency::dedicated_threads::DedicatedThreads;
use crate::concurrency::event_loop::{EventLoop, EventLoops};
use crate::concurrency::mailbox::Mailbox;
use crate::concurrency::start_gate::{StartReport, Starting, start_error};
use crate::net::eventfd::EventFd;
use crate::service::Service;
use crate::settings::cores;

const STACK: usize = 256 << 10;

pub fn serve(acceptor: &Arc<Acceptor>, service: &Arc<Service>, control: &Arc<Control>, report: StartReport) {
    let count = match service.settings.pool_size {
        // The clients run on this machine too, and need cores of their own.
        0 => cores().div_ceil(2),
        size => size.min(cores()),
    };
    let error_for = |(errno, what)| start_error(errno, what, acceptor.address());
    let mailboxes = match (0..count).map(|_| EventFd::new().map(Mailbox::new)).collect::<Result<Vec<_>, _>>()
    {
        Ok(mailboxes) => mailboxes,
        Err(errno) => return report.report_failure(error_for((errno, "make an eventfd"))),
    };
    let loops = Arc::new(EventLoops {
        acceptor: Arc::clone(acceptor),
        service: Arc::clone(service),
        control: Arc::clone(control),
        loops: mailboxes,
        dedicated: Arc::new(DedicatedThreads::new(acceptor, service, control)),
    });
    let mut starting = Starting::default();
    for number in 1..count {
        let loops = Arc::clone(&loops);
        starting.spawn("objmapper-loop", STACK, move |gate| {
            if let Some(mut event_loop) = gate.pass(EventLoop::new(&loops, number)) {
                event_loop.run();
            }
        });
    }
    let own = EventLoop::new(&loops, 0);
    let threads = match starting.run(own.as_ref().err().copied()) {
        Ok(threads) => threads,
        Err(failed) => return report.report_failure(error_for(failed)),
    };
    report.report_success();
    if let Ok(mut event_loop) = own {
        event_loop.run();
    }
    for thread in threads {
        // The runtime has reported a panic on stderr.
        let _ = thread.join();
    }
    loops.dedicated.join();
}
