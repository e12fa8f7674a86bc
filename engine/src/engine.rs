//! The data plane of one server: its transports, the model that serves each, and the timer of the statistics.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use rustix::process::{Pid, getpid};

use crate::access::denials::Refusal;
use crate::access::rules::Rules;
use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::Command;
use crate::endpoint::{Endpoint, Ingress};
use crate::errors::StartError;
use crate::model::Model;
use crate::net::listener::Listener;
use crate::net::transport::Transport;
use crate::origin::OriginFigures;
use crate::request_log::RequestLog;
use crate::service::Service;
use crate::settings::{Limits, Settings};
use crate::snapshot::Snapshot;
use crate::spawn::spawn;
use crate::statistics::CountedUpTo;
use crate::storage_failures::Failure;
use crate::sync::unpoisoned;
use crate::udp::UdpSocket;

/// The stack of the statistics timer.
const STACK: usize = 256 << 10;
/// How long threads may take to notice an immediate stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The least part of it that storage gets to finish its work.
const POOL_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct StatsTimer {
    stopped: Mutex<bool>,
    stop: Condvar,
}

/// See `typings/objmapper_server/_engine.pyi` for what each method promises.
#[derive(Debug)]
pub struct Engine {
    /// A fork has none of the threads, and must not do anything on behalf of this process.
    process: Pid,
    service: Arc<Service>,
    endpoints: Mutex<Vec<Endpoint>>,
    clock: Arc<StatsTimer>,
    clock_thread: Mutex<Option<JoinHandle<()>>>,
    notices: Mutex<Vec<String>>,
    draining: std::sync::atomic::AtomicBool,
}

