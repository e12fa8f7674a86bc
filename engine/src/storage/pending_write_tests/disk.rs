//! Writes that fail on the disk: missing room, another file system, a file over the size limit.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

#[test]
fn reserved_space_that_is_not_used_is_freed() {
    Tree::each(|tree| {
        let mut pending = tree.begin("/object").expect("begun");
        pending.reserve(0).expect("nothing");
        pending.reserve(1 << 20).expect("room");
        pending.reserve(10).expect("less than there is");
        pending.write(b"little").expect("written");
        assert_eq!(pending.commit(ALWAYS).expect("committed").size, 6);
        assert!(std::fs::metadata(tree.path("object")).expect("there").blocks() * 512 < 1 << 20);
    });
}

/// Runs `test` with the root on a file system of one MiB that only this thread sees. Skips it where mounting
/// is not allowed.
fn on_a_tiny_file_system(test: impl Fn(&Tree) + Send + Sync) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let mounted = tempfile::tempdir().expect("a directory");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the table of descriptors stays shared; this thread alone gets mounts of its own, which
            // end with it.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
            if let Err(errno) = unshared {
                eprintln!("skipped: no mount namespace of one's own here ({errno})");
                return;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
            mount("tmpfs", mounted.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")).expect("mounted");
            let tree = Tree::in_directory(tempfile::tempdir_in(mounted.path()).expect("a directory"));
            test(&tree);
            test(&Tree { staging: tree.staging.with_named_files(), ..tree });
        });
    });
}

const FULL: Error = Error::Storage(Errno::NOSPC);

#[test]
fn on_a_full_disk_the_old_object_stays_and_nothing_else() {
    on_a_tiny_file_system(|tree| {
        tree.put("/object", b"old", ALWAYS).expect("put");
        let too_much = vec![1; 2 << 20];

        assert_eq!(tree.put("/object", &too_much, ALWAYS), Err(FULL));
        let mut pending = tree.begin("/object").expect("begun");
        assert_eq!(pending.copy_from(memory_file(&too_much)), Err(FULL));
        drop(pending);
        let pending = tree.begin("/object").expect("begun");
        assert_eq!(pending.check_space(2 << 20), Err(FULL), "before a byte has come");
        drop(pending);

        assert_eq!(tree.content("object"), b"old");
        assert_eq!(tree.names(), ["object"]);
        // All room is free again, after a moment where another test's child process still has the files open.
        let bytes = vec![2; 900 << 10];
        let is_stored = (0..1000).any(|_| {
            let stored = tree.put("/object", &bytes, ALWAYS);
            if stored.is_err() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            stored.is_ok()
        });
        assert!(is_stored);
        std::fs::remove_file(tree.path("object")).expect("removed");
        assert!(FULL.to_string().contains("no space left"));
    });
}

#[test]
fn holes_take_no_space_and_later_data_in_them_is_refused_on_a_full_disk() {
    on_a_tiny_file_system(|tree| {
        let sparse = |data: usize| {
            let file = memory_file(&vec![3; data]);
            fs::ftruncate(&file, 64 << 20).expect("as long as that");
            file
        };
        let mut pending = tree.begin("/object").expect("begun");
        assert_eq!(pending.copy_from(sparse(300 << 10)), Ok(64 << 20));
        pending.commit(ALWAYS).expect("committed");
        let stored = std::fs::metadata(tree.path("object")).expect("there");
        assert_eq!((stored.len(), stored.blocks() * 512), (64 << 20, 300 << 10));

        let mut pending = tree.begin("/more").expect("begun");
        assert_eq!(pending.copy_from(sparse(2 << 20)), Err(FULL));
        let begun = fs::fstat(pending.file()).expect("there");
        assert_eq!((begun.st_size, begun.st_blocks), (0, 0), "refused before a byte was copied");
        drop(pending);

        // It has no blocks when the server checks, and all of its data when the server copies.
        let source = sparse(0);
        let copying = Copying::new(source.try_clone().expect("one more"), 0).expect("begun");
        assert_eq!(rustix::io::pwrite(&source, &vec![4; 16 << 20], 0), Ok(16 << 20));
        let mut pending = tree.begin("/more").expect("begun");
        let mut copying = copying.by_sendfile();
        let outcome =
            std::iter::repeat_with(|| copying.step(&mut pending)).find(|step| *step != Ok(Copied::Part));
        assert_eq!(outcome, Some(Err(FULL)));
        drop(pending);
        assert_eq!(tree.names(), ["object"]);
        assert!(names_in_staging(&tree.path("")).is_empty());
        std::fs::remove_file(tree.path("object")).expect("removed");
    });
}

#[test]
fn another_file_system_below_the_root_is_refused_before_the_content_comes() {
    let other = Path::new("/dev/shm");
    on_a_tiny_file_system(|tree| {
        std::fs::create_dir_all(tree.path("mounted")).expect("a directory");
        rustix::mount::mount_bind(other, tree.path("mounted")).expect("mounted");
        assert_eq!(tree.refusal("/mounted/object"), Error::OtherFileSystem);
        rustix::mount::unmount(tree.path("mounted"), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
        // The same file system, mounted once more: only the rename notices.
        std::fs::create_dir_all(tree.path("inner")).expect("a directory");
        rustix::mount::mount_bind(tree.path("inner"), tree.path("mounted")).expect("mounted");
        assert_eq!(tree.put("/mounted/object", b"x", ALWAYS), Err(Error::OtherFileSystem));
        assert!(names(&tree.path("inner")).is_empty());
        assert!(names_in_staging(&tree.path("")).is_empty());
        rustix::mount::unmount(tree.path("mounted"), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    });
}

#[test]
#[ignore = "run by the test below, under a limit"]
fn under_a_limit_on_file_sizes() {
    Tree::each(|tree| {
        tree.put("/object", b"old", ALWAYS).expect("put");
        let too_much = vec![1; 1 << 20];
        let large = Error::Storage(Errno::FBIG);
        assert_eq!(tree.put("/object", &too_much, ALWAYS), Err(large));
        assert_eq!(tree.content("object"), b"old");
        assert_eq!(tree.names(), ["object"]);
    });
}

#[test]
fn past_the_limit_on_file_sizes_the_old_object_stays_and_nothing_else() {
    // The limit applies to a process, so the test runs in its own, which ignores the signal, as Python does.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "storage::pending_write::tests::disk::under_a_limit_on_file_sizes"])
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
