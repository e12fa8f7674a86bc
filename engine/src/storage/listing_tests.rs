//! Listings of real trees, compared with what was made there; whole, by pages of every size, and while the tree changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use tempfile::TempDir;

fn tree(objects: &[&str]) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for object in objects {
        make(root.path(), object);
    }
    root
}

/// An object with as many bytes as its path.
fn make(root: &Path, object: &str) {
    let path = root.join(object);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    std::fs::write(path, object).expect("a file");
}

fn mapping(root: &TempDir) -> Mapping {
    Mapping::new(root.path(), false).expect("a mapping")
}

/// URI, size and mtime of each entry.
fn decode(mut entries: &[u8]) -> Vec<(String, u64, u64)> {
    let mut decoded = Vec::new();
    while let Some((length, rest)) = entries.split_first_chunk::<2>() {
        let (uri, rest) = rest.split_at(u16::from_be_bytes(*length).into());
        let (size, rest) = rest.split_first_chunk::<8>().expect("a size");
        let (mtime, rest) = rest.split_first_chunk::<8>().expect("a time");
        let uri = String::from_utf8(uri.to_vec()).expect("UTF-8");
        decoded.push((uri, u64::from_be_bytes(*size), u64::from_be_bytes(*mtime)));
        entries = rest;
    }
    assert!(entries.is_empty());
    decoded
}

fn uris(page: &Page) -> Vec<String> {
    let entries = decode(&page.entries);
    assert_eq!(entries.len(), page.count as usize);
    entries.into_iter().map(|(uri, ..)| uri).collect()
}

/// All pages, one after the other.
fn all(listing: &Listing, mapping: &Mapping, prefix: &str, limit: u32) -> Result<Vec<String>, Error> {
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let page = listing.page(mapping, None, prefix, cursor.as_deref(), limit)?;
        assert!(page.count <= limit);
        listed.extend(uris(&page));
        match page.cursor {
            Some(next) => assert_ne!(cursor.replace(next), cursor, "every page gets further"),
            None => return Ok(listed),
        }
    }
}

fn list(root: &TempDir, prefix: &str) -> Vec<String> {
    all(&Listing::default(), &mapping(root), prefix, 1000).expect("a listing")
}

#[test]
fn objects_come_in_the_order_of_their_uris_with_size_and_time() {
    // A directory sorts as if its name ended in a slash: '-' and '.' come before it, '0' behind.
    let root = tree(&["a/x", "a-b", "a.b", "a0", "a/y/z", "A", "ü", "b"]);
    let page = Listing::default().page(&mapping(&root), None, "/", None, 0).expect("a page");
    assert_eq!(uris(&page), ["/A", "/a-b", "/a.b", "/a/x", "/a/y/z", "/a0", "/b", "/ü"]);
    assert_eq!(page.cursor, None);
    for (uri, size, mtime) in decode(&page.entries) {
        let path = std::ffi::CString::new(&uri[1..]).expect("a path");
        let found = mapping(&root).stat(&path).expect("there");
        assert_eq!((size, mtime), (found.size, found.mtime), "{uri}");
        assert_eq!(size, uri.len() as u64 - 1);
    }
}

#[test]
fn a_prefix_is_a_string_and_not_a_directory() {
    let root = tree(&["models/web", "models/we/b", "models/w", "models-old", "model", "x/models/we"]);
    for (prefix, wanted) in [
        ("/models/we", &["/models/we/b", "/models/web"][..]),
        ("models/we", &["/models/we/b", "/models/web"]),
        ("/models/we/", &["/models/we/b"]),
        ("/models/", &["/models/w", "/models/we/b", "/models/web"]),
        ("/models", &["/models-old", "/models/w", "/models/we/b", "/models/web"]),
        ("/models/web", &["/models/web"]),
        ("/models/web/", &[]),
        ("/models/x", &[]),
        ("/missing/x", &[]),
        ("/x/", &["/x/models/we"]),
    ] {
        assert_eq!(list(&root, prefix), wanted, "{prefix}");
    }
    assert_eq!(list(&root, "").len(), 6);
    assert_eq!(list(&root, "/"), list(&root, ""));
}

