//! The checks that keep look-ups inside the root, on real directories.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

/// A served root beside a directory that no URI may reach.
struct Tree {
    above: TempDir,
    follow_symlinks: bool,
}

impl Tree {
    fn new() -> Self {
        let above = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(above.path().join("root/sub")).expect("the root");
        let tree = Tree { above, follow_symlinks: false };
        tree.write("object", "whole");
        tree.write("sub/object", "nested");
        std::fs::write(tree.above.path().join("secret"), "secret").expect("a secret");
        tree
    }

    fn following_symlinks() -> Self {
        Tree { follow_symlinks: true, ..Tree::new() }
    }

    fn root(&self) -> std::path::PathBuf {
        self.above.path().join("root")
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.root().join(name), content).expect("a file");
    }

    fn link(&self, name: &str, target: &str) {
        symlink(target, self.root().join(name)).expect("a link");
    }

    fn mapping(&self) -> Mapping {
        Mapping::new(&self.root(), self.follow_symlinks).expect("a mapping")
    }

    fn open(&self, uri: &str) -> Result<OpenObject, Error> {
        open(&self.mapping(), uri)
    }

    /// The object's content, or the error.
    fn content(&self, uri: &str) -> Result<String, Error> {
        let opened = self.open(uri)?;
        let text = std::io::read_to_string(File::from(opened.file)).expect("readable");
        assert_eq!(text.len() as u64, opened.size, "{uri}");
        Ok(text)
    }

    fn refusal(&self, uri: &str) -> Error {
        match self.content(uri) {
            Err(error) => error,
            Ok(content) => panic!("{uri:?} gave {content:?}"),
        }
    }
}

/// Opens a URI as the server does.
fn open(mapping: &Mapping, uri: &str) -> Result<OpenObject, Error> {
    mapping.open(relative_path(uri, &mut Vec::new())?)
}

fn flags(file: &OwnedFd) -> OFlags {
    fs::fcntl_getfl(file).expect("open")
}

#[test]
fn a_file_below_the_root_is_opened_with_its_size() {
    let tree = Tree::new();
    assert_eq!(tree.content("/object"), Ok("whole".to_owned()));
    assert_eq!(tree.content("/sub/object"), Ok("nested".to_owned()));
}

#[test]
fn the_leading_slash_is_optional() {
    let tree = Tree::new();
    assert_eq!(tree.content("object"), tree.content("/object"));
    assert_eq!(tree.content("sub/object"), tree.content("/sub/object"));
}

#[test]
fn names_are_bytes_and_nothing_is_decoded() {
    let tree = Tree::new();
    for name in ["a b", "%2e%2e", "ünïcode", "...", "..a", "a..", "back\\slash", "~"] {
        tree.write(name, name);
        assert_eq!(tree.content(name), Ok(name.to_owned()));
    }
    assert_eq!(tree.refusal("/%6fbject"), Error::NotFound);
}

#[test]
fn dots_and_empty_segments_are_refused_even_where_they_would_stay_inside() {
    let tree = Tree::new();
    for uri in [
        "",
        "/",
        "//",
        ".",
        "..",
        "/.",
        "/..",
        "//object",
        "/object/",
        "/sub//object",
        "/./object",
        "/sub/../object",
        "/../secret",
        "/sub/../../secret",
        "../secret",
        "/object/..",
        "/sub/.",
    ] {
        assert_eq!(tree.refusal(uri), Error::BadPath, "{uri:?}");
    }
}

#[test]
fn a_name_longer_than_any_file_system_holds_is_refused() {
    let tree = Tree::new();
    let longest = "n".repeat(255);
    tree.write(&longest, "there");
    assert_eq!(tree.content(&longest), Ok("there".to_owned()));
    assert_eq!(tree.refusal(&"n".repeat(256)), Error::BadPath);
    assert_eq!(tree.refusal(&format!("/sub/{}/x", "n".repeat(256))), Error::BadPath);
    // Each name is short enough, but the whole path is not.
    let deep = "d/".repeat(2047) + "d";
    assert!(matches!(tree.refusal(&deep), Error::NotFound | Error::BadPath));
}

