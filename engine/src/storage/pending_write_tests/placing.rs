//! Where a put may go: to regular files inside the root, in directories that exist or that it makes, while those move.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[test]
fn a_directory_hands_its_group_down_as_to_any_file_made_in_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, to give a directory to another group");
        return;
    }
    let tree = Tree::new();
    std::fs::create_dir(tree.path("shared")).expect("a directory");
    std::os::unix::fs::chown(tree.path("shared"), None, Some(4711)).expect("another group");
    std::fs::set_permissions(tree.path("shared"), std::fs::Permissions::from_mode(0o2775))
        .expect("permissions");
    let gid = |name: &str| std::fs::metadata(tree.path(name)).expect("there").gid();
    File::create(tree.path("shared/made")).expect("a file");
    tree.put("/shared/object", b"x", ALWAYS).expect("put");
    assert_eq!((gid("shared/object"), gid("shared/made")), (4711, 4711));
}

#[test]
fn only_regular_files_are_replaced() {
    Tree::each(|tree| {
        std::fs::create_dir(tree.path("directory")).expect("a directory");
        std::fs::write(tree.path("object"), "whole").expect("a file");
        symlink("object", tree.path("link")).expect("a link");
        fs::mknodat(CWD, tree.path("fifo"), fs::FileType::Fifo, Permissions::RWXU, 0).expect("a FIFO");
        for (uri, error) in [
            ("/directory", Error::IsDirectory),
            ("/link", Error::WriteToLink),
            ("/fifo", Error::NotRegular),
            ("/object/below", Error::NotDirectory),
            ("/missing/object", Error::NoDirectory),
            ("/link/below", Error::Symlink),
            ("/.objmapper/object", Error::NotFound),
        ] {
            assert_eq!(tree.refusal(uri), error, "{uri}");
        }
        assert_eq!(tree.refusal(&"n".repeat(256)), Error::BadPath);
        // The target may also become one while the content comes.
        let pending = tree.begin("/later").expect("begun");
        std::fs::create_dir(tree.path("later")).expect("a directory");
        assert_eq!(pending.commit(ALWAYS), Err(Error::IsDirectory));
        assert_eq!(tree.content("object"), b"whole");
    });
}

#[test]
fn parents_are_made_on_request() {
    Tree::each(|tree| {
        std::fs::create_dir(tree.path("there")).expect("a directory");
        for path in [c"a/b/c/object", c"there/d/object", c"there/object", c"object"] {
            let mut pending = tree.staging.begin(path, true).expect("begun");
            pending.write(b"deep").expect("written");
            pending.commit(ALWAYS).expect("committed");
            assert_eq!(tree.content(path.to_str().expect("UTF-8")), b"deep");
        }
        assert_eq!(tree.staging.begin(c"object/x/y", true).map(|_| ()), Err(Error::NotDirectory));
        let deep = CString::new("d/".repeat(200) + "object").expect("a path");
        tree.staging.begin(&deep, true).expect("begun").commit(ALWAYS).expect("committed");
        assert_eq!(tree.mapping.stat(&deep).map(|found| found.size), Ok(0));
    });
}

#[test]
fn parents_may_be_made_by_many_at_once() {
    let tree = Tree::new();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let staging = &tree.staging;
            scope.spawn(move || {
                for round in 0..4 {
                    let path = CString::new(format!("{round}/b/c/d/{writer}")).expect("a path");
                    staging.begin(&path, true).expect("begun").commit(ALWAYS).expect("committed");
                }
            });
        }
    });
    for round in 0..4 {
        assert_eq!(names(&tree.path(&format!("{round}/b/c/d"))).len(), 8);
    }
}

#[test]
fn puts_do_not_follow_links_out_of_the_root() {
    for follow_symlinks in [false, true] {
        let tree = Tree::new();
        let outside = tree.above.path().join("outside");
        std::fs::create_dir(&outside).expect("a directory");
        symlink("../outside", tree.path("link")).expect("a link");
        symlink(&outside, tree.path("absolute")).expect("a link");
        let mapping = Mapping::new(&tree.path(""), follow_symlinks).expect("a mapping");
        let staging = Staging::new(&mapping).expect("a staging directory");
        let refused = if follow_symlinks { Error::Outside } else { Error::Symlink };
        for path in [c"link/object", c"absolute/object", c"link/new/object"] {
            for make_parents in [false, true] {
                assert_eq!(staging.begin(path, make_parents).map(|_| ()), Err(refused), "{path:?}");
            }
            assert!(staging.delete(path, None).is_err());
        }
        assert!(names(&outside).is_empty());
    }
}

