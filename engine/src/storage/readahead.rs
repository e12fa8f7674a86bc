//! Reads a part of a file into the kernel's page cache, on a thread that may wait for the disk.

use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};

/// Waits until `length` bytes of a file from `at` on are in the page cache, by reading a byte of each page.
pub fn touch(file: &OwnedFd, at: u64, length: u64) -> io::Result<()> {
    // Requests all of it at once; the reads below then wait in order.
    if length > 4096 {
        let range = std::num::NonZeroU64::new(length);
        let _ = rustix::fs::fadvise(file, at, range, rustix::fs::Advice::WillNeed);
    }
    let mut byte = [0u8];
    for offset in (at..at + length).step_by(4096) {
        match io::pread(file, &mut byte, offset) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => break,
            Ok(_) => {}
        }
    }
    Ok(())
}