#[test]
fn a_nul_is_refused() {
    assert_eq!(Tree::new().refusal("/obj\0ect"), Error::BadPath);
}

#[test]
fn a_missing_object_is_not_found() {
    let tree = Tree::new();
    assert_eq!(tree.refusal("/missing"), Error::NotFound);
    assert_eq!(tree.refusal("/missing/object"), Error::NotFound);
    // The URI treats a file as a directory.
    assert_eq!(tree.refusal("/object/below"), Error::NotFound);
}

#[test]
fn symbolic_links_are_refused_unless_enabled() {
    let tree = Tree::new();
    tree.link("inside", "object");
    tree.link("outside", "../secret");
    tree.link("absolute", "/etc/passwd");
    tree.link("directory", "sub");
    tree.link("loop", "loop");
    tree.link("dangling", "nowhere");
    for uri in ["/inside", "/outside", "/absolute", "/directory/object", "/loop", "/dangling"] {
        assert_eq!(tree.refusal(uri), Error::Symlink, "{uri}");
    }
}

#[test]
fn links_that_are_followed_stay_inside_the_root() {
    let tree = Tree::following_symlinks();
    tree.link("inside", "object");
    tree.link("directory", "sub");
    tree.link("sub/up-and-down", "../object");
    assert_eq!(tree.content("/inside"), Ok("whole".to_owned()));
    assert_eq!(tree.content("/directory/object"), Ok("nested".to_owned()));
    assert_eq!(tree.content("/sub/up-and-down"), Ok("whole".to_owned()));

    tree.link("outside", "../secret");
    tree.link("sub/further-outside", "../../secret");
    tree.link("absolute", "/etc/passwd");
    tree.link("by-way-of-outside", "../root/object");
    tree.link("parent", "..");
    for uri in ["/outside", "/sub/further-outside", "/absolute", "/by-way-of-outside", "/parent/secret"] {
        assert_eq!(tree.refusal(uri), Error::Outside, "{uri}");
    }
    tree.link("loop", "loop");
    assert_eq!(tree.refusal("/loop"), Error::Symlink);
    tree.link("dangling", "nowhere");
    assert_eq!(tree.refusal("/dangling"), Error::NotFound);
}

#[test]
fn magic_links_of_proc_lead_nowhere() {
    let mapping = Mapping::new(Path::new("/proc/self"), true).expect("proc");
    for uri in ["/exe", "/fd/0", "/cwd/Cargo.toml", "/root/etc/passwd"] {
        let answer = open(&mapping, uri);
        assert!(
            matches!(answer, Err(Error::Symlink | Error::Outside | Error::NotFound)),
            "{uri}: {answer:?}"
        );
    }
}

#[test]
fn only_regular_files_are_opened() {
    let tree = Tree::new();
    // Opening a FIFO without O_NONBLOCK would block this test until a writer comes.
    fs::mknodat(CWD, tree.root().join("fifo"), FileType::Fifo, Permissions::RUSR | Permissions::WUSR, 0)
        .expect("a FIFO");
    let _listener = UnixListener::bind(tree.root().join("socket")).expect("a socket");
    for uri in ["/fifo", "/socket", "/sub"] {
        assert_eq!(tree.refusal(uri), Error::NotRegular, "{uri}");
    }
    let devices = Mapping::new(Path::new("/dev"), false).expect("a mapping");
    for uri in ["/null", "/zero", "/tty"] {
        let answer = open(&devices, uri);
        assert!(matches!(answer, Err(Error::NotRegular | Error::NoPermission)), "{uri}: {answer:?}");
    }
}

#[test]
fn a_file_that_the_server_may_not_read_is_forbidden() {
    let tree = Tree::new();
    let path = tree.root().join("object");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("permissions");
    // Root may read everything.
    if File::open(&path).is_err() {
        assert_eq!(tree.refusal("/object"), Error::NoPermission);
    }
}