#[test]
fn a_directory_replaced_by_a_link_leads_nowhere() {
    let tree = Tree::new();
    let outside = tree.above.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::create_dir(tree.path("real")).expect("a directory");
    std::fs::create_dir(tree.path("there")).expect("a directory");
    symlink(&outside, tree.path("link")).expect("a link");
    // One exchange per attempt, at any moment of it; each begins with the state that the previous one left.
    let (begun, answered, exchanged) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let mut answers = Vec::new();
    // This scope must not panic: the other thread would wait for ever.
    let exchanges = std::thread::scope(|scope| {
        let (begun, answered, exchanged, tree) = (&begun, &answered, &exchanged, &tree);
        let exchanges = scope.spawn(move || {
            let exchange = |attempt| {
                // One exchange of ten follows a put into the directory, however fast either thread runs.
                let awaited = if attempt % 10 == 1 { answered } else { begun };
                while awaited.load(SeqCst) < attempt {
                    std::thread::yield_now();
                }
                (0..attempt * 150).for_each(|_| std::hint::spin_loop());
                let (there, link) = (tree.path("there"), tree.path("link"));
                let answer = fs::renameat_with(CWD, there, CWD, link, RenameFlags::EXCHANGE);
                exchanged.store(attempt, SeqCst);
                answer
            };
            (1..=ATTEMPTS).map(exchange).collect::<Vec<_>>()
        });
        for attempt in 1..=ATTEMPTS {
            let path = CString::new(format!("there/{attempt}/object")).unwrap_or_default();
            begun.store(attempt, SeqCst);
            answers.push(tree.staging.begin(&path, true).and_then(|pending| pending.commit(ALWAYS)));
            answered.store(attempt, SeqCst);
            let _ = tree.staging.delete(&path, None);
            while exchanged.load(SeqCst) < attempt {
                std::thread::yield_now();
            }
        }
        exchanges.join()
    });
    assert!(exchanges.expect("no panic").iter().all(Result::is_ok));
    let refusals: Vec<_> = answers.iter().filter_map(|answer| answer.err()).collect();
    for error in &refusals {
        // NoDirectory: the put found the directory before the exchange, and looked for it after.
        let raced = [Error::Symlink, Error::NotDirectory, Error::NoDirectory, Error::Outside];
        assert!(raced.contains(error) || matches!(error, Error::Busy(_)), "{error:?}");
    }
    assert!(!refusals.is_empty() && refusals.len() < answers.len(), "{} refused", refusals.len());
    assert!(names(&outside).is_empty());
}

const ATTEMPTS: u32 = 150;

#[test]
fn a_put_whose_directory_was_moved_meanwhile_is_refused() {
    Tree::each(|tree| {
        let begun = |tree: &Tree| {
            std::fs::create_dir_all(tree.path("above/before")).expect("a directory");
            let mut pending = tree.begin("/above/before/object").expect("begun");
            pending.write(b"moved").expect("written");
            pending
        };
        let outside = tree.above.path().join("outside");
        for (from, to) in [
            (tree.path("above/before"), tree.path("after")),
            (tree.path("above/before"), outside.clone()),
            (tree.path("above"), outside.clone()),
        ] {
            let pending = begun(tree);
            std::fs::rename(&from, &to).expect("renamed");
            assert_eq!(pending.commit(ALWAYS), Err(Error::NoDirectory), "to {to:?}");
            assert!(names(&to).iter().all(|name| name != "object"), "{:?}", names(&to));
            std::fs::remove_dir_all(&to).expect("removed");
        }
        // Another directory with the same name.
        let pending = begun(tree);
        std::fs::rename(tree.path("above/before"), &outside).expect("renamed");
        std::fs::create_dir(tree.path("above/before")).expect("a directory");
        assert!(matches!(pending.commit(ALWAYS), Err(Error::Busy(_))));
        assert!(names(&outside).is_empty() && names(&tree.path("above/before")).is_empty());
        std::fs::remove_dir_all(&outside).expect("removed");
        // The directory has been removed.
        let pending = begun(tree);
        std::fs::remove_dir_all(tree.path("above")).expect("removed");
        assert_eq!(pending.commit(ALWAYS), Err(Error::NoDirectory));
        assert!(tree.names().is_empty(), "{:?}", tree.names());
        assert!(names_in_staging(&tree.path("")).is_empty());
    });
}