impl Engine {
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        let service = Arc::new(Service::new(settings)?);
        let notices = Mutex::new(service.notices().to_vec());
        Ok(Engine {
            process: getpid(),
            service,
            endpoints: Mutex::new(Vec::new()),
            clock: Arc::new(StatsTimer { stopped: Mutex::new(false), stop: Condvar::new() }),
            clock_thread: Mutex::new(None),
            notices,
            draining: false.into(),
        })
    }

    /// The process that created the engine, and serves in it.
    pub fn process(&self) -> Pid {
        self.process
    }

    pub fn start(&self) -> Result<(), StartError> {
        let mut endpoints = unpoisoned(self.endpoints.lock());
        if !endpoints.is_empty() {
            return Err(StartError::new(Errno::ALREADY, "the server was started already", "engine"));
        }
        let settings = &self.service.settings;
        let mut ingresses = Vec::new();
        if let Some(path) = &settings.unix {
            let notices = &mut unpoisoned(self.notices.lock());
            let listener = Listener::unix(path, settings.unix_mode, settings.writable, notices)?;
            ingresses.push(Ingress::Connections(Arc::new(Acceptor::new(listener)?)));
        }
        if let Some(address) = settings.tcp {
            ingresses.push(Ingress::Connections(Arc::new(Acceptor::new(Listener::tcp(address)?)?)));
        }
        let limit = settings.udp_rate_limit;
        if let Some(address) = settings.udp {
            let trusted = settings.udp_trusted.clone();
            let mut notices = unpoisoned(self.notices.lock());
            let socket = UdpSocket::bind(address, trusted, limit, &mut notices)?;
            ingresses.push(Ingress::Datagrams(Arc::new(socket)));
        }
        for socket in &settings.inherited {
            ingresses.push(if sockopt::socket_type(socket) == Ok(SocketType::DGRAM) {
                let trusted = settings.udp_trusted.clone();
                let mut notices = unpoisoned(self.notices.lock());
                let socket = UdpSocket::inherited(socket, trusted, limit, &mut notices)?;
                Ingress::Datagrams(Arc::new(socket))
            } else {
                let listener = Listener::inherited(socket, settings.writable)?;
                Ingress::Connections(Arc::new(Acceptor::new(listener)?))
            });
        }
        let (service, clock) = (Arc::clone(&self.service), Arc::clone(&self.clock));
        let thread = spawn("objmapper-clock", STACK, move || clock.run(&service)).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
            StartError::new(errno, "cannot start a thread", "engine")
        })?;
        *unpoisoned(self.clock_thread.lock()) = Some(thread);
        for ingress in ingresses {
            let model = settings.models.get(&ingress.transport()).copied().unwrap_or(Model::Epoll);
            let mut endpoint = Endpoint { ingress, runs: Vec::new() };
            let started = endpoint.start_model(model, &self.service);
            endpoints.push(endpoint);
            started?;
        }
        if let Some(notice) = self.service.fit_connections()? {
            unpoisoned(self.notices.lock()).push(notice);
        }
        Ok(())
    }

    pub fn addresses(&self) -> Vec<(&'static str, String)> {
        unpoisoned(self.endpoints.lock())
            .iter()
            .map(|endpoint| (endpoint.ingress.transport().name(), endpoint.ingress.address().to_owned()))
            .collect()
    }

    pub fn request_log(&self) -> &RequestLog {
        &self.service.request_log
    }

    pub fn notices(&self) -> Vec<String> {
        unpoisoned(self.notices.lock()).clone()
    }

    pub fn snapshot(&self) -> Snapshot {
        let endpoints = unpoisoned(self.endpoints.lock());
        let transports = endpoints.iter().map(|endpoint| endpoint.state(&self.service)).collect();
        let datagrams = endpoints.iter().find_map(|endpoint| endpoint.ingress.counts());
        drop(endpoints);
        Snapshot::new(&self.service, self.draining.load(Relaxed), transports, datagrams)
    }

    /// The latencies since start, counted up to each bound; see `Statistics::counted_up_to`.
    pub fn counted_up_to(&self, bounds_us: &[f64]) -> Vec<CountedUpTo> {
        self.service.statistics.counted_up_to(bounds_us)
    }

    pub fn set_rules(&self, rules: Rules) {
        self.service.clients.set(rules);
    }

    /// One storage failure since the last call.
    pub fn take_failure(&self) -> Option<Failure> {
        self.service.failures.take()
    }

    /// Why the server cannot serve any object: the root is gone. None if the root exists.
    pub fn origins(&self) -> Option<OriginFigures> {
        self.service.origins.figures()
    }

    pub fn root_problem(&self) -> Option<String> {
        self.service.mapping.root_state().problem()
    }

    /// One denial since the last call.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.service.clients.denials.take()
    }

    pub fn set_limits(&self, limits: &Limits) {
        self.service.set_limits(limits);
    }

    /// Changes the model of a transport; false if the transport is not served. On an error the previous model
    /// continues to serve.
    pub fn set_concurrency(&self, transport: Transport, model: Model) -> Result<bool, StartError> {
        let mut endpoints = unpoisoned(self.endpoints.lock());
        if self.draining.load(Relaxed) {
            let why = "the server drains, so its models cannot change";
            return Err(StartError::new(Errno::SHUTDOWN, why, transport.name()));
        }
        let Some(endpoint) = endpoints.iter_mut().find(|endpoint| endpoint.ingress.transport() == transport)
        else {
            return Ok(false);
        };
        endpoint.runs.retain(|run| !run.thread.is_finished());
        if endpoint.model() == Some(model) {
            return Ok(true);
        }
        // Start the successor first, so that one model accepts at every moment. Then command its predecessors to hand
        // over, oldest first: the successor takes their sessions.
        let predecessors = endpoint.runs.len();
        endpoint.start_model(model, &self.service)?;
        for run in &endpoint.runs[..predecessors] {
            run.control.send(Command::Handover);
        }
        Ok(true)
    }

    /// Stops accepting and waits until requests in progress are finished; false if that took too long.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.signal_all(Command::Drain, timeout)
    }

    /// Ends all transports and threads. Can be called twice; does nothing in a fork of the engine's process.
    pub fn stop(&self) {
        if self.process != getpid() {
            return;
        }
        self.draining.store(true, Relaxed);
        let until = Instant::now() + STOP_GRACE;
        if self.signal_all(Command::Stop, STOP_GRACE) {
            for run in unpoisoned(self.endpoints.lock()).drain(..).flat_map(|endpoint| endpoint.runs) {
                // The runtime has reported a panic on stderr.
                let _ = run.thread.join();
            }
        }
        self.service.stop_storage(until.max(Instant::now() + POOL_GRACE));
        *unpoisoned(self.clock.stopped.lock()) = true;
        self.clock.stop.notify_all();
        if let Some(thread) = unpoisoned(self.clock_thread.lock()).take() {
            let _ = thread.join();
        }
        self.service.drop_unread();
    }

    fn signal_all(&self, command: Command, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        {
            let endpoints = unpoisoned(self.endpoints.lock());
            // Set under the lock, so that a later change of models sees it.
            self.draining.store(true, Relaxed);
            for endpoint in endpoints.iter() {
                endpoint.send(command);
            }
        }
        loop {
            if unpoisoned(self.endpoints.lock()).iter().all(Endpoint::is_finished) {
                return true;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.process == getpid() {
            return self.stop();
        }
        // A fork has no threads to join, and its parent removes the paths and locks. The fork may have copied mutexes
        // while they were held, so take none here.
        std::mem::forget(std::mem::take(unpoisoned(self.endpoints.get_mut())));
        std::mem::forget(unpoisoned(self.clock_thread.get_mut()).take());
        std::mem::forget(Arc::clone(&self.service));
    }
}

impl StatsTimer {
    /// Closes one second of the statistics each second, and runs the periodic work of the service. If the process was
    /// stopped meanwhile (SIGSTOP, a suspended machine), closes all seconds that have passed at once.
    fn run(&self, service: &Service) {
        let started = Instant::now();
        let mut passed = 0;
        let mut stopped = unpoisoned(self.stopped.lock());
        while !*stopped {
            let next = started + Duration::from_secs(passed + 1);
            while !*stopped && Instant::now() < next {
                let left = next.saturating_duration_since(Instant::now());
                stopped = unpoisoned(self.stop.wait_timeout(stopped, left)).0;
            }
            let now = started.elapsed().as_secs().max(passed + 1);
            service.statistics.tick(now - passed);
            passed = now;
            service.sweep_unread();
            service.listing.sweep();
            service.replace_stuck_threads();
            service.follow_root();
            service.output.tick();
            service.copiers.tick(Instant::now());
            service.request_log.tick();
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