#[test]
fn every_open_has_its_own_offset_and_flags() {
    let tree = Tree::new();
    let (first, second) = (tree.open("/object").expect("open"), tree.open("/object").expect("open"));
    fs::seek(&first.file, fs::SeekFrom::Start(3)).expect("seekable");
    assert_eq!(fs::seek(&second.file, fs::SeekFrom::Current(0)), Ok(0));
    clear_status_flags(&first.file).expect("open");
    assert!(!flags(&first.file).contains(OFlags::NONBLOCK));
    assert!(flags(&second.file).contains(OFlags::NONBLOCK));
}

#[test]
fn opened_files_are_read_only_and_close_on_exec() {
    let file = Tree::new().open("/object").expect("open").file;
    assert_eq!(flags(&file) & OFlags::ACCMODE, OFlags::RDONLY);
    let descriptor_flags = rustix::io::fcntl_getfd(&file).expect("open");
    assert!(descriptor_flags.contains(rustix::io::FdFlags::CLOEXEC));
    assert!(rustix::io::write(&file, b"x").is_err());
}

#[test]
fn a_renamed_root_is_served_until_its_path_is_checked() {
    let tree = Tree::new();
    let mapping = Mapping::new(&tree.root(), false).expect("a mapping");
    std::fs::rename(tree.root(), tree.above.path().join("elsewhere")).expect("renamed");
    assert!(open(&mapping, "/object").is_ok());
}

#[test]
fn a_root_that_is_not_a_directory_is_refused() {
    let tree = Tree::new();
    for (root, errno) in [("root/object", Errno::NOTDIR), ("root/missing", Errno::NOENT)] {
        let error = Mapping::new(&tree.above.path().join(root), false).expect_err("refused");
        assert_eq!(error.errno, errno);
        assert!(error.subject.ends_with(root), "{error}");
    }
}

#[test]
fn the_path_buffer_is_used_again() {
    let mut path = Vec::new();
    for (uri, expected) in [("/sub/object", c"sub/object"), ("/a", c"a"), ("longer", c"longer")] {
        assert_eq!(relative_path(uri, &mut path), Ok(expected));
    }
    assert_eq!(relative_path("/../x", &mut path), Err(Error::BadPath));
}

#[test]
fn a_version_is_the_same_until_the_file_is_another() {
    let tree = Tree::new();
    let (mapping, path) = (tree.mapping(), c"object");
    let opened = tree.open("/object").expect("open").version;
    assert!(mapping.is_still(path, &opened));
    tree.write("object", "whole and more");
    assert!(!mapping.is_still(path, &opened), "written to");
    let longer = mapping.stat(path).expect("there").version;
    tree.write("another", "whole and more");
    std::fs::rename(tree.root().join("another"), tree.root().join("object")).expect("renamed");
    assert!(!mapping.is_still(path, &longer), "replaced by a file of the same size");
    std::fs::remove_file(tree.root().join("object")).expect("removed");
    assert!(!mapping.is_still(path, &longer), "removed");
}

#[test]
fn stat_and_open_agree_and_refuse_the_same_paths() {
    let tree = Tree::new();
    let (mapping, opened) = (tree.mapping(), tree.open("/sub/object").expect("open"));
    let found = mapping.stat(c"sub/object").expect("there");
    assert_eq!(found, opened.meta());
    assert_eq!((found.size, found.version), (6, opened.version));
    let metadata = std::fs::metadata(tree.root().join("sub/object")).expect("there");
    assert_eq!(found.mtime, metadata.mtime());
    assert_eq!(found.etag(), opened.version.etag());

    tree.link("inside", "object");
    tree.link("outside", "../secret");
    fs::mknodat(CWD, tree.root().join("fifo"), FileType::Fifo, Permissions::RUSR, 0).expect("a FIFO");
    for (path, error) in [
        (c"missing", Error::NotFound),
        (c"object/below", Error::NotFound),
        (c"sub", Error::NotRegular),
        (c"fifo", Error::NotRegular),
        (c"inside", Error::Symlink),
        (c"outside", Error::Symlink),
    ] {
        assert_eq!(mapping.stat(path), Err(error), "{path:?}");
    }
    let following = Mapping::new(&tree.root(), true).expect("a mapping");
    assert_eq!(following.stat(c"inside").map(|found| found.size), Ok(5));
    assert_eq!(following.stat(c"outside"), Err(Error::Outside));
}

