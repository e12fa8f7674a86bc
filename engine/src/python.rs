//! What Python sees. `typings/objmapper_server/_engine.pyi` is its description.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::concurrency::Model;
use crate::engine::{Engine as NativeEngine, Snapshot};
use crate::journal::Record;
use crate::load::{Dialect, Load as NativeLoad, Outcome, Plan, Target};
use crate::protocol::Mode;
use crate::refusals::Refusal;
use crate::rules::{Listed, Rules};
use crate::settings::{Limits, OptimizeFor, Settings};
use crate::statistics::CountedUpTo;
use crate::transport::Transport;

/// The attributes that are read from the settings value.
#[derive(FromPyObject)]
struct PySettings {
    root: PathBuf,
    unix: Option<PathBuf>,
    unix_mode: u32,
    tcp: Option<String>,
    udp: Option<String>,
    udp_trusted: Vec<String>,
    udp_rate_limit: u64,
    inherited: Vec<i32>,
    models: HashMap<String, String>,
    pool_size: usize,
    max_queue_depth: usize,
    max_threads: usize,
    max_connections: usize,
    optimize_for: String,
    async_storage: bool,
    storage_pool_size: usize,
    cache_size: u64,
    follow_symlinks: bool,
    writable: bool,
    idle_timeout: f64,
    header_timeout: f64,
    request_timeout: f64,
}

impl TryFrom<PySettings> for Settings {
    type Error = PyErr;

    fn try_from(given: PySettings) -> PyResult<Settings> {
        let mut models = BTreeMap::new();
        for (transport, model) in &given.models {
            models.insert(transport_named(transport)?, model_named(model)?);
        }
        let optimize_for = match given.optimize_for.as_str() {
            "latency" => OptimizeFor::Latency,
            "throughput" => OptimizeFor::Throughput,
            other => {
                return Err(PyValueError::new_err(format!(
                    "optimize_for is latency or throughput, not {other:?}"
                )));
            }
        };
        let numeric = |text: Option<String>| {
            text.map(|text| {
                text.parse()
                    .map_err(|_| PyValueError::new_err(format!("not a numeric ADDRESS:PORT: {text:?}")))
            })
            .transpose()
        };
        let trusted = given.udp_trusted.iter().map(|text| text.parse().map_err(PyValueError::new_err));
        Ok(Settings {
            root: given.root,
            unix: given.unix,
            unix_mode: given.unix_mode,
            tcp: numeric(given.tcp)?,
            udp: numeric(given.udp)?,
            udp_trusted: trusted.collect::<PyResult<_>>()?,
            udp_rate_limit: given.udp_rate_limit,
            inherited: given.inherited.into_iter().map(borrowed).collect::<PyResult<_>>()?,
            models,
            pool_size: given.pool_size,
            max_queue_depth: given.max_queue_depth,
            max_threads: given.max_threads,
            max_connections: given.max_connections,
            optimize_for,
            async_storage: given.async_storage,
            storage_pool_size: given.storage_pool_size,
            cache_size: given.cache_size,
            follow_symlinks: given.follow_symlinks,
            writable: given.writable,
            idle_timeout: seconds("idle_timeout", given.idle_timeout)?.into(),
            header_timeout: seconds("header_timeout", given.header_timeout)?.into(),
            request_timeout: seconds("request_timeout", given.request_timeout)?.into(),
        })
    }
}

/// A descriptor of our own for one that Python keeps.
fn borrowed(number: i32) -> PyResult<Arc<OwnedFd>> {
    if number < 0 {
        return Err(PyValueError::new_err(format!("no descriptor: {number}")));
    }
    // SAFETY: it is only borrowed for the call; where the number is not open, the call says so.
    let theirs = unsafe { BorrowedFd::borrow_raw(number) };
    let own = rustix::io::fcntl_dupfd_cloexec(theirs, 0).map_err(std::io::Error::from)?;
    Ok(Arc::new(own))
}

/// The attributes that are read from the settings value when they have changed.
#[derive(FromPyObject)]
struct PyLimits {
    max_connections: usize,
    idle_timeout: f64,
    header_timeout: f64,
    request_timeout: f64,
}

impl TryFrom<PyLimits> for Limits {
    type Error = PyErr;

    fn try_from(given: PyLimits) -> PyResult<Limits> {
        Ok(Limits {
            max_connections: given.max_connections,
            idle_timeout: seconds("idle_timeout", given.idle_timeout)?,
            header_timeout: seconds("header_timeout", given.header_timeout)?,
            request_timeout: seconds("request_timeout", given.request_timeout)?,
        })
    }
}

/// The attributes that are read from the rules about clients.
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
            .map(|(prefix, uids, gids)| (prefix.trim_matches('/').as_bytes().into(), Listed::new(uids, gids)))
            .collect();
        let connect = Listed::new(given.allow_uid, given.allow_gid);
        Rules::new(connect, prefixes, given.max_connections_per_uid, given.max_descriptors_per_uid)
    }
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| PyValueError::new_err(format!("{name} is no number of seconds ({value}): {error}")))
}

fn transport_named(name: &str) -> PyResult<Transport> {
    Transport::from_name(name).ok_or_else(|| PyValueError::new_err(format!("no such transport: {name:?}")))
}

fn model_named(name: &str) -> PyResult<Model> {
    let known = Model::ALL.map(Model::name).join(", ");
    Model::from_name(name).ok_or_else(|| {
        PyValueError::new_err(format!("no such concurrency model: {name:?} (there are: {known})"))
    })
}

