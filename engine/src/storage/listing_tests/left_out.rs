//! The entries that a listing leaves out and reports in the detailed form; and times that seconds since 1970
//! cannot express.

use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reported {
    Object(String, u64, i64, u32),
    LeftOut(u8, Vec<u8>),
}

fn detailed(mut entries: &[u8]) -> Vec<Reported> {
    let mut reported = Vec::new();
    while let [kind, high, low, rest @ ..] = entries {
        let (path, rest) = rest.split_at(u16::from_be_bytes([*high, *low]).into());
        entries = rest;
        if *kind != crate::protocol::v2::LISTED {
            reported.push(Reported::LeftOut(*kind, path.to_vec()));
            continue;
        }
        let (size, rest) = rest.split_first_chunk::<8>().expect("a size");
        let (mtime, rest) = rest.split_first_chunk::<8>().expect("a time");
        let (nanoseconds, rest) = rest.split_first_chunk::<4>().expect("nanoseconds");
        let uri = String::from_utf8(path.to_vec()).expect("UTF-8");
        let (mtime, nanoseconds) = (i64::from_be_bytes(*mtime), u32::from_be_bytes(*nanoseconds));
        reported.push(Reported::Object(uri, u64::from_be_bytes(*size), mtime, nanoseconds));
        entries = rest;
    }
    assert!(entries.is_empty());
    reported
}

/// The entries of all pages, by pages of `limit`.
fn all_reported(listing: &Listing, mapping: &Mapping, prefix: &str, limit: u32) -> Vec<Reported> {
    let (mut reported, mut cursor) = (Vec::new(), None);
    loop {
        let page =
            listing.page_in(Form::Detailed, mapping, None, prefix, cursor.as_deref(), limit).expect("a page");
        assert_eq!(page.form, Form::Detailed);
        reported.extend(detailed(&page.entries));
        match page.cursor {
            Some(next) => assert_ne!(cursor.replace(next), cursor, "every page gets further"),
            None => return reported,
        }
    }
}

#[test]
fn names_that_are_not_utf8_are_reported_once_whatever_the_pages() {
    let root = tree(&["a", "d/b", "z/y/x"]);
    for name in [&b"a\xff"[..], b"d/\xfe", b"\xff\xff", b"z/y/\x80"] {
        File::create(root.path().join(OsStr::from_bytes(name))).expect("a file");
    }
    std::fs::create_dir(root.path().join(OsStr::from_bytes(b"m\xff"))).expect("a directory");
    File::create(root.path().join(OsStr::from_bytes(b"m\xff/inside"))).expect("a file");
    let mapping = mapping(&root);
    for (names, limit) in [(1, 1), (2, 1), (3, 2), (1000, 1), (1000, 1000)] {
        let reported = all_reported(&Listing::with_batches_of(names), &mapping, "/", limit);
        let left_out: Vec<_> = reported
            .iter()
            .filter_map(|reported| match reported {
                Reported::LeftOut(kind, path) => Some((*kind, &path[..])),
                Reported::Object(..) => None,
            })
            .collect();
        let request = [&b"/a\xff"[..], b"/d/\xfe", b"/m\xff/", b"/z/y/\x80", b"/\xff\xff"];
        assert_eq!(left_out, request.map(|path| (v2::LEFT_OUT_NAME, path)), "{names} {limit}");
        assert_eq!(reported.len() - left_out.len(), 3);
    }
    assert_eq!(list(&root, "/"), ["/a", "/d/b", "/z/y/x"]);
    assert_eq!(all_reported(&Listing::default(), &mapping, "/d/", 10).len(), 2);
}

#[test]
fn unreadable_directories_are_reported() {
    let root = tree(&["a/x", "b/x", "c/x", "d/e/x", "d/x", "d/y"]);
    let mode = |name: &str, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(root.path().join(name), permissions).expect("permissions");
    };
    mode("b", 0o000);
    // The owner can read its names, but not stat its entries.
    mode("d", 0o400);
    let unreadable = |path: &str| Reported::LeftOut(v2::LEFT_OUT_UNREADABLE, path.as_bytes().to_vec());
    without_capabilities(|| {
        for (names, limit) in [(1, 1), (1000, 1), (1000, 2), (1000, 100)] {
            let reported = all_reported(&Listing::with_batches_of(names), &mapping(&root), "/", limit);
            assert!(matches!(&reported[0], Reported::Object(uri, ..) if uri == "/a/x"));
            assert!(matches!(&reported[2], Reported::Object(uri, ..) if uri == "/c/x"));
            assert_eq!(reported[1], unreadable("/b/"));
            assert_eq!(reported[3..], ["/d/e/", "/d/x", "/d/y"].map(unreadable), "{names} {limit}");
        }
    });
    mode("b", 0o700);
    mode("d", 0o700);
}

#[test]
fn paths_too_long_for_a_uri_are_reported() {
    let root = tempfile::tempdir().expect("a directory");
    let long = "d".repeat(200);
    let mut directory = fs::open(root.path(), fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    // Twenty directories have 4,020 bytes with their slashes; a file name of 75 bytes just fits behind them, one of
    // 76 does not.
    for _ in 0..20 {
        fs::mkdirat(&directory, &*long, fs::Mode::RWXU).expect("a directory");
        directory = fs::openat(&directory, &*long, fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    }
    let (fits, file, folder) = ("f".repeat(75), "g".repeat(76), "h".repeat(75));
    for name in [&fits, &file] {
        fs::openat(&directory, &**name, fs::OFlags::CREATE | fs::OFlags::WRONLY, fs::Mode::RWXU)
            .expect("a file");
    }
    fs::mkdirat(&directory, &*folder, fs::Mode::RWXU).expect("a directory");
    let start = format!("/{long}").repeat(20);
    let long = |name: &str| Reported::LeftOut(v2::LEFT_OUT_LONG, format!("{start}/{name}").into_bytes());
    for (names, limit) in [(1, 1), (1000, 1), (1000, 100)] {
        let reported = all_reported(&Listing::with_batches_of(names), &mapping(&root), "/", limit);
        assert!(
            matches!(&reported[0], Reported::Object(uri, ..) if *uri == format!("{start}/{fits}") && uri.len() == 4096)
        );
        assert_eq!(reported[1..], [long(&file), long(&format!("{folder}/"))], "{names} {limit}");
    }
    assert_eq!(list(&root, "/").len(), 1);
}

#[test]
fn times_have_their_sign_and_their_nanoseconds() {
    let root = tree(&["later", "old"]);
    let at = |name: &str, seconds: i64, nanoseconds: i64| {
        let time = fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = fs::Timestamps { last_access: time, last_modification: time };
        fs::utimensat(fs::CWD, root.path().join(name), &times, AtFlags::empty()).expect("a time");
    };
    at("later", 1_700_000_000, 123_456_789);
    at("old", -86_401, 5);
    let reported = all_reported(&Listing::default(), &mapping(&root), "/", 10);
    let object = |uri: &str, size, mtime, nanoseconds| Reported::Object(uri.into(), size, mtime, nanoseconds);
    assert_eq!(reported, [object("/later", 5, 1_700_000_000, 123_456_789), object("/old", 3, -86_401, 5)]);
}
