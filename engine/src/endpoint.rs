//! One transport of the engine: its listening socket, and the models that serve it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::control::{Command, Control};
use crate::concurrency::start_gate::{StartReport, start_error};
use crate::errors::StartError;
use crate::model::Model;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::snapshot::TransportState;
use crate::spawn::spawn;
use crate::udp::{self, DatagramCounts, UdpSocket};

/// The stack of a model's accepting thread.
const STACK: usize = 256 << 10;

/// A served transport. While one model hands over to the next, it has several runs.
#[derive(Debug)]
pub struct Endpoint {
    pub ingress: Ingress,
    pub runs: Vec<ModelRun>,
}

/// How clients reach the server: by connections or by datagrams.
#[derive(Debug, Clone)]
pub enum Ingress {
    Connections(Arc<Acceptor>),
    Datagrams(Arc<UdpSocket>),
}

impl Ingress {
    pub fn transport(&self) -> Transport {
        match self {
            Ingress::Connections(acceptor) => acceptor.transport(),
            Ingress::Datagrams(_) => Transport::Udp,
        }
    }

    pub fn address(&self) -> &str {
        match self {
            Ingress::Connections(acceptor) => acceptor.address(),
            Ingress::Datagrams(socket) => &socket.address,
        }
    }

    fn serve(&self, model: Model, service: &Arc<Service>, control: &Arc<Control>, started: StartReport) {
        match self {
            Ingress::Connections(acceptor) => {
                crate::concurrency::serve(model, acceptor, service, control, started)
            }
            Ingress::Datagrams(socket) => udp::serve(model, socket, service, control, started),
        }
    }

    /// The counts of datagrams; None for connections.
    pub fn counts(&self) -> Option<DatagramCounts> {
        match self {
            Ingress::Connections(_) => None,
            Ingress::Datagrams(socket) => Some(socket.counts()),
        }
    }
}

/// One model's run on a transport.
#[derive(Debug)]
pub struct ModelRun {
    model: Model,
    pub control: Arc<Control>,
    pub thread: JoinHandle<()>,
}

impl Endpoint {
    /// Starts a model. If this fails nothing has changed: the previous model, if any, continues to serve.
    pub fn start_model(&mut self, model: Model, service: &Arc<Service>) -> Result<(), StartError> {
        let address = self.ingress.address();
        if !model.serves(self.ingress.transport()) {
            let why = "thread-per-connection needs connections, and UDP has none";
            return Err(StartError::new(Errno::INVAL, why, address));
        }
        let control = Control::new().map_err(|errno| start_error(errno, "make an eventfd", address))?;
        let control = Arc::new(control);
        let (report, reported) = sync_channel(1);
        let (ingress, service, command) = (self.ingress.clone(), Arc::clone(service), Arc::clone(&control));
        let name = format!("objmapper-{}", ingress.transport().name());
        let body = move || ingress.serve(model, &service, &command, StartReport(report));
        let thread = spawn(&name, STACK, body).map_err(|error| {
            start_error(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN), "start a thread", address)
        })?;
        match reported.recv() {
            Ok(Ok(())) => {
                self.runs.push(ModelRun { model, control, thread });
                Ok(())
            }
            failed => {
                // The runtime has reported a panic on stderr.
                let _ = thread.join();
                let lost = || {
                    StartError::new(
                        Errno::CANCELED,
                        "the concurrency model stopped before it served",
                        address,
                    )
                };
                Err(failed.ok().and_then(Result::err).unwrap_or_else(lost))
            }
        }
    }

    /// The state for a snapshot.
    pub fn state(&self, service: &Service) -> TransportState {
        let transport = self.ingress.transport();
        let gauges = service.statistics.gauges(transport);
        TransportState {
            transport: transport.name(),
            model: self.model().map_or("", Model::name),
            address: self.ingress.address().to_owned(),
            connections: gauges.connections.load(Relaxed),
            connections_total: gauges.connections_total.load(Relaxed),
            connections_waiting: gauges.connections_waiting.load(Relaxed),
            active_threads: gauges.active_threads.load(Relaxed),
            queue_depth: gauges.queue_depth.load(Relaxed),
            queue_depth_max: gauges.queue_depth_max.load(Relaxed),
            rejected_total: gauges.rejected_total.load(Relaxed),
            accept_failures_total: gauges.accept_failures_total.load(Relaxed),
            timeouts_total: gauges.timeouts_total.load(Relaxed),
            protocol_errors_total: gauges.protocol_errors_total.load(Relaxed),
            panics_total: gauges.panics_total.load(Relaxed),
            steals_total: gauges.steals_total.load(Relaxed),
            parks_total: gauges.parks_total.load(Relaxed),
        }
    }

    pub fn model(&self) -> Option<Model> {
        self.runs.last().map(|run| run.model)
    }

    /// Gives a command to all runs, the oldest first: when a run finds no taker for its sessions any more, it has the
    /// command already.
    pub fn send(&self, command: Command) {
        for run in &self.runs {
            run.control.send(command);
        }
    }

    pub fn is_finished(&self) -> bool {
        self.runs.iter().all(|run| run.thread.is_finished())
    }
}
