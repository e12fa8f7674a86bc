//! The room that the quotas of the server's user and group leave, checked before a write.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::errors::Error;

/// The kernel reports limits in blocks of this size, whatever the file system's block size.
const BLOCK: u64 = 1024;
const GET: u32 = 0x80_0007;
const USER: u32 = 0;
const GROUP: u32 = 1;

/// DQUOT where `more` bytes on the file's file system exceed a quota. Root has none. statvfs(2) shows project
/// quotas as free room. A kernel without the call (before Linux 5.14) refuses the write itself.
pub(super) fn check_quota(file: &OwnedFd, more: u64) -> Result<(), Error> {
    if geteuid().is_root() {
        return Ok(());
    }
    for (kind, id) in [(USER, geteuid().as_raw()), (GROUP, getegid().as_raw())] {
        if left(file, kind, id).is_some_and(|left| more > left) {
            return Err(Error::from_write(Errno::DQUOT));
        }
    }
    Ok(())
}

/// Bytes left; None where no quota is set or the kernel cannot report it.
fn left(file: &OwnedFd, kind: u32, id: u32) -> Option<u64> {
    // SAFETY: all fields are integers, for which zero is valid.
    let mut quota: libc::dqblk = unsafe { std::mem::zeroed() };
    // SAFETY: quotactl_fd(2) with Q_GETQUOTA writes one dqblk; the descriptor is open as long as it is borrowed.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), GET << 8 | kind, id, &raw mut quota)
    };
    (answer == 0 && quota.dqb_bhardlimit > 0)
        .then(|| quota.dqb_bhardlimit.saturating_mul(BLOCK).saturating_sub(quota.dqb_curspace))
}
