//! The staging directory: made, locked, swept, removed; and deletes. On real directories.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::storage::mapping::relative_path;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use tempfile::TempDir;

fn mapping(root: &TempDir) -> Mapping {
    Mapping::new(root.path(), false).expect("a mapping")
}

fn staging(root: &TempDir) -> Staging {
    Staging::new(&mapping(root)).expect("a staging directory")
}

/// The names in `.objmapper`; None where it does not exist.
fn staged(root: &TempDir) -> Option<Vec<String>> {
    let entries = std::fs::read_dir(root.path().join(RESERVED)).ok()?;
    Some(entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect())
}

fn put(staging: &Staging, path: &CStr, content: &str) {
    let mut pending = staging.begin(path, false).expect("begun");
    pending.write(content.as_bytes()).expect("written");
    pending.commit(Conditions::default()).expect("committed");
}

/// The remains of a killed server: a directory without a lock.
fn abandoned(root: &TempDir, name: &str, files: &[&str]) -> PathBuf {
    let directory = root.path().join(RESERVED).join(name);
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).expect("permissions");
    for file in files {
        std::fs::write(directory.join(file), "unfinished").expect("a file");
    }
    directory
}

#[test]
fn the_directory_exists_while_the_server_runs_and_is_private() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    let names = staged(&root).expect("made");
    assert_eq!(names.len(), 1);
    assert!(is_ours(names[0].as_bytes()), "{names:?}");
    for path in [root.path().join(RESERVED), root.path().join(RESERVED).join(&names[0])] {
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700, "{path:?}");
    }
    assert!(staging.notices().is_empty());
    drop(staging);
    assert_eq!(staged(&root), None);
}

#[test]
fn a_put_under_way_keeps_the_directory_of_a_server_that_stops() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    let mut pending = staging.begin(c"object", false).expect("begun");
    drop(staging);
    assert!(staged(&root).is_some());
    pending.write(b"late").expect("written");
    pending.commit(Conditions::default()).expect("committed");
    assert_eq!(std::fs::read(root.path().join("object")).expect("there"), b"late");
    assert_eq!(staged(&root), None);
}

#[test]
fn a_dead_servers_directory_is_swept() {
    let root = tempfile::tempdir().expect("a directory");
    abandoned(&root, "4711-0123456789abcdef", &["0", "1"]);
    abandoned(&root, "4712-0123456789abcdef", &[]);
    let staging = staging(&root);
    assert_eq!(staged(&root).expect("made").len(), 1);
    let notices = staging.notices().join("\n");
    assert!(notices.contains("4711-0123456789abcdef") && notices.contains("2 unfinished"), "{notices}");
}

#[test]
fn the_directory_of_a_living_server_is_left_alone() {
    let root = tempfile::tempdir().expect("a directory");
    let first = staging(&root).with_named_files();
    let mut pending = first.begin(c"object", false).expect("begun");
    let second = staging(&root);
    assert_eq!(staged(&root).expect("made").len(), 2);
    assert!(second.notices().is_empty());
    drop(second);
    pending.write(b"whole").expect("written");
    pending.commit(Conditions::default()).expect("committed");
    drop(first);
    assert_eq!(staged(&root), None);
}

