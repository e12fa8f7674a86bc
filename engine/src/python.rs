//! The Python interface. `typings/objmapper_server/_engine.pyi` describes it.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::process::{Pid, getpid};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::access::denials::Refusal;
use crate::access::rules::{IdSet, Rules};
use crate::engine::Engine as NativeEngine;
use crate::load::{Load as NativeLoad, LoadProtocol, Outcome, Plan, Target};
use crate::model::Model;
use crate::net::network::Network;
use crate::net::transport::Transport;
use crate::origin::OriginFigures;
use crate::protocol::Mode;
use crate::request_log::Record;
use crate::settings::{Limits, OptimizeFor, OriginSettings, Revalidate, Settings, TimeLimit};
use crate::snapshot::Snapshot;
use crate::statistics::CountedUpTo;
use crate::storage_failures::Failure;

// The engine reads settings from the attributes of a `Config`, which has checked them: see `Settings` and `Limits`.

impl<'py> FromPyObject<'_, 'py> for Transport {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        transport_named(&given.extract::<String>()?)
    }
}

impl<'py> FromPyObject<'_, 'py> for Model {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        model_named(&given.extract::<String>()?)
    }
}

impl<'py> FromPyObject<'_, 'py> for Network {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        given.extract::<String>()?.parse().map_err(PyValueError::new_err)
    }
}

impl<'py> FromPyObject<'_, 'py> for OptimizeFor {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.extract::<String>()?.as_str() {
            "latency" => Ok(OptimizeFor::Latency),
            "throughput" => Ok(OptimizeFor::Throughput),
            other => Err(PyValueError::new_err(format!("expected latency or throughput, got {other:?}"))),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Revalidate {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.extract::<String>() {
            Ok(text) if text == "never" => Ok(Revalidate::Never),
            Ok(text) if text == "always" => Ok(Revalidate::Always),
            _ => Ok(Revalidate::After(seconds("revalidate", given.extract()?)?)),
        }
    }
}

/// The mounts, by prefix.
pub fn origins(given: &Bound<'_, PyAny>) -> PyResult<Vec<OriginSettings>> {
    Ok(given.extract::<BTreeMap<String, OriginSettings>>()?.into_values().collect())
}

impl<'py> FromPyObject<'_, 'py> for TimeLimit {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(seconds("a time limit", given.extract()?)?.into())
    }
}

/// A time in seconds.
pub fn duration(given: &Bound<'_, PyAny>) -> PyResult<Duration> {
    seconds("a time", given.extract()?)
}

/// A numeric `ADDRESS:PORT`, or none.
pub fn socket_address(given: &Bound<'_, PyAny>) -> PyResult<Option<SocketAddr>> {
    given.extract::<Option<String>>()?.map(|text| numeric(&text)).transpose()
}

fn numeric(text: &str) -> PyResult<SocketAddr> {
    text.parse().map_err(|_| PyValueError::new_err(format!("expected a numeric ADDRESS:PORT (got {text:?})")))
}

/// Duplicates the descriptors, since Python keeps its own.
pub fn sockets(given: &Bound<'_, PyAny>) -> PyResult<Vec<Arc<OwnedFd>>> {
    given.extract::<Vec<i32>>()?.into_iter().map(borrowed).collect()
}

fn borrowed(number: i32) -> PyResult<Arc<OwnedFd>> {
    if number < 0 {
        return Err(PyValueError::new_err(format!("expected a descriptor (got {number})")));
    }
    // SAFETY: the descriptor is only borrowed for the call; if the number is not open, the call fails with EBADF.
    let borrowed_fd = unsafe { BorrowedFd::borrow_raw(number) };
    let own = rustix::io::fcntl_dupfd_cloexec(borrowed_fd, 0).map_err(std::io::Error::from)?;
    Ok(Arc::new(own))
}

/// The attributes read from the access rules.
#[derive(FromPyObject)]
struct PyRules {
    allow_uid: Vec<u32>,
    allow_gid: Vec<u32>,
    allow_prefix: Vec<(String, Vec<u32>, Vec<u32>)>,
    max_connections_per_uid: u32,
    max_descriptors_per_uid: u32,
}

impl From<PyRules> for Rules {
    fn from(given: PyRules) -> Rules {
        let prefixes = given
            .allow_prefix
            .into_iter()
            .map(|(prefix, uids, gids)| (prefix.trim_matches('/').as_bytes().into(), IdSet::new(uids, gids)))
            .collect();
        let connect = IdSet::new(given.allow_uid, given.allow_gid);
        Rules::new(connect, prefixes, given.max_connections_per_uid, given.max_descriptors_per_uid)
    }
}