#[test]
fn a_directory_that_is_exchanged_continuously_is_detected() {
    let tree = Tree::new();
    let outside = tree.above.path().join("outside");
    for directory in [&outside, &tree.path("there")] {
        std::fs::create_dir(directory).expect("a directory");
    }
    let ended = std::sync::atomic::AtomicBool::new(false);
    let attempts = AtomicU32::new(0);
    let is_left_alone = |attempt: u32| attempt % 4 == 3;
    let (mut stored, mut refused, mut deleted) = (0, Vec::new(), Vec::new());
    // This scope asserts nothing: after a panic the mover would go on, and the scope waits for it.
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            while !ended.load(SeqCst) {
                if is_left_alone(attempts.load(SeqCst)) {
                    std::thread::sleep(Duration::from_micros(100));
                    continue;
                }
                let (there, outside) = (tree.path("there"), &outside);
                fs::renameat_with(CWD, there, CWD, outside, RenameFlags::EXCHANGE).expect("exchanged");
                std::thread::yield_now();
            }
        });
        // On a slow disk one put spans hundreds of exchanges, so few puts find the same directory at each
        // look-up. The mover leaves one put of four alone, so that some succeed on any disk.
        let deadline = Instant::now() + Duration::from_secs(120);
        for attempt in 0.. {
            attempts.store(attempt, SeqCst);
            let path = CString::new(format!("there/{}/object", attempt % 5)).unwrap_or_default();
            match tree.staging.begin(&path, true).and_then(|pending| pending.commit(ALWAYS)) {
                Ok(_) => stored += 1,
                Err(error) => refused.push(error),
            }
            deleted.push(tree.staging.delete(&path, None).map(|_| ()));
            if (stored > 2 && refused.len() > 20) || Instant::now() > deadline {
                break;
            }
        }
        ended.store(true, SeqCst);
        mover.join().expect("moved");
    });
    let raced = |error: &Error| matches!(error, Error::NoDirectory | Error::Outside | Error::Busy(_));
    assert!(stored > 0 && !refused.is_empty(), "{stored} stored, {} refused", refused.len());
    assert!(refused.iter().all(raced), "{refused:?}");
    let kept: Vec<_> = deleted.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(kept.iter().all(|error| raced(error) || **error == Error::NotFound), "{kept:?}");
    assert!(names_in_staging(&tree.path("")).is_empty());
}

#[test]
fn a_delete_whose_directory_was_moved_is_refused() {
    let tree = Tree::new();
    std::fs::create_dir(tree.path("before")).expect("a directory");
    std::fs::write(tree.path("before/object"), "kept").expect("a file");
    let target = Target::find(&tree.mapping, c"before/object").expect("found");
    target.confirm(&tree.mapping).expect("still there");
    let outside = tree.above.path().join("outside");
    std::fs::rename(tree.path("before"), &outside).expect("renamed");
    assert_eq!(target.confirm(&tree.mapping), Err(Error::NoDirectory));
    std::fs::create_dir(tree.path("before")).expect("a directory");
    assert!(matches!(target.confirm(&tree.mapping), Err(Error::Busy(_))));
    assert_eq!(tree.staging.delete(c"before/object", None), Err(Error::NotFound));
    assert!(outside.join("object").exists());
}

#[test]
fn a_directory_that_the_server_may_not_write_to_is_refused_before_the_content_comes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, to make a directory of another user");
        return;
    }
    let tree = Tree::new();
    std::fs::create_dir(tree.path("theirs")).expect("a directory");
    let tree = &tree;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Affects this thread only: without capabilities, root is an owner like any other.
            rustix::thread::set_capabilities(
                None,
                rustix::thread::CapabilitySets {
                    effective: rustix::thread::CapabilitySet::empty(),
                    permitted: rustix::thread::CapabilitySet::empty(),
                    inheritable: rustix::thread::CapabilitySet::empty(),
                },
            )
            .expect("dropped");
            std::fs::set_permissions(tree.path("theirs"), std::fs::Permissions::from_mode(0o500))
                .expect("permissions");
            assert_eq!(tree.refusal("/theirs/object"), Error::MayNotWrite);
            assert_eq!(tree.staging.begin(c"theirs/new/object", true).map(|_| ()), Err(Error::MayNotWrite));
            std::fs::set_permissions(tree.path("theirs"), std::fs::Permissions::from_mode(0o700))
                .expect("permissions");
            tree.put("/theirs/object", b"x", ALWAYS).expect("put without any capability");
            std::fs::set_permissions(tree.path("theirs"), std::fs::Permissions::from_mode(0o500))
                .expect("permissions");
            assert_eq!(tree.staging.delete(c"theirs/object", None), Err(Error::MayNotWrite));
        });
    });
}
