//! Versions that the server gives to the files that it writes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use std::collections::HashSet;
use std::os::fd::OwnedFd;

fn file() -> OwnedFd {
    tempfile::tempfile().expect("a file").into()
}

fn version(file: &OwnedFd) -> u64 {
    version_of(file, &fs::fstat(file).expect("stat")).number()
}

#[test]
fn times_differ_however_fast_files_are_written() {
    let versions = Versions { kept: VersionSource::Time(1), last: 0.into() };
    let time: Vec<_> = (0..10_000).map(|_| versions.next_time(1)).collect();
    assert!(time.is_sorted());
    assert_eq!(time.iter().collect::<HashSet<_>>().len(), time.len());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(time[9_999].0.abs_diff(now as i64) < 60);
}

#[test]
fn times_keep_to_the_steps_of_the_file_system() {
    let versions = Versions { kept: VersionSource::Time(100), last: 0.into() };
    assert!((0..1000).all(|_| versions.next_time(100).1.is_multiple_of(100)));
}

#[test]
fn a_clock_that_steps_back_repeats_no_time() {
    let ahead = 4_000_000_000_000_000_000;
    let versions = Versions { kept: VersionSource::Time(1), last: ahead.into() };
    assert_eq!(versions.next_time(1), (4_000_000_000, 1));
    assert_eq!(versions.next_time(1), (4_000_000_000, 2));
}

#[test]
fn one_file_has_another_version_each_time() {
    let file = file();
    let versions = Versions::new(&file, 7).expect("versions");
    let mut seen = HashSet::new();
    for _ in 0..1000 {
        versions.assign(&file).expect("given");
        assert!(seen.insert(version(&file)));
    }
}

#[test]
fn an_attribute_tells_files_with_equal_times_apart() {
    let file = file();
    let versions = Versions { kept: VersionSource::Attribute, last: 7.into() };
    if versions.assign(&file).is_err() {
        // This file system has no such attributes (tmpfs before Linux 6.6).
        return;
    }
    let first = stamp_of(&file);
    versions.assign(&file).expect("given");
    assert_ne!(first, 0);
    assert_ne!(first, stamp_of(&file));
}
