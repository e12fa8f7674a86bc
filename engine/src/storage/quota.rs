//! What the quotas of the server's user and group have left, asked before anything is written.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::errors::Error;

/// Limits are told in blocks of this size, whatever the file system's is.
const BLOCK: u64 = 1024;
const GET: u32 = 0x80_0007;
const USER: u32 = 0;
const GROUP: u32 = 1;

/// DQUOT where so many bytes more on the file's file system are more than a quota allows. Root has none. Project quotas show
/// in what statvfs(2) says is free; a kernel that cannot be asked (before Linux 5.14) refuses when it is written.
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

/// Bytes that are left; None where there is no quota, or it cannot be asked for.
fn left(file: &OwnedFd, kind: u32, id: u32) -> Option<u64> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut quota: libc::dqblk = unsafe { std::mem::zeroed() };
    // SAFETY: quotactl_fd(2) with Q_GETQUOTA writes one dqblk; the descriptor is open as long as it is borrowed.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), GET << 8 | kind, id, &raw mut quota)
    };
    (answer == 0 && quota.dqb_bhardlimit > 0)
        .then(|| quota.dqb_bhardlimit.saturating_mul(BLOCK).saturating_sub(quota.dqb_curspace))
}