/// Longer times count as a century, so that sums with the clock stay within its range.
const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// More connections than a machine has ports for.
const MAX_CLIENTS: usize = 1_000_000;

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    if value > A_CENTURY.as_secs_f64() {
        return Ok(A_CENTURY);
    }
    Duration::try_from_secs_f64(value).map_err(|error| {
        PyValueError::new_err(format!("{name}: expected a number of seconds (got {value}): {error}"))
    })
}

/// Threads do not survive a fork, and the child's copies of their locks may stay held for ever: the child must not
/// use the parent's objects.
fn of_this_process(what: &str, process: Pid) -> PyResult<()> {
    if process == getpid() {
        return Ok(());
    }
    Err(PyRuntimeError::new_err(format!(
        "this {what} belongs to process {}, of which this one is a fork; use it there",
        process.as_raw_pid()
    )))
}

fn transport_named(name: &str) -> PyResult<Transport> {
    Transport::from_name(name)
        .ok_or_else(|| PyValueError::new_err(format!("unknown transport (got {name:?})")))
}

fn model_named(name: &str) -> PyResult<Model> {
    let known = Model::ALL.map(Model::name).join(", ");
    Model::from_name(name)
        .ok_or_else(|| PyValueError::new_err(format!("expected one of {known} (got {name:?})")))
}

/// Every call releases the interpreter while it works or waits.
#[pyclass(frozen, module = "objmapper_server._engine")]
#[derive(Debug)]
struct Engine(NativeEngine);

impl Engine {
    fn here(&self) -> PyResult<&NativeEngine> {
        of_this_process("engine", self.0.process()).map(|()| &self.0)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The interpreter drops the engine with its own lock held, so release it. None: the interpreter is ending,
        // and no thread waits for the lock.
        if Python::try_attach(|py| py.detach(|| self.0.stop())).is_none() {
            self.0.stop();
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(
        py: Python<'_>,
        settings: Settings,
        models: BTreeMap<Transport, Model>,
        #[pyo3(from_py_with = sockets)] inherited: Vec<Arc<OwnedFd>>,
    ) -> PyResult<Self> {
        let settings = Settings { models, inherited, ..settings };
        Ok(Engine(py.detach(|| NativeEngine::new(settings))?))
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.start())?)
    }

