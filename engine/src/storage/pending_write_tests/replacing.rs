//! The object at a URI during a put and after it: the old one or the new one, whole, and no other file beside it.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

#[test]
fn a_put_object_has_the_reported_metadata() {
    Tree::each(|tree| {
        let mut pending = tree.begin("/object").expect("begun");
        pending.write(b"in ").expect("written");
        pending.write(b"").expect("written");
        pending.write(b"pieces").expect("written");
        assert_eq!(pending.size(), 9);
        assert!(!tree.path("object").exists(), "not before it is whole");
        let found = pending.commit(ALWAYS).expect("committed");
        assert_eq!(tree.content("object"), b"in pieces");
        assert_eq!(found.size, 9);
        assert_eq!(tree.mapping.stat(c"object"), Ok(found), "the etag holds from now on");
        assert_eq!(tree.names(), ["object"]);
    });
}

#[test]
fn a_dropped_write_leaves_nothing() {
    Tree::each(|tree| {
        let mut pending = tree.begin("/object").expect("begun");
        pending.write(b"unfinished").expect("written");
        drop(pending);
        assert!(tree.names().is_empty(), "{:?}", tree.names());
    });
}

#[test]
fn readers_of_a_replaced_object_keep_the_old_content() {
    Tree::each(|tree| {
        tree.put("/object", b"old", ALWAYS).expect("put");
        let old = File::open(tree.path("object")).expect("there");
        tree.put("/object", b"new and longer", ALWAYS).expect("put");
        assert_eq!(std::io::read_to_string(old).expect("readable"), "old");
        assert_eq!(tree.content("object"), b"new and longer");
    });
}

#[test]
fn permissions_are_those_of_the_umask_or_of_the_replaced_object() {
    Tree::each(|tree| {
        let mode = |name: &str| std::fs::metadata(tree.path(name)).expect("there").mode() & 0o7777;
        File::create(tree.path("made")).expect("a file");
        tree.put("/object", b"1", ALWAYS).expect("put");
        assert_eq!(mode("object"), mode("made"));
        std::fs::set_permissions(tree.path("object"), std::fs::Permissions::from_mode(0o4640))
            .expect("permissions");
        tree.put("/object", b"2", ALWAYS).expect("put");
        assert_eq!(mode("object"), 0o640, "no set-user-id on another user's upload");
    });
}

#[test]
fn conditions_are_checked_against_the_present_object() {
    Tree::each(|tree| {
        assert_eq!(tree.put("/object", b"x", ONLY_OVER_SOMETHING), Err(Error::Conflict));
        let first = tree.put("/object", b"first", ONLY_NEW).expect("put");
        assert_eq!(tree.put("/object", b"x", ONLY_NEW), Err(Error::Conflict));
        let second = tree.put("/object", b"second", only_over(first)).expect("put");
        assert_eq!(tree.put("/object", b"x", only_over(first)), Err(Error::Conflict));
        assert_eq!(tree.content("object"), b"second");
        let not_over_second = Conditions { if_match: None, if_none_match: Some(Match::Etag(second.etag())) };
        assert_eq!(tree.put("/object", b"x", not_over_second), Err(Error::Conflict));
        tree.put("/object", b"third", ONLY_OVER_SOMETHING).expect("put");
        tree.put("/object", b"fourth", not_over_second).expect("put");
        assert_eq!(tree.put("/missing", b"x", only_over(first)), Err(Error::Conflict));
        assert_eq!(tree.names(), ["object"]);
    });
}

#[test]
fn a_file_made_between_check_and_rename_is_detected_by_the_kernel() {
    Tree::each(|tree| {
        let mut pending = tree.begin("/object").expect("begun");
        pending.write(b"ours").expect("written");
        std::fs::write(tree.path("object"), "theirs").expect("a file");
        // The step after the check.
        assert_eq!(pending.rename(true), Err(Error::Conflict));
        drop(pending);
        assert_eq!(tree.content("object"), b"theirs");
        assert_eq!(tree.names(), ["object"]);
    });
}

#[test]
fn of_concurrent_conditional_puts_one_succeeds() {
    Tree::each(|tree| {
        let first = tree.put("/object", b"first", ALWAYS).expect("put");
        let winners = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let winners = &winners;
                scope.spawn(move || match tree.put("/object", &[writer; 1000], only_over(first)) {
                    Ok(_) => assert_eq!(winners.fetch_add(1, SeqCst), 0),
                    Err(error) => assert_eq!(error, Error::Conflict),
                });
            }
        });
        assert_eq!(winners.into_inner(), 1);
        assert_eq!(tree.names(), ["object"]);
    });
}

/// Signals the other thread when this one ends or panics.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_reader_sees_one_whole_object_or_the_other() {
    Tree::each(|tree| {
        tree.put("/object", &[0; 9000], ALWAYS).expect("put");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tree, done) = (&tree, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let content = tree.content("object");
                    assert_eq!(content.len(), 9000);
                    assert!(content.iter().all(|&byte| byte == content[0]));
                }
            });
            let _ends = Ends(done);
            for round in 1..30u8 {
                tree.put("/object", &[round; 9000], ALWAYS).expect("put");
            }
        });
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_content_is_stored_alike_however_it_is_split(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..8)) {
        let tree = Tree::new();
        let mut pending = tree.begin("/object").expect("begun");
        for piece in &pieces {
            pending.write(piece).expect("written");
        }
        let found = pending.commit(ALWAYS).expect("committed");
        prop_assert_eq!(found.size, pieces.iter().map(Vec::len).sum::<usize>() as u64);
        prop_assert_eq!(tree.content("object"), pieces.concat());
    }
}
