//! eventfd(2): wakes a thread that waits for readiness.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self};

/// An eventfd: one thread notifies, others see it in poll and epoll. Each `take` consumes one notification.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        eventfd(0, flags).map(EventFd)
    }

    pub fn notify(&self) {
        // Fails only if the counter is full, and then a notification is pending already.
        let _ = io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Consumes one notification; false if none is pending.
    pub fn take(&self) -> bool {
        io::read(&self.0, &mut [0u8; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