#[pyclass(frozen, module = "objmapper_server._engine")]
#[derive(Debug)]
struct Engine(NativeEngine);

#[pymethods]
impl Engine {
    #[new]
    fn new(settings: PySettings) -> PyResult<Self> {
        Ok(Engine(NativeEngine::new(settings.try_into()?)?))
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.0.start())?)
    }

    #[getter]
    fn addresses(&self) -> BTreeMap<&'static str, String> {
        self.0.addresses().into_iter().collect()
    }

    fn statistics(&self, py: Python<'_>) -> Snapshot {
        py.detach(|| self.0.snapshot())
    }

    fn counted_up_to(&self, py: Python<'_>, bounds_us: Vec<f64>) -> Vec<CountedUpTo> {
        py.detach(|| self.0.counted_up_to(&bounds_us))
    }

    fn slow_requests(&self) -> Vec<Record> {
        self.0.journal().slowest()
    }

    fn watch_requests(&self, slower_than: f64, for_seconds: f64) -> PyResult<()> {
        let (floor, time) = (seconds("slower_than", slower_than)?, seconds("for_seconds", for_seconds)?);
        self.0.journal().watch(floor, time);
        Ok(())
    }

    fn sample_requests(&self, one_of: u64) {
        self.0.journal().sample(one_of);
    }

    fn recorded_requests(&self, after: u64) -> (u64, Vec<Record>) {
        self.0.journal().records(after)
    }

    fn notices(&self) -> Vec<String> {
        self.0.notices()
    }

    fn set_rules(&self, rules: PyRules) {
        self.0.set_rules(rules.into());
    }

    fn take_refusal(&self) -> Option<Refusal> {
        self.0.take_refusal()
    }

    fn set_limits(&self, limits: PyLimits) -> PyResult<()> {
        self.0.set_limits(&limits.try_into()?);
        Ok(())
    }

    fn set_concurrency(&self, py: Python<'_>, transport: &str, model: &str) -> PyResult<()> {
        let (lane, chosen) = (transport_named(transport)?, model_named(model)?);
        if py.detach(|| self.0.set_concurrency(lane, chosen))? {
            Ok(())
        } else {
            Err(PyValueError::new_err(format!("{transport} is not served")))
        }
    }

    fn drain(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let timeout = seconds("timeout", timeout)?;
        Ok(py.detach(|| self.0.drain(timeout)))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

/// The attributes that are read from a load's plan.
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
        let numeric = |text: String| {
            text.parse().map_err(|_| PyValueError::new_err(format!("not a numeric ADDRESS:PORT: {text:?}")))
        };
        let target = match (given.unix, given.tcp, given.udp) {
            (Some(path), None, None) => Target::Unix(path),
            (None, Some(text), None) => Target::Tcp(numeric(text)?),
            (None, None, Some(text)) => Target::Udp(numeric(text)?),
            _ => return Err(PyValueError::new_err("a load has one target: unix, tcp or udp")),
        };
        let dialect = match given.dialect.as_str() {
            "fdpass" => Dialect::Objmapper(Mode::FdPass),
            "copy" => Dialect::Objmapper(Mode::Copy),
            "splice" => Dialect::Objmapper(Mode::Splice),
            "fdpass2" => Dialect::Extended(Mode::FdPass),
            "copy2" => Dialect::Extended(Mode::Copy),
            "splice2" => Dialect::Extended(Mode::Splice),
            "http" => Dialect::Http,
            "redis" => Dialect::Redis,
            "pull" => Dialect::Pull,
            "memcached" => Dialect::Memcached,
            other => return Err(PyValueError::new_err(format!("no such dialect: {other:?}"))),
        };
        let by_datagrams = matches!(target, Target::Udp(_));
        let speaks = match dialect {
            Dialect::Pull | Dialect::Memcached => by_datagrams,
            Dialect::Objmapper(Mode::Copy) => true,
            _ => !by_datagrams,
        };
        if !speaks || (by_datagrams && (given.pipeline > 1 || given.rate.is_some() || given.reconnect)) {
            return Err(PyValueError::new_err(
                "over UDP a load is copy, pull or memcached, in a closed loop of one request at a time",
            ));
        }
        let rate = given.rate.filter(|rate| rate.is_finite() && *rate > 0.0);
        if given.uris.is_empty() || given.clients == 0 || given.pipeline == 0 || rate != given.rate {
            return Err(PyValueError::new_err("a load needs a URI, a client, a pipeline and a rate above 0"));
        }
        Ok(Plan {
            target,
            dialect,
            uris: given.uris,
            clients: given.clients,
            threads: given.threads,
            pipeline: given.pipeline.min(1000),
            duration: seconds("duration", given.duration)?,
            requests: given.requests,
            rate,
            reconnect: given.reconnect,
        })
    }
}

#[pyclass(frozen, module = "objmapper_server._engine")]
#[derive(Debug)]
struct Load(Mutex<NativeLoad>);

impl Load {
    fn load(&self) -> MutexGuard<'_, NativeLoad> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Load {
    #[new]
    fn new(py: Python<'_>, plan: PyPlan) -> PyResult<Self> {
        let plan = plan.try_into()?;
        Ok(Load(Mutex::new(py.detach(|| NativeLoad::start(plan))?)))
    }

    #[getter]
    fn answered(&self) -> u64 {
        self.load().answered()
    }

    #[getter]
    fn running(&self) -> bool {
        self.load().is_running()
    }

    fn stop(&self) {
        self.load().stop();
    }

    fn finish(&self, py: Python<'_>) -> Outcome {
        py.detach(|| self.load().finish())
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