#[test]
fn a_prefix_that_no_uri_can_have_is_refused() {
    let root = tree(&["a/b", ".hidden"]);
    let page = |prefix: &str| Listing::default().page(&mapping(&root), None, prefix, None, 0);
    for prefix in ["//", "/a//", "/../", "/a/../b", "/./a", "/a/./"] {
        assert_eq!(page(prefix), Err(Error::BadPath), "{prefix}");
    }
    assert_eq!(page("/.objmapper/"), Err(Error::NotFound));
    assert_eq!(uris(&page("/.").expect("a page")), ["/.hidden"]);
}

#[test]
fn pages_of_every_size_make_the_same_listing() {
    let root = tree(&["a", "b/a", "b/b/a", "b/b/b", "b/c", "c/a", "d", "e/f/g/h", "e/f/i", "j"]);
    std::fs::create_dir_all(root.path().join("empty/of/all")).expect("directories");
    let whole = list(&root, "/");
    assert_eq!(whole.len(), 10);
    for names in [1, 2, 3, 1000] {
        let listing = Listing::with_runs_of(names);
        for limit in 1..12 {
            assert_eq!(
                all(&listing, &mapping(&root), "/", limit).expect("a listing"),
                whole,
                "{names} {limit}"
            );
        }
    }
}

#[test]
fn the_last_page_says_that_it_is() {
    let root = tree(&["a", "b", "c", "d"]);
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let first = listing.page(&mapping, None, "/", None, 2).expect("a page");
    let second = listing.page(&mapping, None, "/", first.cursor.as_deref(), 2).expect("a page");
    assert_eq!((uris(&first).len(), uris(&second).len()), (2, 2));
    assert_eq!(second.cursor, None);
    let none = listing.page(&mapping, None, "/x", None, 2).expect("a page");
    assert_eq!((none.count, none.cursor), (0, None));
}

#[test]
fn a_page_can_be_asked_for_again() {
    let objects: Vec<_> = (0..2000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::with_runs_of(700), mapping(&root));
    let first = listing.page(&mapping, None, "/", None, 10).expect("a page");
    let second = || listing.page(&mapping, None, "/", first.cursor.as_deref(), 10).expect("a page");
    let once = second();
    listing.page(&mapping, None, "/", once.cursor.as_deref(), 1000).expect("a page");
    assert_eq!(uris(&second()), uris(&once));
    // By a server that was restarted in between, too.
    let restarted =
        Listing::default().page(&mapping, None, "/", first.cursor.as_deref(), 10).expect("a page");
    assert_eq!(uris(&restarted), uris(&once));
}

