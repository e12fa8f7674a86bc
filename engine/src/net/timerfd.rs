//! timerfd(2): readiness at intervals.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use std::time::Duration;

/// A timerfd that becomes readable once a period. The server programs it once, unlike a timeout for every wait; in a
/// virtual machine this saves an exit to the hypervisor per wait.
#[derive(Debug)]
pub struct TimerFd(OwnedFd);

impl TimerFd {
    pub fn new(period: Duration) -> io::Result<Self> {
        use rustix::time::{
            Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
        };
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let period = rustix::time::Timespec::try_from(period).map_err(|_| Errno::INVAL)?;
        let each = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
        Ok(TimerFd(timer))
    }

    /// Acknowledges the expiry.
    pub fn take(&self) {
        // EAGAIN: another thread has acknowledged it already.
        let _ = io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
