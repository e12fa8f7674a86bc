//! The transports of a connection, and whether a call on its socket may block.

use rustix::net::SendFlags;

/// The transport of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Unix,
    Tcp,
    Udp,
}

impl Transport {
    pub const ALL: [Transport; 3] = [Transport::Unix, Transport::Tcp, Transport::Udp];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn name(self) -> &'static str {
        ["unix", "tcp", "udp"][self.index()]
    }

    pub fn from_name(name: &str) -> Option<Transport> {
        Transport::ALL.into_iter().find(|transport| transport.name() == name)
    }
}

/// Whether a call may block: yes for a thread with one connection, never for a thread with many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    Blocking,
    NonBlocking,
}

impl IoMode {
    pub(super) fn send_flags(self, more: bool) -> SendFlags {
        let mut flags = SendFlags::NOSIGNAL;
        if self == IoMode::NonBlocking {
            flags |= SendFlags::DONTWAIT;
        }
        if more {
            flags |= SendFlags::MORE;
        }
        flags
    }
}
