//! timerfd(2): readiness at intervals.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use std::time::Duration;

/// A timerfd that becomes readable once a period. Unlike a timeout of every wait it is programmed once, which in a virtual
/// machine saves an exit to the hypervisor for each.
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

    /// Takes note that it was noticed.
    pub fn take(&self) {
        // EAGAIN: somebody else was told too.
        let _ = io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