#[test]
fn cached_paths_are_opened_without_waiting() {
    let tree = Tree::new();
    let mapping = tree.mapping();
    let opened = mapping.open_cached(c"sub/object").expect("there");
    if !mapping.resolves_cached.load(Relaxed) {
        eprintln!("skipped: this kernel knows no RESOLVE_CACHED");
        return;
    }
    // It was written just now, so it is in the cache.
    assert_eq!(opened.expect("cached").meta(), mapping.stat(c"sub/object").expect("there"));
    assert_eq!(mapping.open_cached(c"sub").map(|_| ()), Err(Error::NotRegular));
    // For a name never looked up, the kernel would have to read the disk.
    assert!(matches!(mapping.open_cached(c"never-asked-for"), Ok(None)));
    tree.link("outside", "../secret");
    assert!(matches!(mapping.open_cached(c"outside"), Err(Error::Symlink) | Ok(None)));
    let following = Mapping::new(&tree.root(), true).expect("a mapping");
    assert!(matches!(following.open_cached(c"outside"), Ok(None)), "for open to decide");
}

#[test]
fn without_resolve_cached_every_look_up_is_left_to_open() {
    let tree = Tree::new();
    let old_kernel = tree.mapping();
    old_kernel.resolves_cached.store(false, Relaxed);
    let remote = Mapping { is_remote: true, ..tree.mapping() };
    for mapping in [old_kernel, remote] {
        assert!(matches!(mapping.open_cached(c"object"), Ok(None)));
        assert!(mapping.open(c"object").is_ok());
    }
}

#[test]
fn a_mounted_file_system_never_counts_as_cached() {
    // /proc is a mount below /: it needs no disk, but open_cached must leave it to `open` all the same.
    let mapping = Mapping::new(Path::new("/"), false).expect("a mapping");
    assert!(mapping.open(c"proc/version").is_ok());
    assert!(matches!(mapping.open_cached(c"proc/version"), Ok(None)));
}

#[test]
fn cached_bytes_are_read_and_others_left_to_storage_threads() {
    let tree = Tree::new();
    let content = vec![7; 1 << 20];
    std::fs::write(tree.root().join("large"), &content).expect("a file");
    let file = tree.open("/large").expect("open").file;
    let mut buffer = vec![0; 4096];
    assert_eq!(read_cached(&file, &mut buffer, 8192), Ok(Some(4096)), "it was written just now");
    assert_eq!(buffer, vec![7; 4096]);
    assert_eq!(read_cached(&file, &mut buffer, 1 << 20), Ok(Some(0)), "the end");
    assert_eq!(read_cached(&file, &mut buffer, (1 << 20) - 5), Ok(Some(5)));

    // Written to the disk and dropped from memory; file systems in memory keep it.
    fs::fsync(&file).expect("written");
    fs::fadvise(&file, 0, None, fs::Advice::DontNeed).expect("forgotten");
    if read_cached(&file, &mut buffer, 0) == Ok(None) {
        assert_eq!(rustix::io::pread(&file, &mut buffer, 0), Ok(4096));
        assert_eq!(read_cached(&file, &mut buffer, 0), Ok(Some(4096)), "now it is");
    }
    let directory =
        fs::open(tree.root(), OFlags::RDONLY | OFlags::DIRECTORY, Permissions::empty()).expect("there");
    assert_eq!(read_cached(&directory, &mut buffer, 0), Err(Error::Storage(Errno::ISDIR)));
}
