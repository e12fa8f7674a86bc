//! File systems that change without this kernel.

use rustix::fd::AsFd;
use rustix::fs;
use rustix::io;

/// File systems that may ask another machine or a process even for cached data, and that can change without
/// this kernel; by `f_type` of statfs(2). The numbers come from linux/magic.h and the file systems' own sources.
const REMOTE: [(u32, &str); 18] = [
    (0x6573_5546, "FUSE or virtiofs"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    // Until Linux 5.15.
    (0x517b, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "CephFS"),
    (0x5346_414f, "AFS"),
    // The kernel's own.
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "OrangeFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
];

/// The name of such a file system; None where the file lies on one that only this kernel changes.
pub fn remote_name(file: impl AsFd) -> io::Result<Option<&'static str>> {
    fs::fstatfs(file).map(|found| named(found.f_type as u32))
}

/// Whether the file lies on such a file system.
pub fn is_remote(file: impl AsFd) -> io::Result<bool> {
    remote_name(file).map(|name| name.is_some())
}

fn named(kind: u32) -> Option<&'static str> {
    REMOTE.iter().find(|(number, _)| *number == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn network_and_user_space_file_systems_are_remote() {
        for (number, name) in
            [(0x6573_5546, "FUSE or virtiofs"), (0x6969, "NFS"), (0xfe53_4d42, "SMB"), (0x0102_1997, "9p")]
        {
            assert_eq!(named(number), Some(name));
        }
        for (number, name) in [
            (0xef53, "ext4"),
            (0x5846_5342, "XFS"),
            (0x0102_1994, "tmpfs"),
            (0x9123_683e, "btrfs"),
            (0x794c_7630, "overlayfs"),
        ] {
            assert_eq!(named(number), None, "{name}");
        }
    }
}