#[test]
fn limits_are_kept() {
    let name = "n".repeat(200);
    let objects: Vec<_> = (0..6000).map(|at| format!("{at:05}-{name}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    assert_eq!(listing.page(&mapping, None, "/", None, 0).expect("a page").count, DEFAULT_LIMIT);
    let page = listing.page(&mapping, None, "/", None, u32::MAX).expect("a page");
    assert!(page.entries.len() <= MOST_CONTENT && page.entries.len() > MOST_CONTENT - 1000);
    let root = tree(
        &(0..10_100)
            .map(|at| at.to_string())
            .collect::<Vec<_>>()
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        listing.page(&self::mapping(&root), None, "/", None, u32::MAX).expect("a page").count,
        MAX_LIMIT
    );
}

#[test]
fn a_cursor_fits_its_own_listing_only_and_only_whole() {
    let root = tree(&["a/1", "a/2", "a/3", "b/1"]);
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let cursor = listing.page(&mapping, None, "/a", None, 1).expect("a page").cursor.expect("more to come");
    assert!(
        listing.page(&mapping, None, "a", Some(&cursor), 1).is_ok(),
        "the same prefix, spelled without the slash"
    );
    let refused = |prefix: &str, cursor: &[u8]| {
        assert_eq!(
            listing.page(&mapping, None, prefix, Some(cursor), 1),
            Err(Error::BadCursor),
            "{prefix} {cursor:?}"
        );
    };
    for prefix in ["/", "/b", "/a/", "/aa"] {
        refused(prefix, &cursor);
    }
    for at in 0..cursor.len() {
        refused("/a", &cursor[..at]);
        for bit in 0..8 {
            let mut damaged = cursor.clone();
            damaged[at] ^= 1 << bit;
            refused("/a", &damaged);
        }
    }
    refused("/a", b"");
    refused("/a", &[&cursor[..], b"x"].concat());
}

#[test]
fn a_forged_cursor_leads_nowhere_else() {
    let root = tree(&["a/1", "b"]);
    std::fs::write(root.path().join("../secret-of-listing-tests"), "").expect("a file");
    for after in ["../", "../x", "a/../../", "a/1/x", "/", "//", "a//", "\0", "a/\0"] {
        let cursor = Cursor { listing: 0, after: after.into() }.encode(b"");
        let page = Listing::default().page(&mapping(&root), None, "/", Some(&cursor), 0).expect("a page");
        assert!(uris(&page).iter().all(|uri| ["/a/1", "/b"].contains(&&**uri)), "{after:?}");
    }
    std::fs::remove_file(root.path().join("../secret-of-listing-tests")).expect("removed");
}

#[test]
fn what_was_added_or_removed_between_pages_disturbs_nothing_else() {
    let root = tree(&["a/1", "a/2", "b", "c/1", "d"]);
    for names in [1, 1000] {
        let (listing, mapping) = (Listing::with_runs_of(names), mapping(&root));
        let first = listing.page(&mapping, None, "/", None, 2).expect("a page");
        assert_eq!(uris(&first), ["/a/1", "/a/2"]);
        // The cursor stands in a directory that then is no more, or is an object.
        std::fs::remove_dir_all(root.path().join("a")).expect("removed");
        make(root.path(), "a");
        make(root.path(), "c/0");
        std::fs::remove_file(root.path().join("b")).expect("removed");
        let second = listing.page(&mapping, None, "/", first.cursor.as_deref(), 10).expect("a page");
        assert_eq!(uris(&second), ["/c/0", "/c/1", "/d"]);
        for gone in ["a", "c/0"] {
            std::fs::remove_file(root.path().join(gone)).expect("removed");
        }
        for back in ["a/1", "a/2", "b"] {
            make(root.path(), back);
        }
    }
}

#[test]
fn an_object_that_was_put_before_a_listing_began_is_in_it() {
    let objects: Vec<_> = (0..3000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    // Its run is kept, and does not have what comes then.
    let earlier = listing.page(&mapping, None, "/", None, 10).expect("a page");
    make(root.path(), "1000-new");
    assert!(all(&listing, &mapping, "/", 10).expect("a listing").contains(&"/1000-new".to_owned()));
    assert!(listing.page(&mapping, None, "/", earlier.cursor.as_deref(), 10).is_ok());
}

/// Tells the other thread when this one is through, or has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn each_object_that_is_there_all_the_time_is_listed_once_while_others_come_and_go() {
    let objects: Vec<_> = (0..600).map(|at| format!("{}/{}/{at}", at % 3, at % 7)).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let stable: BTreeSet<_> = objects.iter().map(|object| format!("/{object}")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (done, root_path) = (&done, root.path());
        scope.spawn(move || {
            for at in (0..).take_while(|_| !done.load(SeqCst)) {
                let path = root_path.join(format!("{}/{}/passing-{}", at % 3, at % 7, at % 50));
                File::create(&path).expect("a file");
                let directory = root_path.join(format!("{}/passing-{}", at % 3, at % 5));
                std::fs::create_dir(&directory).expect("a directory");
                std::fs::write(directory.join("object"), "").expect("a file");
                std::fs::remove_file(&path).expect("removed");
                std::fs::remove_dir_all(&directory).expect("removed");
            }
        });
        let _ends = Ends(done);
        for round in 0..30 {
            let listing = Listing::with_runs_of(1 + round * 20);
            let mut listed = all(&listing, &mapping(&root), "/", 7 + round as u32).expect("a listing");
            assert!(listed.is_sorted_by(|one, next| one < next), "in order, and none twice");
            listed.retain(|uri| !uri.contains("passing"));
            assert!(listed.iter().eq(&stable));
        }
    });
}

#[test]
fn only_what_can_be_got_is_listed() {
    let root = tree(&["object", "directory/object"]);
    let path = |name: &str| root.path().join(name);
    fs::mknodat(fs::CWD, path("fifo"), FileType::Fifo, fs::Mode::RWXU, 0).expect("a FIFO");
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
    std::fs::write(root.path().join(OsStr::from_bytes(b"not \xff UTF-8")), "").expect("a file");
    std::fs::create_dir(root.path().join(OsStr::from_bytes(b"nor \xfe"))).expect("a directory");
    std::fs::write(root.path().join(OsStr::from_bytes(b"nor \xfe/object")), "").expect("a file");
    std::fs::create_dir_all(path(".objmapper/1-0123456789abcdef")).expect("a directory");
    std::fs::write(path(".objmapper/1-0123456789abcdef/0"), "").expect("a file");
    make(root.path(), "directory/.objmapper");
    assert_eq!(list(&root, "/"), ["/directory/.objmapper", "/directory/object", "/object"]);
    assert_eq!(list(&root, "/.obj"), Vec::<String>::new());
}

#[test]
fn links_are_listed_where_they_are_followed_and_lead_to_objects() {
    let root = tree(&["object", "directory/object"]);
    let link = |target: &str, name: &str| symlink(target, root.path().join(name)).expect("a link");
    link("object", "inside");
    link("../../etc/passwd", "outside");
    link("missing", "dangling");
    link(".", "circle");
    link("directory", "to-directory");
    assert_eq!(list(&root, "/"), ["/directory/object", "/object"]);
    let following = Mapping::new(root.path(), true).expect("a mapping");
    let listing = Listing::default();
    let all = |prefix| all(&listing, &following, prefix, 2).expect("a listing");
    assert_eq!(all("/"), ["/directory/object", "/inside", "/object"]);
    assert_eq!(all("/to-directory/"), ["/to-directory/object"]);
    let page = listing.page(&following, None, "/inside", None, 0).expect("a page");
    assert_eq!(decode(&page.entries)[0].1, 6, "the size of what it leads to");
}

#[test]
fn directories_that_the_server_cannot_read_are_skipped() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, to give up the right to read everything");
        return;
    }
    let root = tree(&["a/object", "b/object", "c/object", "d"]);
    let mode = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(root.path().join(name), permissions).expect("permissions");
    };
    mode("a", 0o000);
    mode("b", 0o400);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = rustix::thread::CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
            // Of this thread only.
            rustix::thread::set_capabilities(None, sets).expect("dropped");
            assert_eq!(list(&root, "/"), ["/c/object", "/d"]);
            assert_eq!(list(&root, "/a/"), Vec::<String>::new());
        });
    });
    mode("a", 0o700);
    mode("b", 0o700);
}