#[test]
fn only_directories_of_this_users_servers_are_swept() {
    let root = tempfile::tempdir().expect("a directory");
    let other_name = abandoned(&root, "notes", &["kept"]);
    let other_mode = abandoned(&root, "4711-0123456789abcdef", &["kept"]);
    std::fs::set_permissions(&other_mode, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::fs::write(elsewhere.path().join("kept"), "").expect("a file");
    symlink(elsewhere.path(), root.path().join(RESERVED).join("4712-0123456789abcdef")).expect("a link");
    drop(staging(&root));
    for directory in [&other_name, &other_mode, &elsewhere.path().to_owned()] {
        assert!(directory.join("kept").exists(), "{directory:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_swept_is_reported_and_the_start_goes_on() {
    let root = tempfile::tempdir().expect("a directory");
    let odd = abandoned(&root, "4711-0123456789abcdef", &[]);
    std::fs::create_dir(odd.join("directory")).expect("a directory");
    let staging = staging(&root);
    assert!(staging.notices()[0].contains("cannot remove .objmapper/4711-0123456789abcdef"));
    put(&staging, c"object", "whole");
}

#[test]
fn servers_that_start_and_stop_at_the_same_time_do_not_sweep_each_other() {
    let root = tempfile::tempdir().expect("a directory");
    std::thread::scope(|scope| {
        for server in 0..8 {
            let root = &root;
            scope.spawn(move || {
                for _ in 0..25 {
                    // Files with names, so that a wrong sweep of the directory would show.
                    let staging = staging(root).with_named_files();
                    let path = CString::new(format!("object-{server}")).expect("a path");
                    put(&staging, &path, "whole");
                    assert!(staging.notices().is_empty(), "{:?}", staging.notices());
                }
            });
        }
    });
    assert_eq!(staged(&root), None);
    assert_eq!(std::fs::read_dir(root.path()).expect("readable").count(), 8);
}

#[test]
fn an_obstacle_to_the_directory_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::write(root.path().join(RESERVED), "a file").expect("a file");
    let error = Staging::new(&mapping(&root)).expect_err("refused");
    assert!(error.subject.ends_with("/.objmapper"), "{error}");
    assert!(error.message.contains("move the existing file away"), "{error}");
    std::fs::remove_file(root.path().join(RESERVED)).expect("removed");
    symlink("elsewhere", root.path().join(RESERVED)).expect("a link");
    assert!(
        Staging::new(&mapping(&root)).expect_err("refused").message.contains("move the existing file away")
    );
}

#[test]
fn a_staging_directory_that_was_removed_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    let pending = staging.begin(c"object", false).expect("begun");
    std::fs::remove_dir_all(root.path().join(RESERVED)).expect("removed");
    assert_eq!(pending.commit(Conditions::default()), Err(Error::StagingGone));
    let named = staging.with_named_files();
    assert_eq!(named.begin(c"object", false).map(|_| ()), Err(Error::StagingGone));
}

#[test]
fn no_uri_leads_into_it() {
    let mut path = Vec::new();
    for uri in [
        "/.objmapper",
        ".objmapper",
        "/.objmapper/1-0123456789abcdef/0",
        "/sub/.objmapper",
        "/sub/deeper/.objmapper/1-0123456789abcdef/0",
        "/.ObjMapper/x",
    ] {
        assert_eq!(relative_path(uri, &mut path), Err(Error::NotFound), "{uri}");
    }
    assert_eq!(relative_path("/sub/.objmapper/../x", &mut path), Err(Error::BadPath));
    for uri in ["/sub/.objmapper2", "/.objmapper2", "/.objmappe", "/x.objmapper"] {
        assert!(relative_path(uri, &mut path).is_ok(), "{uri}");
    }
}

#[test]
fn no_link_leads_into_that_of_a_server_below() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(root.path().join("sub")).expect("a directory");
    std::fs::write(root.path().join("sub/object"), "whole").expect("a file");
    let below = Staging::new(&Mapping::new(&root.path().join("sub"), false).expect("a mapping"))
        .expect("a staging directory")
        .with_named_files();
    let mut pending = below.begin(c"new", false).expect("begun");
    pending.write(b"unfinished").expect("written");
    let own = &std::fs::read_dir(root.path().join("sub/.objmapper")).expect("there").next().expect("one");
    let own = own.as_ref().expect("readable").file_name().into_string().expect("UTF-8");
    let unfinished = std::fs::read_dir(root.path().join("sub/.objmapper").join(&own)).expect("there").next();
    let unfinished = unfinished.expect("one").expect("readable").file_name().into_string().expect("UTF-8");
    let to_file = format!("sub/.objmapper/{own}/{unfinished}");
    for (link, to) in [
        ("file", &*to_file),
        ("directory", &*format!("sub/.objmapper/{own}")),
        ("top", "sub/.objmapper"),
        ("fair", "sub"),
    ] {
        symlink(to, root.path().join(link)).expect("a link");
    }
    let mapping = Mapping::new(root.path(), true).expect("a mapping");
    let staging = Staging::new(&mapping).expect("a staging directory");
    for path in ["file", &*format!("directory/{unfinished}"), &*format!("top/{own}/{unfinished}")] {
        let path = CString::new(path).expect("a path");
        assert_eq!(mapping.open(&path).map(|_| ()), Err(Error::NotFound), "{path:?}");
        assert_eq!(mapping.stat(&path).map(|_| ()), Err(Error::NotFound), "{path:?}");
        assert!(matches!(mapping.open_cached(&path), Ok(None) | Err(Error::NotFound)), "{path:?}");
        assert!(staging.delete(&path, None).is_err(), "{path:?}");
    }
    for path in [c"directory/planted", c"top/planted", c"top/new/planted"] {
        assert_eq!(staging.begin(path, true).map(|_| ()), Err(Error::NoDirectory), "{path:?}");
    }
    let listing = crate::storage::listing::Listing::default();
    let page = |prefix| listing.page(&mapping, None, prefix, None, 0).map(|page| page.count);
    // `sub/object`; a list does not follow links to directories, and `file` leads into the staging directory.
    assert_eq!(page("/"), Ok(1));
    assert_eq!(page("/fair/"), Ok(1));
    assert_eq!((page("/top/"), page("/directory/")), (Ok(0), Ok(0)));
    assert_eq!(page("/sub/.objmapper/"), Err(Error::NotFound));
    // A root that itself lies below such a directory serves its objects, behind links too.
    let odd = root.path().join(".objmapper/odd");
    std::fs::create_dir_all(&odd).expect("a directory");
    std::fs::write(odd.join("object"), "whole").expect("a file");
    symlink("object", odd.join("link")).expect("a link");
    assert_eq!(Mapping::new(&odd, true).expect("a mapping").stat(c"link").map(|found| found.size), Ok(5));
    drop(pending);
}

