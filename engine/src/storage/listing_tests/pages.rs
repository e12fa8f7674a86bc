//! Where a page ends, and that the next one continues there, by a cursor that cannot be forged.

use super::*;

#[test]
fn pages_of_every_size_make_the_same_listing() {
    let root = tree(&["a", "b/a", "b/b/a", "b/b/b", "b/c", "c/a", "d", "e/f/g/h", "e/f/i", "j"]);
    std::fs::create_dir_all(root.path().join("empty/of/all")).expect("directories");
    let whole = list(&root, "/");
    assert_eq!(whole.len(), 10);
    for names in [1, 2, 3, 1000] {
        let listing = Listing::with_batches_of(names);
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
fn a_page_can_be_requested_again() {
    let objects: Vec<_> = (0..2000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::with_batches_of(700), mapping(&root));
    let first = listing.page(&mapping, None, "/", None, 10).expect("a page");
    let second = || listing.page(&mapping, None, "/", first.cursor.as_deref(), 10).expect("a page");
    let once = second();
    listing.page(&mapping, None, "/", once.cursor.as_deref(), 1000).expect("a page");
    assert_eq!(uris(&second()), uris(&once));
    // A restarted server accepts the cursor as well.
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
    assert!(page.entries.len() <= MAX_PAGE_BYTES && page.entries.len() > MAX_PAGE_BYTES - 1000);
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
fn pages_of_few_bytes_make_the_same_listing() {
    let name = "n".repeat(200);
    let objects: Vec<_> = (0..500).map(|at| format!("{at:05}-{name}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let request = PageRequest {
            session: 0,
            form: Form::Plain,
            view: None,
            prefix: "/".into(),
            cursor,
            limit: MAX_LIMIT,
        };
        let page = listing.whole_of(&mapping, request, 16 << 10).expect("a page");
        assert!(page.entries.len() <= 16 << 10 && page.entries.capacity() < page.entries.len() + 64);
        listed.extend(uris(&page));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
        assert!(page.entries.len() > (16 << 10) - 300, "a full page, or the last");
    }
    assert_eq!(listed, objects.iter().map(|object| format!("/{object}")).collect::<Vec<_>>());
}

#[test]
fn a_cursor_is_valid_for_its_own_listing_only_and_only_whole() {
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
        let cursor = Cursor { listing: 0, after: after.into() }.encode(b"", &RandomState::new(), 0);
        let page = Listing::default().page(&mapping(&root), None, "/", Some(&cursor), 0).expect("a page");
        assert!(uris(&page).iter().all(|uri| ["/a/1", "/b"].contains(&&**uri)), "{after:?}");
    }
    std::fs::remove_file(root.path().join("../secret-of-listing-tests")).expect("removed");
}

#[test]
fn a_page_ends_after_its_limit_of_directories_even_without_an_object() {
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
fn cursors_of_other_sessions_and_servers_get_no_saved_batches() {
    let objects: Vec<_> = (0..3000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let page = |listing: &Listing, session, cursor: Option<Vec<u8>>| {
        let request =
            PageRequest { session, form: Form::Plain, view: None, prefix: "/".into(), cursor, limit: 10 };
        listing.whole(&mapping, request).expect("a page")
    };
    let victim = page(&listing, 1, None).cursor.expect("more to come");
    let at = victim[1..9].try_into().map(u64::from_be_bytes).expect("the number of the listing");
    // Read before the object is put, under the number of the victim's listing.
    let forged = Cursor { listing: at, after: b"0004".to_vec() }.encode(b"", &RandomState::new(), 2);
    for _ in 0..3 {
        page(&listing, 2, Some(forged.clone()));
        page(&listing, 2, Some(victim.clone()));
    }
    make(root.path(), "2000-new");
    let of_victim = || listing.kept().iter().filter(|kept| kept.listing == at).count();
    assert_eq!(of_victim(), 1, "its own");
    listing.forget(1);
    assert_eq!(of_victim(), 0);
    let mut listed = Vec::new();
    let mut cursor = Some(victim);
    while let Some(next) = cursor {
        let next = page(&listing, 1, Some(next));
        listed.extend(uris(&next));
        cursor = next.cursor;
    }
    assert!(listed.contains(&"/2000-new".to_owned()));
    // Another server uses other numbers, so a cursor from before a restart matches no listing.
    let other = page(&Listing::default(), 1, None).cursor.expect("more to come");
    assert_ne!(other[1..9], at.to_be_bytes());
}

#[test]
fn batches_saved_too_long_are_not_used() {
    let objects: Vec<_> = (0..3000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let first = listing.page(&mapping, None, "/", None, 10).expect("a page");
    make(root.path(), "0010-new");
    let second = || uris(&listing.page(&mapping, None, "/", first.cursor.as_deref(), 2).expect("a page"));
    let Some(long_ago) = Instant::now().checked_sub(MAX_AGE + Duration::from_secs(1)) else {
        return eprintln!("the clock began less than a minute ago");
    };
    assert_eq!(second(), ["/0010", "/0011"], "kept as it was read");
    listing.kept().iter_mut().for_each(|kept| kept.since = long_ago);
    assert_eq!(second(), ["/0010", "/0010-new"]);
    listing.kept().iter_mut().for_each(|kept| kept.since = long_ago);
    listing.sweep();
    assert!(listing.kept().is_empty());
}

#[test]
fn an_abandoned_page_restarts_with_its_batches() {
    let names: Vec<String> = (0..600).map(|number| format!("{number:03}")).collect();
    let root = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let (mapping, listing) = (mapping(&root), Listing::default());
    let prefix = String::from("/");
    let request = PageRequest { session: 7, form: Form::Plain, view: None, prefix, cursor: None, limit: 0 };
    let begin = || listing.begin(request.clone(), MAX_PAGE_BYTES).expect("a page");
    let turn = |paging: &mut Paging| listing.advance(&mapping, paging, &|| true).expect("a turn");
    let mut given_up = begin();
    while given_up.page.count == 0 {
        assert!(turn(&mut given_up).is_none());
    }
    listing.save_batches(&mut given_up);
    assert_eq!(listing.kept().len(), 1);
    // Another listing gets none of these batches.
    turn(&mut begin());
    assert_eq!(listing.kept().len(), 1);
    let mut again = begin().with_listing(given_up.listing());
    turn(&mut again);
    assert_eq!(listing.kept().len(), 0, "taken");
    let page = std::iter::repeat_with(|| turn(&mut again)).flatten().next().expect("a page");
    assert_eq!((page.count, page.cursor), (600, None));
    assert_eq!(listing.kept().len(), 0);
}

#[test]
fn a_page_has_an_entry_however_few_bytes_fit() {
    let root = tree(&["a", "b/c", "d"]);
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let (mut listed, mut cursor) = (Vec::new(), None);
    for _ in 0..3 {
        let request = PageRequest {
            session: 0,
            form: Form::Detailed,
            view: None,
            prefix: "/".into(),
            cursor,
            limit: 10,
        };
        let page = listing.whole_of(&mapping, request, 1).expect("a page");
        assert_eq!(page.count, 1);
        listed.extend_from_slice(&page.entries[3..5]);
        cursor = page.cursor;
    }
    assert_eq!((listed, cursor), (b"/a/b/d".to_vec(), None));
}

#[test]
fn a_page_that_ends_early_has_enough_entries_and_the_next_goes_on_behind_them() {
    let name = "n".repeat(200);
    let objects: Vec<_> = (0..500).map(|at| format!("{at:05}-{name}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let request = |cursor| PageRequest {
        session: 0,
        form: Form::Plain,
        view: None,
        prefix: "/".to_owned(),
        cursor,
        limit: 500,
    };
    let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let mut paging = listing.begin(request(cursor), MAX_PAGE_BYTES).expect("a page");
        let page = loop {
            if let Some(whole) = listing.advance(&mapping, &mut paging, &|| true).expect("a turn") {
                break whole;
            }
            let length = paging.page.entries.len();
            match listing.cut(&mut paging) {
                Some(page) => {
                    assert!(page.cursor.is_some() && page.entries.len() == length && length >= 16 << 10);
                    break page;
                }
                None => assert!(length < 16 << 10),
            }
        };
        pages += 1;
        found.extend(uris(&page));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, objects.iter().map(|object| format!("/{object}")).collect::<Vec<_>>());
    assert!((5..=10).contains(&pages), "{pages}");
}
