//! Rules, views and accounts, without a server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

fn client(uid: u32, gids: &[u32]) -> Credentials {
    Credentials { pid: 1, uid, gids: gids.to_vec() }
}

fn listed(uids: &[u32], gids: &[u32]) -> Listed {
    Listed::new(uids.to_vec(), gids.to_vec())
}

fn rules(prefixes: &[(&str, Listed)]) -> Arc<Rules> {
    let prefixes = prefixes.iter().map(|(path, listed)| (path.as_bytes().into(), listed.clone())).collect();
    Arc::new(Rules::new(Listed::default(), prefixes, 0, 0))
}

/// Both ends of a connection of this very process.
fn connected() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("sockets")
}

#[test]
fn whoever_is_named_by_user_or_by_any_group_may_connect() {
    let rules = Rules::new(listed(&[7, 5], &[30]), Vec::new(), 0, 0);
    assert!(rules.admit(&client(5, &[1])));
    assert!(rules.admit(&client(9, &[1, 30])));
    assert!(!rules.admit(&client(30, &[5, 7])));
    assert!(!rules.admit(&Credentials::NOBODY));
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
    let two = View::new(Arc::clone(&rules), Some(&client(2, &[9])));
    let may_use = |view: &View| {
        ["a", "a/x", "a/b", "a/b/c", "a/b/c/d", "a/b/cd", "a/bc", "a/bc/x", "ab", "z/x", "y"]
            .into_iter()
            .filter(|path| view.may_use(path.as_bytes()))
            .collect::<Vec<_>>()
    };
    assert_eq!(may_use(&one), ["a", "a/x", "a/b", "a/b/cd", "ab", "y"]);
    assert_eq!(may_use(&two), ["a/b/c", "a/b/c/d", "ab", "z/x", "y"]);
    assert_eq!(may_use(&View::new(rules, None)), ["ab", "y"]);
}

#[test]
fn a_list_for_everything_shuts_what_has_no_list_of_its_own() {
    let rules = rules(&[("", listed(&[1], &[])), ("open", listed(&[2], &[]))]);
    let two = View::new(rules, Some(&client(2, &[])));
    assert!(!two.may_use(b"x"));
    assert!(!two.may_use(b""));
    assert!(two.may_use(b"open/x"));
}

#[test]
fn a_listing_leaves_directories_out_unless_something_below_them_may_be_used() {
    let rules = rules(&[
        ("shut", listed(&[1], &[])),
        ("shut/in/open", listed(&[2], &[])),
        ("gone", listed(&[1], &[])),
        ("gone2", listed(&[2], &[])),
    ]);
    let two = View::new(rules, Some(&client(2, &[])));
    let shown: Vec<_> =
        ["shut/", "shut/x", "shut/in/", "shut/in/open/", "shut/in/open/x", "shut/z/", "gone/", "/"]
            .into_iter()
            .filter(|path| !two.hides(path.as_bytes()))
            .collect();
    assert_eq!(shown, ["shut/", "shut/in/", "shut/in/open/", "shut/in/open/x", "/"]);
}

#[test]
fn without_rules_nothing_is_asked() {
    let peers = Peers::default();
    let (_, theirs) = connected();
    assert_eq!(peers.generation(), 0);
    assert!(peers.admit(&theirs, Transport::Unix).expect("let in").is_none());
}

#[test]
fn a_user_has_as_many_connections_as_one_may_have() {
    let peers = Peers::default();
    peers.set(Rules::new(Listed::default(), Vec::new(), 2, 0));
    let (_, socket) = connected();
    let first = peers.admit(&socket, Transport::Unix).expect("the first").expect("counted");
    let second = peers.admit(&socket, Transport::Unix).expect("the second").expect("counted");
    assert!(matches!(peers.admit(&socket, Transport::Unix), Err(Error::Busy(_))));
    assert_eq!(first.account().expect("a user").counts().0, 2);
    drop(second);
    let third = peers.admit(&socket, Transport::Unix).expect("room again").expect("counted");
    // Other transports have no users.
    assert!(peers.admit(&socket, Transport::Tcp).expect("let in").is_none());
    let counts: Vec<_> = peers.refusals.counts().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, [("connections", 1)]);
    drop((first, third));
    assert!(lock(&peers.accounts).values().all(|account| account.upgrade().is_none()));
}

#[test]
fn who_is_in_is_judged_by_new_rules_and_counted_once() {
    let peers = Peers::default();
    let (_, socket) = connected();
    peers.set(Rules::new(Listed::default(), Vec::new(), 1, 0));
    let guest = peers.admit(&socket, Transport::Unix).expect("let in");
    let nobody = Rules::new(listed(&[u32::MAX - 1], &[]), Vec::new(), 1, 0);
    peers.set(nobody.clone());
    let before = peers.generation();
    peers.set(nobody);
    assert_eq!(peers.generation(), before, "the same rules are no change");
    let guest = peers.judge_again(&socket, Transport::Unix, guest).expect("there are rules");
    assert_eq!(guest.check(b"a", &peers), Err(Error::NotAdmitted));
    assert_eq!(guest.account().expect("a user").counts().0, 1);
    assert_eq!(peers.admit(&socket, Transport::Unix).err(), Some(Error::NotAdmitted));
    peers.set(Rules::default());
    assert_eq!(peers.generation(), 0);
    assert!(peers.judge_again(&socket, Transport::Unix, Some(guest)).is_none());
    assert!(peers.admit(&socket, Transport::Unix).expect("let in").is_none());
}
