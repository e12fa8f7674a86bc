//! Which objects are listed, and in what order.

use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

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
    for (prefix, request) in [
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
        assert_eq!(list(&root, prefix), request, "{prefix}");
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
fn only_readable_objects_are_listed() {
    let root = tree(&["object", "directory/object"]);
    let path = |name: &str| root.path().join(name);
    fs::mknodat(fs::CWD, path("fifo"), FileType::Fifo, fs::Mode::RWXU, 0).expect("a FIFO");
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
    std::fs::write(root.path().join(OsStr::from_bytes(b"not \xff UTF-8")), "").expect("a file");
    std::fs::create_dir(root.path().join(OsStr::from_bytes(b"nor \xfe"))).expect("a directory");
    std::fs::write(root.path().join(OsStr::from_bytes(b"nor \xfe/object")), "").expect("a file");
    std::fs::create_dir_all(path(".objmapper/1-0123456789abcdef")).expect("a directory");
    std::fs::write(path(".objmapper/1-0123456789abcdef/0"), "").expect("a file");
    // The files of a server whose root is the directory below.
    make(root.path(), "directory/.objmapper/1-0123456789abcdef/0");
    assert_eq!(list(&root, "/"), ["/directory/object", "/object"]);
    assert_eq!(list(&root, "/directory/.obj"), Vec::<String>::new());
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
    let root = tree(&["a/object", "b/object", "c/object", "d"]);
    let mode = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(root.path().join(name), permissions).expect("permissions");
    };
    mode("a", 0o000);
    mode("b", 0o400);
    without_capabilities(|| {
        assert_eq!(list(&root, "/"), ["/c/object", "/d"]);
        assert_eq!(list(&root, "/a/"), Vec::<String>::new());
    });
    mode("a", 0o700);
    mode("b", 0o700);
}

#[test]
fn paths_may_be_as_long_as_a_uri() {
    let root = tempfile::tempdir().expect("a directory");
    let mut directory = fs::open(root.path(), fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    let mut request = Vec::new();
    // 2,048 directories with a file in each: the longest path of a file that fits has 4,095 bytes.
    for depth in 0..=2048 {
        fs::openat(&directory, "f", fs::OFlags::CREATE | fs::OFlags::WRONLY, fs::Mode::RWXU).expect("a file");
        let path = "d/".repeat(depth) + "f";
        if path.len() < MAX_URI_LENGTH {
            request.push(format!("/{path}"));
        }
        fs::mkdirat(&directory, "d", fs::Mode::RWXU).expect("a directory");
        directory = fs::openat(&directory, "d", fs::OFlags::DIRECTORY, fs::Mode::empty()).expect("there");
    }
    request.reverse();
    assert_eq!(request[0].len(), 4096);
    request.sort();
    assert_eq!(all(&Listing::default(), &mapping(&root), "/", 100), Ok(request));
}

const MAX_URI_LENGTH: usize = crate::protocol::MAX_URI;

#[test]
fn hidden_objects_are_in_no_page() {
    let root = tree(&["a", "shut/x", "shut/y/z", "shut/open/b", "shut/open/c/d", "shut2/e"]);
    let rules = |uid| {
        let listed = |uids: &[u32]| crate::access::rules::IdSet::new(uids.to_vec(), Vec::new());
        let prefixes = vec![(b"shut"[..].into(), listed(&[1])), (b"shut/open"[..].into(), listed(&[1, 2]))];
        let rules = crate::access::rules::Rules::new(listed(&[]), prefixes, 0, 0);
        View::new(
            Arc::new(rules),
            Some(&crate::net::credentials::Credentials { pid: 1, uid, gids: Vec::new() }),
        )
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
