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
/// Batches to receive before a thread checks for an order to stop.
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

/// Makes all resources, reports the result through `begun`, and serves until `control` ends it.
pub fn serve(
    model: Model,
    socket: &Arc<UdpSocket>,
    service: &Arc<Service>,
    control: &Arc<Control>,
    begun: StartReport,
) {
    let serving = Arc::new(UdpWorkers {
        model,
        socket: Arc::clone(socket),
        service: Arc::clone(service),
        control: Arc::clone(control),
        deferred: Deferred::new(service.settings.max_queue_depth),
    });
    let started = match model {
        Model::ThreadPool => serve_by_pool(&serving, begun),
        Model::WorkStealing => serve_by_stealing(&serving, begun),
        // The engine refuses ThreadPerConnection before it calls this.
        Model::ThreadPerConnection | Model::Epoll => serve_by_loops(&serving, begun),
    };
    if let Err((begun, (errno, what))) = started {
        return begun.report_failure(start_error(errno, what, &socket.address));
    }
    while serving.deferred.count() > 0 && control.order() != Command::Stop {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl UdpWorkers {
    fn gauges(&self) -> &Gauges {
        self.service.statistics.gauges(Transport::Udp)
    }

    fn answerer(&self) -> Responder {
        Responder::new(&self.socket, &self.service, self.model)
    }

    /// Starts all wanted threads, or none. Each counts as active while it runs.
    fn start<W: Send + 'static, M>(
        self: &Arc<Self>,
        name: &str,
        each: impl IntoIterator<Item = W>,
        make: impl Fn(&Arc<UdpWorkers>) -> Result<M, Failed> + Copy + Send + 'static,
        work: impl Fn(&Arc<UdpWorkers>, W, M) + Copy + Send + 'static,
    ) -> Result<Vec<JoinHandle<()>>, Failed> {
        let mut starting = Starting::default();
        for own in each {
            let serving = Arc::clone(self);
            starting.spawn(name, STACK, move |gate| {
                let Some(made) = gate.pass(make(&serving)) else { return };
                serving.gauges().active_threads.fetch_add(1, Relaxed);
                work(&serving, own, made);
                serving.gauges().active_threads.fetch_sub(1, Relaxed);
            });
        }
        starting.run(None)
    }

    /// Receives batches until an order ends it; `take` gets each. A drain receives the waiting datagrams first.
    fn receive(&self, poller: &Poller, mut take: impl FnMut(&Inbox, usize)) {
        let (mut events, mut spin) = (Events::new(), SpinWait::new(&self.service));
        let mut inbox = Inbox::new();
        loop {
            poller.wait(&mut events, None, &mut spin);
            // Other events need no check: the loop polls their sources anyway.
            if events.drain().any(|source| source == Token::Tick) {
                poller.take_tick();
            }
            let order = self.control.order();
            let batches = match order {
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
            if order != Command::Serve {
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
        answerer: &mut Responder,
        mut serve: impl FnMut(&mut Responder, &UdpRequest<'_>, &[u8], Peer, Instant),
    ) {
        let arrived = Instant::now();
        for datagram in inbox.received(received) {
            let question = UdpRequest::decode(datagram.bytes);
            match self.socket.gate.evaluate(&question, datagram.from.address, arrived) {
                Verdict::Serve => serve(answerer, &question, datagram.bytes, datagram.from, arrived),
                Verdict::Retry(cookie) => answerer.retry(&question, &cookie, datagram.from),
                Verdict::Drop => {}
            }
        }
    }

    /// Answers here, or lets the storage pool answer where the reply would have to wait for a disk.
    fn answer(
        self: &Arc<Self>,
        answerer: &mut Responder,
        question: &UdpRequest<'_>,
        datagram: &[u8],
        (from, arrived, waited): (Peer, Instant, Option<Duration>),
    ) {
        let settings = &self.service.settings;
        let elsewhere = self.service.storage_pool.as_ref().filter(|_| settings.async_storage);
        let storage = if elsewhere.is_some() { DiskWait::Forbidden } else { DiskWait::Wait };
        let turn = RequestContext { from, arrived, waited, storage, counted: 0 };
        let Disposition::Elsewhere { counted } = self.answer_or_none(answerer, question, turn) else {
            return;
        };
        // Checked before the disk works for a reply that is not sent.
        if counted == 0 && answerer.is_over_its_rate(from) {
            return;
        }
        let Some((pool, place)) = elsewhere.and_then(|pool| Some((pool, self.deferred.take(from.address)?)))
        else {
            return answerer.refuse(question, from, arrived);
        };
        let asker = canonical(from.address);
        let client = Client { user: User::Address(asker.ip()), connection: UDP | u64::from(asker.port()) };
        let (serving, datagram) = (Arc::clone(self), Box::<[u8]>::from(datagram));
        pool.submit(client, Kind::Short, move || {
            let mut answerer = serving.answerer();
            let turn = RequestContext { from, arrived, waited, storage: DiskWait::Wait, counted };
            // This always answers: this thread may wait for the disk.
            let _ = serving.answer_or_none(&mut answerer, &UdpRequest::decode(&datagram), turn);
            answerer.flush();
            drop(place);
        });
    }

    /// Answers. After a panic this UDP request gets no reply, and neither do the unsent replies in the
    /// outbox. The panic is counted, and the runtime reports it on stderr.
    fn answer_or_none(
        self: &Arc<Self>,
        answerer: &mut Responder,
        question: &UdpRequest<'_>,
        turn: RequestContext,
    ) -> Disposition {
        // On a panic the responder is made anew, so that no half-finished state is used again.
        let catch_panic = catch_unwind(AssertUnwindSafe(|| answerer.answer(question, turn)));
        catch_panic.unwrap_or_else(|_| {
            self.gauges().panics_total.fetch_add(1, Relaxed);
            *answerer = self.answerer();
            Disposition::Now
        })
    }

    /// The loop of a worker: answers a task and the tasks queued behind it, then sends.
    fn work(
        self: &Arc<Self>,
        answerer: &mut Responder,
        delay: &CoDel,
        first: Task,
        mut more: impl FnMut() -> Option<Task>,
    ) {
        let (mut next, mut taken) = (Some(first), 1);
        while let Some(task) = next {
            let now = Instant::now();
            let waited = now.saturating_duration_since(task.arrived);
            let (from, question) = (task.from, UdpRequest::decode(&task.datagram));
            if delay.should_reject(waited, now) {
                answerer.refuse(&question, from, now);
            } else {
                self.answer(answerer, &question, &task.datagram, (from, now, Some(waited)));
            }
            next = if taken < REPLIES_PER_TURN { more() } else { None };
            taken += 1;
        }
        answerer.flush();
    }
}

fn serve_by_loops(serving: &Arc<UdpWorkers>, begun: StartReport) -> Result<(), (StartReport, Failed)> {
    let count = match serving.service.settings.pool_size {
        // Clients on loopback need cores of their own.
        0 => cores().div_ceil(2),
        size => size.min(cores()),
    };
    let run = |serving: &Arc<UdpWorkers>, (), poller: Poller| {
        let mut answerer = serving.answerer();
        serving.receive(&poller, |inbox, received| {
            serving.admit(inbox, received, &mut answerer, |answerer, question, bytes, from, arrived| {
                serving.answer(answerer, question, bytes, (from, arrived, None));
            });
            answerer.flush();
        });
    };
    match serving.start("objmapper-loop", vec![(); count.max(1)], UdpWorkers::poller, run) {
        Ok(threads) => {
            begun.report_success();
            join(threads);
            Ok(())
        }
        Err(failed) => Err((begun, failed)),
    }
}

fn serve_by_pool(serving: &Arc<UdpWorkers>, begun: StartReport) -> Result<(), (StartReport, Failed)> {
    let queue: Arc<BoundedQueue<Task>> =
        Arc::new(BoundedQueue::new(serving.service.settings.max_queue_depth));
    let delay = Arc::new(CoDel::new());
    let shares = (0..serving.service.settings.workers()).map(|_| (Arc::clone(&queue), Arc::clone(&delay)));
    let nothing = |_: &Arc<UdpWorkers>| Ok(());
    let work = |serving: &Arc<UdpWorkers>, (queue, delay): (Arc<BoundedQueue<Task>>, Arc<CoDel>), ()| {
        let mut answerer = serving.answerer();
        let mut spin = SpinWait::new(&serving.service);
        loop {
            let mut next = queue.try_pop();
            if next.is_none() {
                spin.until_true(|| {
                    next = queue.try_pop();
                    next.is_some()
                });
            }
            let Some(task) = next.or_else(|| queue.pop()) else { break };
            serving.work(&mut answerer, &delay, task, || queue.try_pop());
            serving.gauges().queue_depth.store(queue.depth(), Relaxed);
        }
    };
    let (poller, workers) = match serving
        .poller()
        .and_then(|poller| Ok((poller, serving.start("objmapper-worker", shares, nothing, work)?)))
    {
        Ok(started) => started,
        Err(failed) => return Err((begun, failed)),
    };
    begun.report_success();
    let gauges = serving.gauges();
    feed(serving, &poller, |tasks| {
        queue.push_all(tasks);
        gauges.queue_depth.store(queue.depth(), Relaxed);
        gauges.queue_depth_max.fetch_max(queue.depth(), Relaxed);
    });
    queue.close();
    join(workers);
    Ok(())
}

fn serve_by_stealing(serving: &Arc<UdpWorkers>, begun: StartReport) -> Result<(), (StartReport, Failed)> {
    let (queues, slots) = StealingQueues::<Task>::new(serving.service.settings.workers());
    let delay = Arc::new(CoDel::new());
    let shares = slots.into_iter().map(|local| (Arc::clone(&queues), Arc::clone(&delay), local));
    let nothing = |_: &Arc<UdpWorkers>| Ok(());
    type Share = (Arc<StealingQueues<Task>>, Arc<CoDel>, LocalQueue<Task>);
    let work = |serving: &Arc<UdpWorkers>, (queues, delay, mut local): Share, ()| {
        let mut answerer = serving.answerer();
        let mut spin = SpinWait::new(&serving.service);
        while let Some(task) = queues.pop(&mut local, &mut spin, serving.gauges()) {
            serving.work(&mut answerer, &delay, task, || queues.try_pop(&mut local, serving.gauges()));
        }
    };
    let (poller, workers) = match serving
        .poller()
        .and_then(|poller| Ok((poller, serving.start("objmapper-worker", shares, nothing, work)?)))
    {
        Ok(started) => started,
        Err(failed) => return Err((begun, failed)),
    };
    begun.report_success();
    let most = serving.service.settings.max_queue_depth;
    feed(serving, &poller, |tasks| {
        let room = most.saturating_sub(queues.depth()).min(tasks.len());
        for task in tasks.drain(..room) {
            queues.push(task);
        }
        queues.count_depth(serving.gauges());
    });
    queues.close();
    join(workers);
    Ok(())
}

/// Receives, and lets `put` queue the tasks for the workers. Refuses at once, before any work, tasks that
/// `put` leaves.
fn feed(serving: &Arc<UdpWorkers>, poller: &Poller, mut put: impl FnMut(&mut VecDeque<Task>)) {
    let mut answerer = serving.answerer();
    let mut tasks = VecDeque::new();
    serving.receive(poller, |inbox, received| {
        serving.admit(inbox, received, &mut answerer, |_, _, bytes, from, arrived| {
            tasks.push_back(Task { datagram: bytes.into(), from, arrived });
        });
        put(&mut tasks);
        for task in tasks.drain(..) {
            answerer.refuse(&UdpRequest::decode(&task.datagram), task.from, task.arrived);
        }
        answerer.flush();
    });
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // The runtime has reported a panic on stderr.
        let _ = thread.join();
    }
}
