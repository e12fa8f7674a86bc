//! Tests of rules and views with invented clients.

use super::*;

fn client(uid: u32, gids: &[u32]) -> Credentials {
    Credentials { pid: 1, uid, gids: gids.to_vec() }
}

fn listed(uids: &[u32], gids: &[u32]) -> IdSet {
    IdSet::new(uids.to_vec(), gids.to_vec())
}

fn rules(prefixes: &[(&str, IdSet)]) -> Arc<Rules> {
    let prefixes = prefixes.iter().map(|(path, listed)| (path.as_bytes().into(), listed.clone())).collect();
    Arc::new(Rules::new(IdSet::default(), prefixes, 0, 0))
}

#[test]
fn a_listed_user_or_group_member_may_connect() {
    let rules = Rules::new(listed(&[7, 5], &[30]), Vec::new(), 0, 0);
    assert!(rules.admit(&client(5, &[1])));
    assert!(rules.admit(&client(9, &[1, 30])));
    assert!(!rules.admit(&client(30, &[5, 7])));
    assert!(!rules.admit(&Credentials::UNKNOWN));
    assert!(Rules::default().admit(&client(1, &[])));
}

#[test]
fn the_longest_prefix_that_covers_a_path_by_whole_names_decides() {
    let rules = rules(&[
        ("a", listed(&[1], &[])),
        ("a/b/c", listed(&[2], &[])),
        ("a/bc", listed(&[], &[])),
        ("z", listed(&[], &[9])),
    ]);
    let one = View::new(Arc::clone(&rules), Some(&client(1, &[])));
    let second_client = View::new(Arc::clone(&rules), Some(&client(2, &[9])));
    let may_use = |view: &View| {
        ["a", "a/x", "a/b", "a/b/c", "a/b/c/d", "a/b/cd", "a/bc", "a/bc/x", "ab", "z/x", "y"]
            .into_iter()
            .filter(|path| view.may_use(path.as_bytes()))
            .collect::<Vec<_>>()
    };
    assert_eq!(may_use(&one), ["a", "a/x", "a/b", "a/b/cd", "ab", "y"]);
    assert_eq!(may_use(&second_client), ["a/b/c", "a/b/c/d", "ab", "z/x", "y"]);
    assert_eq!(may_use(&View::new(rules, None)), ["ab", "y"]);
}

#[test]
fn a_list_for_the_root_applies_where_no_longer_prefix_does() {
    let rules = rules(&[("", listed(&[1], &[])), ("open", listed(&[2], &[]))]);
    let second_client = View::new(rules, Some(&client(2, &[])));
    assert!(!second_client.may_use(b"x"));
    assert!(!second_client.may_use(b""));
    assert!(second_client.may_use(b"open/x"));
}

#[test]
fn a_listing_hides_directories_without_usable_paths() {
    let rules = rules(&[
        ("shut", listed(&[1], &[])),
        ("shut/in/open", listed(&[2], &[])),
        ("gone", listed(&[1], &[])),
        ("gone2", listed(&[2], &[])),
    ]);
    let second_client = View::new(rules, Some(&client(2, &[])));
    let shown: Vec<_> =
        ["shut/", "shut/x", "shut/in/", "shut/in/open/", "shut/in/open/x", "shut/z/", "gone/", "/"]
            .into_iter()
            .filter(|path| !second_client.excludes(path.as_bytes()))
            .collect();
    assert_eq!(shown, ["shut/", "shut/in/", "shut/in/open/", "shut/in/open/x", "/"]);
}
