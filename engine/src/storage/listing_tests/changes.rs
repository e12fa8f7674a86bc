//! Changes between two pages, and during one, do not affect other objects.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

#[test]
fn changes_between_pages_affect_no_other_entry() {
    let root = tree(&["a/1", "a/2", "b", "c/1", "d"]);
    for names in [1, 1000] {
        let (listing, mapping) = (Listing::with_batches_of(names), mapping(&root));
        let first = listing.page(&mapping, None, "/", None, 2).expect("a page");
        assert_eq!(uris(&first), ["/a/1", "/a/2"]);
        // The cursor names a directory that has been removed, or replaced by an object.
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
    // Its batch is kept, and lacks names added later.
    let earlier = listing.page(&mapping, None, "/", None, 10).expect("a page");
    make(root.path(), "1000-new");
    assert!(all(&listing, &mapping, "/", 10).expect("a listing").contains(&"/1000-new".to_owned()));
    assert!(listing.page(&mapping, None, "/", earlier.cursor.as_deref(), 10).is_ok());
}

/// Signals the other thread when this one ends or panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn each_lasting_object_is_listed_once_while_others_change() {
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
            let listing = Listing::with_batches_of(1 + round * 20);
            let mut listed = all(&listing, &mapping(&root), "/", 7 + round as u32).expect("a listing");
            assert!(listed.is_sorted_by(|one, next| one < next), "in order, and none twice");
            listed.retain(|uri| !uri.contains("passing"));
            assert!(listed.iter().eq(&stable));
        }
    });
}

/// A writer keeps replacing some of 20,000 objects. The kernel returns some 8,000 names of the directory in one call.
#[test]
fn each_object_is_listed_once_while_others_are_replaced_by_rename() {
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(root) = tempfile::tempdir_in(&place) else { continue };
        let objects: Vec<_> = (0..20_000).map(|at| format!("{at:05}")).collect();
        objects.iter().for_each(|object| drop(File::create(root.path().join(object)).expect("a file")));
        let stable: Vec<_> = objects.iter().map(|object| format!("/{object}")).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (done, root_path) = (&done, root.path());
            scope.spawn(move || {
                let elsewhere = tempfile::tempdir_in(&place).expect("a directory");
                for at in (0..).take_while(|_| !done.load(SeqCst)) {
                    let new = elsewhere.path().join("new");
                    File::create(&new).expect("a file");
                    std::fs::rename(&new, root_path.join(format!("{:05}", at * 7919 % 20_000)))
                        .expect("renamed");
                }
            });
            let _ends = Ends(done);
            for _ in 0..5 {
                let listing = Listing::default();
                let listed = all(&listing, &mapping(&root), "/", 10_000).expect("a listing");
                assert_eq!(listed.len(), stable.len());
                assert!(listed == stable, "each of them once");
            }
        });
    }
}
