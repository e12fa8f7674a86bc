//! Which thread answers a datagram, in each model that works without connections. All models share one
//! socket, so another model can take over at any time: the next thread that receives gets the waiting datagrams.

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bounded_queue::BoundedQueue;
use crate::codel::CoDel;
use crate::concurrency::control::{Command, Control};
use crate::concurrency::poller::{Events, Poller, SpinWait, Token};
use crate::concurrency::start_gate::{StartReport, Starting, start_error};
use crate::concurrency::stealing_queue::{LocalQueue, StealingQueues};
use crate::model::Model;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::settings::cores;
use crate::statistics::Gauges;
use crate::storage::pool::{Client, Kind, User};
use crate::udp::address_limits::canonical;
use crate::udp::admission::Verdict;
use crate::udp::batch::{BATCH, Inbox, Peer};
use crate::udp::codec::UdpRequest;
use crate::udp::deferred_limits::Deferred;
use crate::udp::object_reader::DiskWait;
use crate::udp::responder::{Disposition, RequestContext, Responder};
use crate::udp::socket::UdpSocket;

const STACK: usize = 256 << 10;
/// Batches to receive before a thread checks for a command to stop.
const BATCHES_PER_TURN: usize = 16;
/// Batches that a drain receives at most: the capacity of the socket's buffer in small datagrams.
const BATCHES_PER_DRAIN: usize = 512;
/// UDP requests that a worker answers before it sends, where more wait.
const REPLIES_PER_TURN: usize = 16;
/// Keeps UDP ports apart from connection numbers.
const UDP: u64 = 1 << 63;