#[test]
fn a_deleted_object_is_gone() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    std::fs::create_dir(root.path().join("sub")).expect("a directory");
    put(&staging, c"sub/object", "whole");
    assert_eq!(staging.delete(c"sub/object", None), Ok(()));
    assert!(!root.path().join("sub/object").exists());
    assert_eq!(staging.delete(c"sub/object", None), Err(Error::NotFound));
    assert_eq!(staging.delete(c"missing/object", None), Err(Error::NotFound));
}

#[test]
fn a_delete_may_require_a_version() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    put(&staging, c"object", "first");
    let first = mapping(&root).stat(c"object").expect("there").etag();
    put(&staging, c"object", "second");
    assert_eq!(staging.delete(c"object", Some(Match::Etag(first))), Err(Error::Conflict));
    assert!(root.path().join("object").exists());
    let second = mapping(&root).stat(c"object").expect("there").etag();
    assert_eq!(staging.delete(c"object", Some(Match::Etag(second))), Ok(()));
    assert_eq!(staging.delete(c"object", Some(Match::Any)), Err(Error::NotFound));
}

#[test]
fn only_regular_files_are_deleted() {
    let root = tempfile::tempdir().expect("a directory");
    let staging = staging(&root);
    std::fs::create_dir(root.path().join("directory")).expect("a directory");
    File::create(root.path().join("object")).expect("a file");
    symlink("object", root.path().join("link")).expect("a link");
    fs::mknodat(CWD, root.path().join("fifo"), fs::FileType::Fifo, Permissions::RWXU, 0).expect("a FIFO");
    for (path, error) in [
        (c"directory", Error::IsDirectory),
        (c"link", Error::WriteToLink),
        (c"fifo", Error::NotRegular),
        (c"object/below", Error::NotFound),
    ] {
        assert_eq!(staging.delete(path, None), Err(error), "{path:?}");
    }
    assert_eq!(std::fs::read_dir(root.path()).expect("readable").count(), 5);
}

#[test]
fn etags_of_requests_are_hex_digits_or_a_star() {
    assert_eq!(Match::parse(b"*"), Ok(Match::Any));
    assert_eq!(Match::parse(b"0123456789abcdef"), Ok(Match::Etag(*b"0123456789abcdef")));
    assert_eq!(Match::parse(b"0123456789ABCDEF"), Ok(Match::Etag(*b"0123456789abcdef")));
    for bytes in [&b""[..], b"**", b"0123456789abcde", b"0123456789abcdef0", b"0123456789abcdeg"] {
        assert_eq!(Match::parse(bytes), Err(Error::BadEtag), "{bytes:?}");
    }
}
