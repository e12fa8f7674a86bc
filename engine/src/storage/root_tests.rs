//! A root that is removed, replaced, renamed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use tempfile::TempDir;

fn made() -> (TempDir, PathBuf, Root) {
    let above = TempDir::new().expect("a directory");
    let path = above.path().join("root");
    make(&path);
    let root = Root::open(&path).expect("a root");
    (above, path, root)
}

fn make(path: &Path) {
    std::fs::create_dir(path).expect("a directory");
    std::fs::write(path.join("object"), "content").expect("a file");
}

fn check(root: &Root) -> RootChange {
    root.check(|| Ok(()))
}

fn finds(root: &Root) -> io::Result<()> {
    fs::statat(root, c"object", fs::AtFlags::empty()).map(drop)
}

#[test]
fn a_root_that_stays_is_the_same() {
    let (_above, _, root) = made();
    assert_eq!(check(&root), RootChange::Same);
    assert_eq!((root.is_gone(), root.problem()), (false, None));
    assert_eq!(finds(&root), Ok(()));
}

#[test]
fn a_root_that_is_removed_is_gone_at_once_and_another_takes_its_place() {
    let (_above, path, root) = made();
    std::fs::remove_dir_all(&path).expect("removed");
    assert!(root.is_gone(), "before any look");
    assert!(matches!(check(&root), RootChange::Gone(problem) if problem.contains("removed")));
    assert_eq!(check(&root), RootChange::Same, "said once");
    assert!(root.is_gone() && root.problem().is_some());
    make(&path);
    assert_eq!(check(&root), RootChange::Replaced);
    assert_eq!((root.is_gone(), root.problem(), finds(&root)), (false, None, Ok(())));
}

#[test]
fn a_root_that_is_renamed_serves_nothing_until_it_is_back() {
    let (above, path, root) = made();
    std::fs::rename(&path, above.path().join("elsewhere")).expect("renamed");
    assert!(matches!(check(&root), RootChange::Gone(_)));
    assert_eq!(finds(&root), Err(Errno::NOTDIR));
    std::fs::rename(above.path().join("elsewhere"), &path).expect("renamed");
    assert_eq!(check(&root), RootChange::Back);
    assert_eq!((root.is_gone(), finds(&root)), (false, Ok(())));
}

#[test]
fn a_replacement_is_served_only_after_its_preparation() {
    let (above, path, root) = made();
    std::fs::rename(&path, above.path().join("elsewhere")).expect("renamed");
    make(&path);
    assert_eq!(root.check(|| Err("no staging".into())), RootChange::Gone("no staging".into()));
    assert!(root.is_gone());
}

#[test]
fn a_file_at_the_roots_path_is_no_root() {
    let (_above, path, root) = made();
    std::fs::remove_dir_all(&path).expect("removed");
    std::fs::write(&path, "").expect("a file");
    assert!(matches!(check(&root), RootChange::Gone(_)));
}
