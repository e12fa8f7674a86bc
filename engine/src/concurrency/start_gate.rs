//! Threads that start together: each makes what it needs and waits for the others; either all run, or none does.

use rustix::io::Errno;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::errors::StartError;
use crate::spawn::spawn;
use crate::sync::unpoisoned;

/// Through this a model reports that it is ready to serve, or why not. Dropping it without a report counts as
/// failure.
#[derive(Debug)]
pub struct StartReport(pub SyncSender<Result<(), StartError>>);

impl StartReport {
    /// The model serves from here on, and takes sessions that others hand over.
    pub fn report_success(self) {
        // The engine waits for the report, so the receiver exists.
        let _ = self.0.send(Ok(()));
    }

    /// The model does not serve, and has ended all that it had started.
    pub fn report_failure(self, error: StartError) {
        let _ = self.0.send(Err(error));
    }
}

/// Turns the failure to make a part of a model into a start error with this address.
pub fn start_error(errno: Errno, what: &str, address: &str) -> StartError {
    let remedy = match errno {
        Errno::MFILE => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
        Errno::NFILE => "raise fs.file-max",
        Errno::AGAIN => "raise the limit on threads (ulimit -u, TasksMax=) or lower pool_size",
        _ => "free some memory",
    };
    let reason = std::io::Error::from(errno);
    StartError::new(errno, format!("cannot {what}: {reason}; {remedy}"), address)
}

/// The threads of a model that is starting.
#[derive(Debug, Default)]
pub struct Starting {
    gate: Arc<StartGate>,
    threads: Vec<JoinHandle<()>>,
    failed: Option<(Errno, &'static str)>,
}

/// Where each thread waits for the others.
#[derive(Debug, Default)]
pub struct StartGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: usize,
    failed: Option<(Errno, &'static str)>,
    /// Whether all may run; None until it is decided.
    verdict: Option<bool>,
}

impl StartGate {
    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    /// Waits for the other threads with what this one made. None if this or another thread has failed.
    pub fn pass<T>(&self, made: Result<T, (Errno, &'static str)>) -> Option<T> {
        let mut state = self.state();
        state.ready += 1;
        let made = made.map_err(|failed| state.failed = Some(failed)).ok();
        self.changed.notify_all();
        loop {
            match state.verdict {
                None => state = unpoisoned(self.changed.wait(state)),
                Some(true) => return made,
                Some(false) => return None,
            }
        }
    }
}

impl Starting {
    /// Starts a thread; its body must pass the gate before it does anything visible to others.
    pub fn spawn(&mut self, name: &str, stack: usize, body: impl FnOnce(&StartGate) + Send + 'static) {
        if self.failed.is_some() {
            return;
        }
        let gate = Arc::clone(&self.gate);
        match spawn(name, stack, move || body(&gate)) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                self.failed = Some((Errno::from_io_error(&error).unwrap_or(Errno::AGAIN), "start a thread"));
            }
        }
    }

    /// Lets all threads run if each has what it needs and nothing else has failed. Otherwise all threads have ended
    /// when this returns.
    pub fn run(
        self,
        failed: Option<(Errno, &'static str)>,
    ) -> Result<Vec<JoinHandle<()>>, (Errno, &'static str)> {
        let mut state = self.gate.state();
        // Do not wait for a thread that panics before the gate.
        while state.ready < self.threads.len() && !self.threads.iter().all(JoinHandle::is_finished) {
            let tick = crate::model::TICK;
            state = unpoisoned(self.gate.changed.wait_timeout(state, tick)).0;
        }
        let failed = failed.or(self.failed).or(state.failed);
        state.verdict = Some(failed.is_none());
        drop(state);
        self.gate.changed.notify_all();
        let Some(failed) = failed else { return Ok(self.threads) };
        for thread in self.threads {
            // The runtime has reported a panic on stderr.
            let _ = thread.join();
        }
        Err(failed)
    }
}
