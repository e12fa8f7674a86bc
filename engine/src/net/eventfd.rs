//! eventfd(2): wakes a thread that waits for readiness.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self};

/// An eventfd: rung by one thread, noticed by others, in poll and epoll. Each `take` takes one ring away.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        eventfd(0, flags).map(EventFd)
    }

    pub fn notify(&self) {
        // Fails only where the counter is full, and then it is rung already.
        let _ = io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes one ring; false where it was not rung.
    pub fn take(&self) -> bool {
        io::read(&self.0, &mut [0u8; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