    #[getter]
    fn addresses(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, String>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.addresses()).into_iter().collect())
    }

    fn statistics(&self, py: Python<'_>) -> PyResult<Snapshot> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.snapshot()))
    }

    fn counted_up_to(&self, py: Python<'_>, bounds_us: Vec<f64>) -> PyResult<Vec<CountedUpTo>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.counted_up_to(&bounds_us)))
    }

    fn slow_requests(&self, py: Python<'_>) -> PyResult<Vec<Record>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.request_log().slowest()))
    }

    fn watch_requests(&self, py: Python<'_>, slower_than: f64, for_seconds: f64) -> PyResult<()> {
        let (floor, time) = (seconds("slower_than", slower_than)?, seconds("for_seconds", for_seconds)?);
        let engine = self.here()?;
        py.detach(|| engine.request_log().watch(floor, time));
        Ok(())
    }

    fn sample_requests(&self, one_of: u64) -> PyResult<()> {
        self.here()?.request_log().sample(one_of);
        Ok(())
    }

    fn recorded_requests(&self, py: Python<'_>, after: u64) -> PyResult<(u64, Vec<Record>)> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.request_log().records(after)))
    }

    fn notices(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.notices()))
    }

    fn set_rules(&self, py: Python<'_>, rules: PyRules) -> PyResult<()> {
        let (engine, rules) = (self.here()?, rules.into());
        py.detach(|| engine.set_rules(rules));
        Ok(())
    }

    fn take_failure(&self, py: Python<'_>) -> PyResult<Option<Failure>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.take_failure()))
    }

    fn root_problem(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.root_problem()))
    }

    fn origins(&self, py: Python<'_>) -> PyResult<Option<OriginFigures>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.origins()))
    }

    fn take_refusal(&self, py: Python<'_>) -> PyResult<Option<Refusal>> {
        let engine = self.here()?;
        Ok(py.detach(|| engine.take_refusal()))
    }

    fn set_limits(&self, py: Python<'_>, limits: Limits) -> PyResult<()> {
        let engine = self.here()?;
        py.detach(|| engine.set_limits(&limits));
        Ok(())
    }

    fn set_concurrency(&self, py: Python<'_>, transport: &str, model: &str) -> PyResult<()> {
        let (endpoint, model) = (transport_named(transport)?, model_named(model)?);
        let engine = self.here()?;
        if py.detach(|| engine.set_concurrency(endpoint, model))? {
            Ok(())
        } else {
            Err(PyValueError::new_err(format!("{transport} is not served")))
        }
    }

    fn drain(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds("timeout", timeout)?;
        let engine = self.here()?;
        Ok(py.detach(|| engine.drain(timeout)))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

/// The attributes read from a load's plan.
#[derive(FromPyObject)]
struct PyPlan {
    unix: Option<PathBuf>,
    tcp: Option<String>,
    udp: Option<String>,
    dialect: String,
    uris: Vec<String>,
    clients: usize,
    threads: usize,
    pipeline: usize,
    duration: f64,
    requests: u64,
    rate: Option<f64>,
    reconnect: bool,
}

impl TryFrom<PyPlan> for Plan {
    type Error = PyErr;

    fn try_from(given: PyPlan) -> PyResult<Plan> {
        let target = match (given.unix, given.tcp, given.udp) {
            (Some(path), None, None) => Target::Unix(path),
            (None, Some(text), None) => Target::Tcp(numeric(&text)?),
            (None, None, Some(text)) => Target::Udp(numeric(&text)?),
            _ => return Err(PyValueError::new_err("expected one target: unix, tcp or udp")),
        };
        let protocol = match given.dialect.as_str() {
            "fdpass" => LoadProtocol::Objmapper(Mode::FdPass),
            "copy" => LoadProtocol::Objmapper(Mode::Copy),
            "splice" => LoadProtocol::Objmapper(Mode::Splice),
            "fdpass2" => LoadProtocol::Extended(Mode::FdPass),
            "copy2" => LoadProtocol::Extended(Mode::Copy),
            "splice2" => LoadProtocol::Extended(Mode::Splice),
            "http" => LoadProtocol::Http,
            "redis" => LoadProtocol::Redis,
            "pull" => LoadProtocol::Pull,
            "memcached" => LoadProtocol::Memcached,
            other => return Err(PyValueError::new_err(format!("unknown protocol (got {other:?})"))),
        };
        let by_datagrams = matches!(target, Target::Udp(_));
        let speaks = match protocol {
            LoadProtocol::Pull | LoadProtocol::Memcached => by_datagrams,
            LoadProtocol::Objmapper(Mode::Copy) => true,
            _ => !by_datagrams,
        };
        if !speaks || (by_datagrams && (given.pipeline > 1 || given.rate.is_some() || given.reconnect)) {
            return Err(PyValueError::new_err(
                "over UDP, expected copy, pull or memcached, and one request at a time: no pipeline, rate or reconnect",
            ));
        }
        if given.rate.is_some() && given.reconnect {
            return Err(PyValueError::new_err(
                "rate and reconnect exclude each other; leave out one of them",
            ));
        }
        if given.uris.is_empty() || given.pipeline == 0 || !(1..=MAX_CLIENTS).contains(&given.clients) {
            return Err(PyValueError::new_err(format!(
                "expected a URI, a pipeline above 0, and 1 to {MAX_CLIENTS} clients"
            )));
        }
        let interval = given.rate.map(|rate| {
            let interval = Duration::try_from_secs_f64(given.clients as f64 / rate).ok();
            interval.filter(|interval| !interval.is_zero() && *interval <= A_CENTURY).ok_or_else(|| {
                PyValueError::new_err(format!(
                    "rate: expected requests a second, above 0 and below {} for {} clients (got {rate})",
                    given.clients * 1_000_000_000,
                    given.clients
                ))
            })
        });
        Ok(Plan {
            target,
            protocol,
            uris: given.uris,
            clients: given.clients,
            threads: given.threads,
            pipeline: given.pipeline.min(1000),
            duration: seconds("duration", given.duration)?,
            requests: given.requests,
            interval: interval.transpose()?,
            reconnect: given.reconnect,
        })
    }
}

#[pyclass(frozen, module = "objmapper_server._engine")]
#[derive(Debug)]
struct Load(NativeLoad);

#[pymethods]
impl Load {
    #[new]
    fn new(py: Python<'_>, plan: PyPlan) -> PyResult<Self> {
        let plan = plan.try_into()?;
        Ok(Load(py.detach(|| NativeLoad::start(plan))?))
    }

    #[getter]
    fn answered(&self) -> u64 {
        self.0.answered()
    }

    #[getter]
    fn running(&self) -> bool {
        self.0.is_running()
    }

    fn stop(&self) {
        self.0.stop();
    }

    fn finish(&self, py: Python<'_>) -> PyResult<Outcome> {
        of_this_process("load", self.0.process())?;
        Ok(py.detach(|| self.0.finish()))
    }
}

#[pymodule]
mod _engine {
    #[pymodule_export]
    use super::Engine;

    #[pymodule_export]
    use super::Load;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