/// The errno, and the resource that a thread could not get.
type Failed = (Errno, &'static str);

/// State that the threads of a model share.
#[derive(Debug)]
struct UdpWorkers {
    model: Model,
    socket: Arc<UdpSocket>,
    service: Arc<Service>,
    control: Arc<Control>,
    /// UDP requests that the storage pool works on.
    deferred: Arc<Deferred>,
}

/// A UDP request on its way to a worker.
#[derive(Debug)]
struct Task {
    datagram: Box<[u8]>,
    from: Peer,
    arrived: Instant,
}

/// Makes all resources, reports the result through `report`, and serves until `control` ends it.
pub fn serve(
    model: Model,
    socket: &Arc<UdpSocket>,
    service: &Arc<Service>,
    control: &Arc<Control>,
    report: StartReport,
) {
    let shared = Arc::new(UdpWorkers {
        model,
        socket: Arc::clone(socket),
        service: Arc::clone(service),
        control: Arc::clone(control),
        deferred: Deferred::new(service.settings.max_queue_depth),
    });
    let started = match model {
        Model::ThreadPool => serve_by_pool(&shared, report),
        Model::WorkStealing => serve_by_stealing(&shared, report),
        // The engine refuses ThreadPerConnection before it calls this.
        Model::ThreadPerConnection | Model::Epoll => serve_by_loops(&shared, report),
    };
    if let Err((report, (errno, what))) = started {
        return report.report_failure(start_error(errno, what, &socket.address));
    }
    while shared.deferred.count() > 0 && control.command() != Command::Stop {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl UdpWorkers {
    fn gauges(&self) -> &Gauges {
        self.service.statistics.gauges(Transport::Udp)
    }

    fn responder(&self) -> Responder {
        Responder::new(&self.socket, &self.service, self.model)
    }

    /// Starts all threads, or none. Each counts as active while it runs.
    fn start<W: Send + 'static, M>(
        self: &Arc<Self>,
        name: &str,
        each: impl IntoIterator<Item = W>,
        make: impl Fn(&Arc<UdpWorkers>) -> Result<M, Failed> + Copy + Send + 'static,
        work: impl Fn(&Arc<UdpWorkers>, W, M) + Copy + Send + 'static,
    ) -> Result<Vec<JoinHandle<()>>, Failed> {
        let mut starting = Starting::default();
        for item in each {
            let shared = Arc::clone(self);
            starting.spawn(name, STACK, move |gate| {
                let Some(resources) = gate.pass(make(&shared)) else { return };
                shared.gauges().active_threads.fetch_add(1, Relaxed);
                work(&shared, item, resources);
                shared.gauges().active_threads.fetch_sub(1, Relaxed);
            });
        }
        starting.run(None)
    }

    /// Receives batches until a command ends it; `take` gets each. A drain receives the waiting datagrams first.
    fn receive(&self, poller: &Poller, mut take: impl FnMut(&Inbox, usize)) {
        let (mut events, mut spin) = (Events::new(), SpinWait::new(&self.service));
        let mut inbox = Inbox::new();
        loop {
            poller.wait(&mut events, None, &mut spin);
            // Other events need no check: the loop polls their sources anyway.
            if events.drain().any(|token| token == Token::Tick) {
                poller.take_tick();
            }
            let command = self.control.command();
            let batches = match command {
                Command::Serve => BATCHES_PER_TURN,
                Command::Drain => BATCHES_PER_DRAIN,
                Command::Handover | Command::Stop => 0,
            };
            for _ in 0..batches {
                let received = self.socket.receive(&mut inbox);
                if received > 0 {
                    take(&inbox, received);
                }
                if received < BATCH {
                    break;
                }
            }
            if command != Command::Serve {
                return;
            }
        }
    }

    fn poller(self: &Arc<Self>) -> Result<Poller, Failed> {
        let poller = Poller::new().map_err(|errno| (errno, "make an epoll"))?;
        let add = || {
            poller.add(self.control.event_fd(), Token::Command, EventFlags::IN | EventFlags::ET)?;
            // The kernel wakes one of the waiting loops.
            poller.add(&*self.socket, Token::Listener, EventFlags::IN | EventFlags::EXCLUSIVE)
        };
        add().map_err(|errno| (errno, "fill an epoll"))?;
        Ok(poller)
    }

    /// Passes on the admitted UDP requests of a batch; a reply of the admission itself goes into the outbox.
    fn admit(
        &self,
        inbox: &Inbox,
        received: usize,
        responder: &mut Responder,
        mut serve: impl FnMut(&mut Responder, &UdpRequest<'_>, &[u8], Peer, Instant),
    ) {
        let arrived = Instant::now();
        for datagram in inbox.received(received) {
            let request = UdpRequest::decode(datagram.bytes);
            match self.socket.admission.evaluate(&request, datagram.from.address, arrived) {
                Verdict::Serve => serve(responder, &request, datagram.bytes, datagram.from, arrived),
                Verdict::Retry(cookie) => responder.retry(&request, &cookie, datagram.from),
                Verdict::Drop => {}
            }
        }
    }

    /// Answers here, or lets the storage pool answer where the reply would have to wait for a disk.
    fn answer(
        self: &Arc<Self>,
        responder: &mut Responder,
        request: &UdpRequest<'_>,
        datagram: &[u8],
        (from, arrived, waited): (Peer, Instant, Option<Duration>),
    ) {
        let settings = &self.service.settings;
        let pool = self.service.storage_pool.as_ref().filter(|_| settings.async_storage);
        let storage = if pool.is_some() { DiskWait::Forbidden } else { DiskWait::Wait };
        let context = RequestContext { from, arrived, waited, storage, charged: 0 };
        let Disposition::Elsewhere { charged } = self.answer_or_none(responder, request, context) else {
            return;
        };
        // Checked before the disk works for a reply that is not sent.
        if charged == 0 && responder.is_over_its_rate(from) {
            return;
        }
        let Some((pool, permit)) = pool.and_then(|pool| Some((pool, self.deferred.take(from.address)?)))
        else {
            return responder.refuse(request, from, arrived);
        };
        let address = canonical(from.address);
        let client =
            Client { user: User::Address(address.ip()), connection: UDP | u64::from(address.port()) };
        let (shared, datagram) = (Arc::clone(self), Box::<[u8]>::from(datagram));
        pool.submit(client, Kind::Short, move || {
            let mut responder = shared.responder();
            let context = RequestContext { from, arrived, waited, storage: DiskWait::Wait, charged };
            // This always answers: this thread may wait for the disk.
            let _ = shared.answer_or_none(&mut responder, &UdpRequest::decode(&datagram), context);
            responder.flush();
            drop(permit);
        });
    }

    /// Answers. After a panic this UDP request gets no reply, and neither do the unsent replies in the
    /// outbox. The panic is counted, and the runtime reports it on stderr.
    fn answer_or_none(
        self: &Arc<Self>,
        responder: &mut Responder,
        request: &UdpRequest<'_>,
        context: RequestContext,
    ) -> Disposition {
        // On a panic the responder is made anew, so that no half-finished state is used again.
        let catch_panic = catch_unwind(AssertUnwindSafe(|| responder.answer(request, context)));
        catch_panic.unwrap_or_else(|_| {
            self.gauges().panics_total.fetch_add(1, Relaxed);
            *responder = self.responder();
            Disposition::Now
        })
    }

    /// The loop of a worker: answers a task and the tasks queued behind it, then sends.
    fn work(
        self: &Arc<Self>,
        responder: &mut Responder,
        delay: &CoDel,
        first: Task,
        mut more: impl FnMut() -> Option<Task>,
    ) {
        let (mut next, mut taken) = (Some(first), 1);
        while let Some(task) = next {
            let now = Instant::now();
            let waited = now.saturating_duration_since(task.arrived);
            let (from, request) = (task.from, UdpRequest::decode(&task.datagram));
            if delay.should_reject(waited, now) {
                responder.refuse(&request, from, now);
            } else {
                self.answer(responder, &request, &task.datagram, (from, now, Some(waited)));
            }
            next = if taken < REPLIES_PER_TURN { more() } else { None };
            taken += 1;
        }
        responder.flush();
    }
}

fn serve_by_loops(shared: &Arc<UdpWorkers>, report: StartReport) -> Result<(), (StartReport, Failed)> {
    let count = match shared.service.settings.pool_size {
        // Clients on loopback need cores of their own.
        0 => cores().div_ceil(2),
        size => size.min(cores()),
    };
    let run = |shared: &Arc<UdpWorkers>, (), poller: Poller| {
        let mut responder = shared.responder();
        shared.receive(&poller, |inbox, received| {
            shared.admit(inbox, received, &mut responder, |responder, request, bytes, from, arrived| {
                shared.answer(responder, request, bytes, (from, arrived, None));
            });
            responder.flush();
        });
    };
    match shared.start("objmapper-loop", vec![(); count.max(1)], UdpWorkers::poller, run) {
        Ok(threads) => {
            report.report_success();
            join(threads);
            Ok(())
        }
        Err(failed) => Err((report, failed)),
    }
}

fn serve_by_pool(shared: &Arc<UdpWorkers>, report: StartReport) -> Result<(), (StartReport, Failed)> {
    let queue: Arc<BoundedQueue<Task>> = Arc::new(BoundedQueue::new(shared.service.settings.max_queue_depth));
    let delay = Arc::new(CoDel::new());
    let shares = (0..shared.service.settings.workers()).map(|_| (Arc::clone(&queue), Arc::clone(&delay)));
    let nothing = |_: &Arc<UdpWorkers>| Ok(());
    let work = |shared: &Arc<UdpWorkers>, (queue, delay): (Arc<BoundedQueue<Task>>, Arc<CoDel>), ()| {
        let mut responder = shared.responder();
        let mut spin = SpinWait::new(&shared.service);
        loop {
            let mut next = queue.try_pop();
            if next.is_none() {
                spin.until_true(|| {
                    next = queue.try_pop();
                    next.is_some()
                });
            }
            let Some(task) = next.or_else(|| queue.pop()) else { break };
            shared.work(&mut responder, &delay, task, || queue.try_pop());
            shared.gauges().queue_depth.store(queue.depth(), Relaxed);
        }
    };
    let (poller, workers) = match shared
        .poller()
        .and_then(|poller| Ok((poller, shared.start("objmapper-worker", shares, nothing, work)?)))
    {
        Ok(started) => started,
        Err(failed) => return Err((report, failed)),
    };
    report.report_success();
    let gauges = shared.gauges();
    feed(shared, &poller, |tasks| {
        queue.push_all(tasks);
        gauges.queue_depth.store(queue.depth(), Relaxed);
        gauges.queue_depth_max.fetch_max(queue.depth(), Relaxed);
    });
    queue.close();
    join(workers);
    Ok(())
}

fn serve_by_stealing(shared: &Arc<UdpWorkers>, report: StartReport) -> Result<(), (StartReport, Failed)> {
    let (queues, slots) = StealingQueues::<Task>::new(shared.service.settings.workers());
    let delay = Arc::new(CoDel::new());
    let shares = slots.into_iter().map(|local| (Arc::clone(&queues), Arc::clone(&delay), local));
    let nothing = |_: &Arc<UdpWorkers>| Ok(());
    type Share = (Arc<StealingQueues<Task>>, Arc<CoDel>, LocalQueue<Task>);
    let work = |shared: &Arc<UdpWorkers>, (queues, delay, mut local): Share, ()| {
        let mut responder = shared.responder();
        let mut spin = SpinWait::new(&shared.service);
        while let Some(task) = queues.pop(&mut local, &mut spin, shared.gauges()) {
            shared.work(&mut responder, &delay, task, || queues.try_pop(&mut local, shared.gauges()));
        }
    };
    let (poller, workers) = match shared
        .poller()
        .and_then(|poller| Ok((poller, shared.start("objmapper-worker", shares, nothing, work)?)))
    {
        Ok(started) => started,
        Err(failed) => return Err((report, failed)),
    };
    report.report_success();
    let max_depth = shared.service.settings.max_queue_depth;
    feed(shared, &poller, |tasks| {
        let count = max_depth.saturating_sub(queues.depth()).min(tasks.len());
        for task in tasks.drain(..count) {
            queues.push(task);
        }
        queues.count_depth(shared.gauges());
    });
    queues.close();
    join(workers);
    Ok(())
}

/// Receives, and lets `put` queue the tasks for the workers. Refuses at once, before any work, tasks that
/// `put` leaves.
fn feed(shared: &Arc<UdpWorkers>, poller: &Poller, mut put: impl FnMut(&mut VecDeque<Task>)) {
    let mut responder = shared.responder();
    let mut tasks = VecDeque::new();
    shared.receive(poller, |inbox, received| {
        shared.admit(inbox, received, &mut responder, |_, _, bytes, from, arrived| {
            tasks.push_back(Task { datagram: bytes.into(), from, arrived });
        });
        put(&mut tasks);
        for task in tasks.drain(..) {
            responder.refuse(&UdpRequest::decode(&task.datagram), task.from, task.arrived);
        }
        responder.flush();
    });
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // The runtime has reported a panic on stderr.
        let _ = thread.join();
    }
}
