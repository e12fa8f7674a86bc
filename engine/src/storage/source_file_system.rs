//! Finds the file system of a client's file without a call that this file system answers.
//!
//! A file system in user space, or over a network, may leave a call unanswered. The thread that makes the
//! call then cannot be ended, not by SIGKILL either, and the process stays until the answer comes. So the
//! server reads only from file systems that the kernel serves from this machine.

use rustix::fs::{self, AtFlags, FileType, MemfdFlags, StatxFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// File systems that the kernel serves from this machine, as mountinfo names them.
const LOCAL: &[&[u8]] = &[
    b"bcachefs",
    b"btrfs",
    b"erofs",
    b"exfat",
    b"ext2",
    b"ext3",
    b"ext4",
    b"f2fs",
    b"hfsplus",
    b"iso9660",
    b"jfs",
    b"nilfs2",
    b"ntfs3",
    b"overlay",
    b"ramfs",
    b"reiserfs",
    b"squashfs",
    b"tmpfs",
    b"ubifs",
    b"udf",
    b"vfat",
    b"xfs",
    b"zfs",
];

/// The location of a file, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    mount: u64,
    /// Major and minor number of the file system's device.
    device: (u32, u32),
}

impl Place {
    /// None where the kernel cannot tell (before Linux 5.8).
    fn of(file: impl AsFd) -> Option<Place> {
        // DONT_SYNC: the kernel answers from its cache. It never asks a file system for the number of a mount.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = fs::statx(file, c"", flags, StatxFlags::MNT_ID).ok()?;
        let has_mount = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        has_mount
            .then_some(Place { mount: found.stx_mnt_id, device: (found.stx_dev_major, found.stx_dev_minor) })
    }
}

/// Whether this is a regular file, by the kernel's cache, without asking its file system.
pub(super) fn is_regular(file: &OwnedFd) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    fs::statx(file, c"", flags, StatxFlags::TYPE)
        .is_ok_and(|found| FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile)
}

/// Whether the kernel itself serves the file: on a local file system, or in memory (memfd_create(2)).
///
/// Reads /proc/self/mountinfo each time: the kernel reuses mount numbers, but not that of an open file.
pub(super) fn is_local(file: &OwnedFd) -> bool {
    let Some(place) = Place::of(file) else { return false };
    if memory_mount() == Some(place.mount) {
        return true;
    }
    std::fs::read("/proc/self/mountinfo").is_ok_and(|mounts| is_local_in(&mounts, place))
}

/// The kernel's own mount for memory files, which mountinfo does not list: taken from a memory file made here.
fn memory_mount() -> Option<u64> {
    static MOUNT: OnceLock<u64> = OnceLock::new();
    if let Some(mount) = MOUNT.get() {
        return Some(*mount);
    }
    let file = fs::memfd_create(c"objmapper-mount", MemfdFlags::CLOEXEC).ok()?;
    let place = Place::of(&file)?;
    Some(*MOUNT.get_or_init(|| place.mount))
}

/// Whether a text like /proc/self/mountinfo shows the place as local.
///
/// It does not list a mount of another mount namespace, but may list the same file system, where both
/// namespaces mount it. The device identifies that file system only where it is a real one: numbers without a
/// device (major 0) may be those of a part of a file system.
fn is_local_in(mounts: &[u8], place: Place) -> bool {
    let mut by_device = false;
    for line in mounts.split(|byte| *byte == b'\n') {
        let Some(mount) = Mount::parse(line) else { continue };
        if mount.number == place.mount {
            return mount.is_local();
        }
        by_device |= place.device.0 != 0 && mount.device == place.device && mount.is_local();
    }
    by_device
}

struct Mount<'a> {
    number: u64,
    device: (u32, u32),
    kind: &'a [u8],
}

impl Mount<'_> {
    /// `36 35 98:0 /part /at rw,noatime master:1 - ext3 /dev/root rw`, see proc_pid_mountinfo(5).
    fn parse(line: &[u8]) -> Option<Mount<'_>> {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = number(fields.next()?)?;
        let device = fields.nth(1)?;
        let colon = device.iter().position(|byte| *byte == b':')?;
        let device = (number_of(&device[..colon])?, number_of(&device[colon + 1..])?);
        fields.find(|field| *field == b"-")?;
        Some(Mount { number, device, kind: fields.next()? })
    }

    fn is_local(&self) -> bool {
        LOCAL.contains(&self.kind)
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn number_of(digits: &[u8]) -> Option<u32> {
    number(digits)?.try_into().ok()
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"21 1 254:0 / / rw - ext4 /dev/vda rw\n\
        30 21 0:40 / /home/a\\040b rw,nosuid shared:7 master:1 - fuse.sshfs host: rw,user_id=1000\n\
        31 21 0:41 / /mnt rw - nfs4 server:/ rw\n\
        32 21 0:42 / /tmp rw shared:2 - tmpfs tmpfs rw\n";

    fn is_local_at(mount: u64, device: (u32, u32)) -> bool {
        is_local_in(MOUNTS, Place { mount, device })
    }

    #[test]
    fn file_systems_of_the_kernel_are_local_and_those_of_others_are_not() {
        assert!(is_local_at(21, (254, 0)));
        assert!(is_local_at(32, (0, 42)));
        assert!(!is_local_at(30, (0, 40)));
        assert!(!is_local_at(31, (0, 41)));
    }

    #[test]
    fn an_unlisted_mount_counts_as_local_only_on_a_real_device() {
        assert!(is_local_at(99, (254, 0)));
        assert!(!is_local_at(99, (254, 1)));
        assert!(!is_local_at(99, (0, 42)));
        assert!(!is_local_in(b"", Place { mount: 21, device: (254, 0) }));
    }

    #[test]
    fn the_mount_counts_more_than_the_device() {
        assert!(!is_local_at(30, (254, 0)));
    }

    #[test]
    fn malformed_lines_are_ignored() {
        for line in
            [&b""[..], b"21", b"21 1 254 / / rw - ext4", b"x 1 254:0 / / rw - ext4", b"21 1 254:0 / / rw"]
        {
            assert!(!is_local_in(line, Place { mount: 21, device: (254, 0) }));
        }
    }

    #[test]
    fn memory_files_and_files_of_this_machine_are_local() {
        assert!(is_local(&fs::memfd_create(c"a", MemfdFlags::CLOEXEC).expect("a file")));
        assert!(is_local(&tempfile::tempfile().expect("a file").into()));
        assert!(!is_local(&std::fs::File::open("/proc/self/status").expect("a file").into()));
    }
}
