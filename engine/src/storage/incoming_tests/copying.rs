//! A put by descriptor: which files may be passed, and that what is stored is what was in them.

use super::*;

/// A file outside of the root with these bytes, open for reading.
fn source(tree: &Tree, content: &[u8]) -> OwnedFd {
    let path = tree.above.path().join("source");
    std::fs::write(&path, content).expect("a file");
    File::open(&path).expect("there").into()
}

#[test]
fn a_file_is_put_by_its_descriptor_wherever_its_position_is() {
    Tree::each(|tree| {
        let content: Vec<u8> = (0..3_000_000u32).map(|at| (at * 7 / 3) as u8).collect();
        // The memory file's position is at its end.
        for source in [source(tree, &content), memory_file(&content)] {
            let mut incoming = tree.begin("/object").expect("begun");
            assert_eq!(incoming.copy_from(&source), Ok(3_000_000));
            assert_eq!(incoming.commit(ALWAYS).expect("committed").size, 3_000_000);
            assert!(tree.content("object") == content);
        }
        let mut empty = tree.begin("/empty").expect("begun");
        assert_eq!(empty.copy_from(&memory_file(b"")), Ok(0));
        empty.commit(ALWAYS).expect("committed");
        assert_eq!(tree.content("empty"), b"");
    });
}

#[test]
fn each_way_of_copying_copies_the_same() {
    Tree::each(|tree| {
        let content: Vec<u8> = (0..200_001u32).map(|at| (at % 251) as u8).collect();
        for source in [source(tree, &content), memory_file(&content)] {
            let mut sent = tree.begin("/sent").expect("begun");
            sent.write(b"before ").expect("written");
            assert_eq!(sent.send_rest(&source, 0, 200_001), Ok(()));
            sent.write(b" after").expect("written");
            sent.commit(ALWAYS).expect("committed");
            assert!(tree.content("sent") == [b"before ", &content[..], b" after"].concat());
        }
        let file = source(tree, &content);
        let mut ranged = tree.begin("/ranged").expect("begun");
        assert_eq!(ranged.copy_range(&file, 200_001), Ok(200_001), "both are on one file system");
        ranged.commit(ALWAYS).expect("committed");
        assert!(tree.content("ranged") == content);
    });
}

#[test]
fn what_is_stored_does_not_change_with_its_source() {
    let tree = Tree::new();
    let source = memory_file(b"as it was");
    let mut incoming = tree.begin("/object").expect("begun");
    incoming.copy_from(&source).expect("copied");
    rustix::io::pwrite(&source, b"as it is now", 0).expect("written");
    incoming.commit(ALWAYS).expect("committed");
    assert_eq!(tree.content("object"), b"as it was");
}

#[test]
fn a_source_that_shrinks_is_refused_and_one_that_grows_is_cut() {
    let tree = Tree::new();
    for source in [source(&tree, b"short"), memory_file(b"short")] {
        let mut incoming = tree.begin("/object").expect("begun");
        let copied = incoming.copy_range(&source, 10).expect("as much as there is");
        assert_eq!(incoming.send_rest(&source, copied, 10), Err(Error::SourceShrank));
        drop(incoming);
        let mut incoming = tree.begin("/object").expect("begun");
        let copied = incoming.copy_range(&source, 3).expect("as much as was asked for");
        assert_eq!(incoming.send_rest(&source, copied, 3), Ok(()));
        assert_eq!(incoming.size(), 3);
    }
    assert!(tree.names().is_empty());
}

#[test]
fn only_a_regular_file_that_is_open_for_reading_can_be_put() {
    let tree = Tree::new();
    let path = tree.above.path().join("file");
    std::fs::write(&path, "content").expect("a file");
    let open = |flags: OFlags| fs::open(&path, flags | OFlags::CLOEXEC, Permissions::empty()).expect("there");
    let (read_end, write_end) = rustix::pipe::pipe().expect("a pipe");
    let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let device = File::open("/dev/zero").expect("a device");
    let directory = File::open(tree.path("")).expect("a directory");
    let mut incoming = tree.begin("/object").expect("begun");
    for refused in [
        open(OFlags::WRONLY),
        open(OFlags::PATH),
        read_end,
        write_end,
        socket.into(),
        device.into(),
        directory.into(),
    ] {
        assert_eq!(incoming.copy_from(&refused), Err(Error::BadDescriptor), "{refused:?}");
    }
    assert_eq!(incoming.copy_from(&open(OFlags::RDWR)), Ok(7));
}