#[test]
fn paths_may_be_as_long_as_a_uri() {
    let root = tempfile::tempdir().expect("a directory");
    let mut directory = fs::open(root.path(), fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    let mut wanted = Vec::new();
    // 2,048 directories with a file in each: the longest path of a file that fits has 4,095 bytes.
    for depth in 0..=2048 {
        fs::openat(&directory, "f", fs::OFlags::CREATE | fs::OFlags::WRONLY, fs::Mode::RWXU).expect("a file");
        let path = "d/".repeat(depth) + "f";
        if path.len() < MAX_URI_LENGTH {
            wanted.push(format!("/{path}"));
        }
        fs::mkdirat(&directory, "d", fs::Mode::RWXU).expect("a directory");
        directory = fs::openat(&directory, "d", fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    }
    wanted.reverse();
    assert_eq!(wanted[0].len(), 4096);
    wanted.sort();
    assert_eq!(all(&Listing::default(), &mapping(&root), "/", 100), Ok(wanted));
}

const MAX_URI_LENGTH: usize = crate::protocol::MAX_URI;

#[test]
fn a_page_ends_after_so_many_directories_even_without_an_object() {
    let root = tempfile::tempdir().expect("a directory");
    for at in 0..10_000 {
        std::fs::create_dir(root.path().join(at.to_string())).expect("a directory");
    }
    make(root.path(), "9999/object");
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let mut page = listing.page(&mapping, None, "/", None, 10).expect("a page");
    for _ in 0..2 {
        assert_eq!(page.count, 0);
        page =
            listing.page(&mapping, None, "/", Some(&page.cursor.expect("more to come")), 10).expect("a page");
    }
    assert_eq!((uris(&page), page.cursor), (vec!["/9999/object".to_owned()], None));
}

#[test]
fn nothing_is_kept_of_listings_that_are_over_and_little_of_others() {
    let objects: Vec<_> = (0..3000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    for _ in 0..2 * MOST_RUNS {
        listing.page(&mapping, None, "/", None, 1).expect("a page");
    }
    assert!(listing.kept().len() > 1 && listing.kept().len() <= MOST_RUNS);
    listing.kept().clear();
    all(&listing, &mapping, "/", 100).expect("a listing");
    assert!(listing.kept().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_is_listed_in_order_whatever_the_pages(
        paths in prop::collection::btree_set("[ab.0é-]{1,3}(/[ab.0é-]{1,2}){0,3}", 0..30),
        prefix in "/?[ab.0-]{0,2}(/[ab.0-]{0,2})?",
        names in 1usize..6,
        limit in 1u32..9,
    ) {
        let root = tempfile::tempdir().expect("a directory");
        let mut wanted = BTreeSet::new();
        for path in &paths {
            let target = root.path().join(path);
            let has_dots = path.split('/').any(|segment| segment == "." || segment == "..");
            // A name is either an object or a directory; whichever came first.
            if !has_dots
                && std::fs::create_dir_all(target.parent().expect("a parent")).is_ok()
                && File::create_new(&target).is_ok()
            {
                wanted.insert(format!("/{path}"));
            }
        }
        let spelled = format!("/{}", prefix.strip_prefix('/').unwrap_or(&prefix));
        wanted.retain(|uri| uri.starts_with(&spelled));
        let listing = Listing::with_runs_of(names);
        match all(&listing, &mapping(&root), &prefix, limit) {
            Err(error) => {
                prop_assert_eq!(error, Error::BadPath);
                prop_assert!(wanted.is_empty());
            }
            Ok(listed) => prop_assert_eq!(listed, wanted.into_iter().collect::<Vec<_>>()),
        }
    }
}

/// The resident memory of this process, in KiB, at its most.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
#[ignore = "a benchmark: a million files; cargo test --release -- --ignored --exact --nocapture"]
fn a_million_objects_in_one_directory() {
    let root = tempfile::tempdir().expect("a directory");
    for at in 0..1_000_000u64 {
        File::create(root.path().join(format!("{:016x}.bin", crate::storage::cache::mix(at))))
            .expect("a file");
    }
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let before = peak_memory();
    let started = Instant::now();
    let (mut count, mut pages, mut slowest, mut cursor) = (0, 0, Duration::ZERO, None);
    loop {
        let one = Instant::now();
        let page = listing.page(&mapping, None, "/", cursor.as_deref(), 0).expect("a page");
        slowest = slowest.max(one.elapsed());
        count += page.count;
        pages += 1;
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(count, 1_000_000);
    eprintln!(
        "{count} objects in {pages} pages: {:.1} s, slowest page {} ms, {} KiB more memory at the most",
        started.elapsed().as_secs_f64(),
        slowest.as_millis(),
        peak_memory() - before
    );
}

#[test]
fn what_a_view_hides_is_in_no_page() {
    let root = tree(&["a", "shut/x", "shut/y/z", "shut/open/b", "shut/open/c/d", "shut2/e"]);
    let rules = |uid| {
        let listed = |uids: &[u32]| crate::rules::Listed::new(uids.to_vec(), Vec::new());
        let prefixes = vec![(b"shut"[..].into(), listed(&[1])), (b"shut/open"[..].into(), listed(&[1, 2]))];
        let rules = crate::rules::Rules::new(listed(&[]), prefixes, 0, 0);
        View::new(Arc::new(rules), Some(&crate::transport::Credentials { pid: 1, uid, gids: Vec::new() }))
    };
    let all = |view: &View, prefix: &str| {
        let (listing, mapping) = (Listing::default(), mapping(&root));
        let mut found = Vec::new();
        let mut cursor = None;
        loop {
            let page = listing.page(&mapping, Some(view), prefix, cursor.as_deref(), 1).expect("a page");
            found.extend(uris(&page));
            cursor = page.cursor;
            if cursor.is_none() {
                return found;
            }
        }
    };
    assert_eq!(all(&rules(1), "/shut/"), ["/shut/open/b", "/shut/open/c/d", "/shut/x", "/shut/y/z"]);
    assert_eq!(all(&rules(2), "/"), ["/a", "/shut/open/b", "/shut/open/c/d", "/shut2/e"]);
    assert_eq!(all(&rules(3), "/"), ["/a", "/shut2/e"]);
    assert!(all(&rules(3), "/shut/open/").is_empty());
}
