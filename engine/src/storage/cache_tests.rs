//! The version of a file and its etag.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::storage::etag::{GOLDEN, mix64};
use proptest::prelude::*;
use std::collections::HashSet;
use std::time::UNIX_EPOCH;

fn version(inode: u64, size: i64, modified: (i64, i64), changed: (i64, i64)) -> Version {
    Version { device: 7, inode, size, modified, changed, stamp: 0, origin: 0 }
}

fn etag(version: Version) -> String {
    String::from_utf8(version.etag().to_vec()).expect("hex digits")
}

#[test]
fn etags_are_the_same_in_every_version_of_the_server() {
    // An independent program computed these from the description above `etag`.
    let plain = version(42, 1000, (1_700_000_000, 123_456_789), (1_700_000_001, 5));
    assert_eq!(etag(plain), "7e568155b1e9b16e");
    assert_eq!(etag(version(0, 0, (0, 0), (0, 0))), "2130748aaac80268");
    // The first output of SplitMix64 with seed 0; the reference implementation's tests have this number.
    assert_eq!(mix64(GOLDEN), 0xe220_a839_7b1d_cdaf);
}

#[test]
fn a_reboot_that_renumbers_devices_leaves_etags_as_they_are() {
    let before = version(1, 2, (3, 4), (5, 6));
    assert_eq!(etag(before), etag(Version { device: 8, ..before }));
}

/// A moment of 2023, `milliseconds` after a whole second.
fn moment(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(milliseconds)
}

fn kept(version: Version, seen: SystemTime) -> bool {
    let cache = Cache::new(1 << 20, Duration::from_secs(60));
    cache.put(c"object", version, b"content", seen);
    cache.get(c"object", Instant::now()).is_some()
}

#[test]
fn a_file_changed_just_before_the_read_is_not_cached() {
    let fine = version(1, 7, (1_700_000_000, 1), (1_700_000_000, 1));
    assert!(!kept(fine, moment(20)));
    assert!(kept(fine, moment(21)));
    // The clock is far past this by now: only the time before the stat counts.
    assert!(!kept(fine, moment(0)));
}

#[test]
fn with_times_in_whole_seconds_two_seconds_must_pass() {
    let coarse = version(1, 7, (1_700_000_000, 0), (1_700_000_000, 0));
    assert!(!kept(coarse, moment(1_999)));
    assert!(!kept(coarse, moment(2_000)));
    assert!(kept(coarse, moment(2_001)));
    // tar sets a modification time in whole seconds on a file whose change time has a fraction.
    assert!(kept(version(1, 7, (1_600_000_000, 0), (1_700_000_000, 1)), moment(21)));
}

#[test]
fn an_entry_is_used_up_to_its_maximum_age() {
    let cache = Cache::new(1 << 20, Duration::from_secs(60));
    cache.put(c"object", version(1, 7, (1, 1), (1, 1)), b"content", moment(0));
    let now = Instant::now();
    assert!(cache.get(c"object", now + Duration::from_secs(59)).is_some());
    assert!(cache.get(c"object", now + Duration::from_secs(61)).is_none());
    cache.max_age.set(Duration::from_secs(120));
    assert!(cache.get(c"object", now + Duration::from_secs(61)).is_some());
}

#[test]
fn a_stamp_makes_another_etag_of_the_same_times() {
    let plain = version(42, 1000, (1_700_000_000, 0), (1_700_000_000, 0));
    let (one, two) = (plain.stamped(1), plain.stamped(2));
    assert_ne!(etag(one), etag(two));
    assert_ne!(etag(one), etag(plain));
    assert!(one.looks_like(&two) && one != two);
}

#[test]
fn small_differences_do_not_collide() {
    let mut seen = HashSet::new();
    for at in 0..200_000i64 {
        // The values that a reused inode, a counter and a clock give.
        assert!(seen.insert(version(at as u64 % 100, at % 7, (at / 700, at), (at / 700, at)).etag()), "{at}");
    }
}

#[test]
fn times_before_1970_keep_their_sign_and_sizes_are_never_negative() {
    let odd = version(1, -1, (-5, 0), (0, 0));
    assert_eq!((odd.size(), odd.mtime()), (0, -5));
    assert_eq!(etag(odd).len(), 16);
}

proptest! {
    #[test]
    fn every_field_counts(
        inode: u64, size in 0..i64::MAX, seconds in 0..9_000_000_000i64, nanoseconds in 0..999_999_999i64,
    ) {
        let plain = version(inode, size, (seconds, nanoseconds), (seconds, nanoseconds));
        let others = [
            version(inode ^ 1, size, plain.modified, plain.changed),
            version(inode, size ^ 1, plain.modified, plain.changed),
            version(inode, size, (seconds, nanoseconds + 1), plain.changed),
            version(inode, size, (seconds + 1, nanoseconds), plain.changed),
            version(inode, size, plain.modified, (seconds, nanoseconds + 1)),
            version(inode, size, plain.modified, (seconds + 1, nanoseconds)),
        ];
        for other in others {
            prop_assert_ne!(other.etag(), plain.etag());
        }
        prop_assert!(plain.etag().iter().all(|digit| b"0123456789abcdef".contains(digit)));
    }
}
