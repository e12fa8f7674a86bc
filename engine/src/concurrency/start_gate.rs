//! Threads that begin together: each makes what it needs and waits for the others; either all run, or none does.

use rustix::io::Errno;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::spawn;
use crate::errors::StartError;

/// Through this a model says that it has all that it needs to serve, or why it has not. Dropped without a word it has not.
#[derive(Debug)]
pub struct StartReport(pub SyncSender<Result<(), StartError>>);

impl StartReport {
    /// It serves from here on, and takes what is handed over.
    pub fn report_success(self) {
        // The engine waits for it.
        let _ = self.0.send(Ok(()));
    }

    /// It does not serve, and has ended all that it had begun.
    pub fn report_failure(self, error: StartError) {
        let _ = self.0.send(Err(error));
    }
}

/// Why a part of a model could not be made, as an error of the server's with this address.
pub fn start_error(errno: Errno, what: &str, address: &str) -> StartError {
    let remedy = match errno {
        Errno::MFILE => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
        Errno::NFILE => "raise fs.file-max",
        Errno::AGAIN => "raise the limit on threads (ulimit -u, TasksMax=) or lower pool_size",
        _ => "see that the machine has memory left",
    };
    let reason = std::io::Error::from(errno);
    StartError::new(errno, format!("cannot {what}: {reason}; {remedy}"), address)
}

/// The threads of a model that is about to serve.
#[derive(Debug, Default)]
pub struct Starting {
    gate: Arc<StartGate>,
    threads: Vec<JoinHandle<()>>,
    failed: Option<(Errno, &'static str)>,
}

/// Where each of them waits for the others.
#[derive(Debug, Default)]
pub struct StartGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: usize,
    failed: Option<(Errno, &'static str)>,
    /// Whether all may run, once that is known.
    verdict: Option<bool>,
}

impl StartGate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the others with what was made. None where one of them, or this, has failed.
    pub fn pass<T>(&self, made: Result<T, (Errno, &'static str)>) -> Option<T> {
        let mut state = self.state();
        state.ready += 1;
        let made = made.map_err(|failed| state.failed = Some(failed)).ok();
        self.changed.notify_all();
        loop {
            match state.verdict {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(true) => return made,
                Some(false) => return None,
            }
        }
    }
}

impl Starting {
    /// Starts a thread; its body passes the gate first of all that others notice.
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

    /// Lets all run if each has what it needs, and nothing else has failed; if not, they have ended when this returns.
    pub fn run(
        self,
        failed: Option<(Errno, &'static str)>,
    ) -> Result<Vec<JoinHandle<()>>, (Errno, &'static str)> {
        let mut state = self.gate.state();
        // A thread that panics before the gate is not waited for.
        while state.ready < self.threads.len() && !self.threads.iter().all(JoinHandle::is_finished) {
            let tick = super::TICK;
            state = self.gate.changed.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
        let failed = failed.or(self.failed).or(state.failed);
        state.verdict = Some(failed.is_none());
        drop(state);
        self.gate.changed.notify_all();
        let Some(failed) = failed else { return Ok(self.threads) };
        for thread in self.threads {
            // A panic has been reported on stderr by the runtime.
            let _ = thread.join();
        }
        Err(failed)
    }
}
