//! The concurrency models by name, and how often each checks deadlines.

use crate::net::transport::Transport;
use std::time::Duration;

/// How often a model checks the deadlines of its sessions.
pub const TICK: Duration = Duration::from_secs(1);

/// How the sessions of a transport share threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Model {
    ThreadPerConnection,
    ThreadPool,
    WorkStealing,
    Epoll,
}

impl Model {
    pub const ALL: [Model; 4] =
        [Model::ThreadPerConnection, Model::ThreadPool, Model::WorkStealing, Model::Epoll];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn name(self) -> &'static str {
        ["thread-per-connection", "thread-pool", "work-stealing", "epoll"][self.index()]
    }

    pub fn from_name(name: &str) -> Option<Model> {
        Model::ALL.into_iter().find(|model| model.name() == name)
    }

    /// Whether the model can serve a transport: thread-per-connection needs connections, which UDP lacks.
    pub fn serves(self, transport: Transport) -> bool {
        transport != Transport::Udp || self != Model::ThreadPerConnection
    }
}
