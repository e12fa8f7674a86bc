//! Where a page ends, and that the next one goes on there, by a cursor that cannot be forged.

use super::*;

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
