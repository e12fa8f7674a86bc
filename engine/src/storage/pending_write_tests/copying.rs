//! A put by descriptor: which files clients may pass, and that the server stores their content.

use super::*;

/// A file outside the root with these bytes, open for reading.
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
            let mut pending = tree.begin("/object").expect("begun");
            assert_eq!(pending.copy_from(source), Ok(3_000_000));
            assert_eq!(pending.commit(ALWAYS).expect("committed").size, 3_000_000);
            assert!(tree.content("object") == content);
        }
        let mut empty = tree.begin("/empty").expect("begun");
        assert_eq!(empty.copy_from(memory_file(b"")), Ok(0));
        empty.commit(ALWAYS).expect("committed");
        assert_eq!(tree.content("empty"), b"");
    });
}

/// Copies all, step by step. Returns the number of steps.
fn run(mut copying: Copying, pending: &mut PendingWrite) -> Result<usize, Error> {
    let mut steps = 1;
    while copying.step(pending)? == Copied::Part {
        steps += 1;
    }
    Ok(steps)
}

const WAYS: [fn(Copying) -> Copying; 3] = [|copying| copying, Copying::without_cloning, Copying::by_sendfile];

#[test]
fn each_way_of_copying_copies_the_same() {
    Tree::each(|tree| {
        let content: Vec<u8> = (0..200_001u32).map(|at| (at % 251) as u8).collect();
        for source in [source(tree, &content), memory_file(&content)] {
            for way in WAYS {
                let mut pending = tree.begin("/object").expect("begun");
                let source = source.try_clone().expect("one more");
                run(way(Copying::new(source, 0).expect("begun")), &mut pending).expect("copied");
                pending.commit(ALWAYS).expect("committed");
                assert!(tree.content("object") == content);
            }
        }
    });
}

#[test]
fn a_large_file_is_copied_in_small_steps() {
    let tree = Tree::new();
    let content: Vec<u8> = (0..9u32 << 20).map(|at| (at % 249) as u8).collect();
    for way in &WAYS[1..] {
        let mut pending = tree.begin("/object").expect("begun");
        let copying = way(Copying::new(memory_file(&content), 0).expect("begun"));
        let steps = run(copying, &mut pending).expect("copied");
        assert!(steps >= 3, "{steps} steps");
        pending.commit(ALWAYS).expect("committed");
        assert!(tree.content("object") == content);
    }
}

/// Data of 64 KiB at each of these offsets, and nothing else up to `length`.
fn with_holes(file: OwnedFd, at: &[u64], length: u64) -> OwnedFd {
    for (number, offset) in at.iter().enumerate() {
        let data = vec![number as u8 + 1; 64 << 10];
        assert_eq!(rustix::io::pwrite(&file, &data, *offset), Ok(data.len()));
    }
    fs::ftruncate(&file, length).expect("as long as that");
    file
}

#[test]
fn holes_stay_holes_and_the_position_stays_where_it_is() {
    use std::os::unix::fs::MetadataExt;
    const LENGTH: u64 = 256 << 20;
    let tree = Tree::new();
    let path = tree.above.path().join("sparse");
    let file =
        File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
    let layouts: [&[u64]; 4] = [&[], &[0], &[100 << 20, 200 << 20], &[0, 7 << 20, LENGTH - (64 << 10)]];
    for at in layouts {
        file.set_len(0).expect("empty");
        let file = with_holes(file.try_clone().expect("one more").into(), at, LENGTH);
        for source in [file, with_holes(memory_file(b""), at, LENGTH)] {
            fs::seek(&source, fs::SeekFrom::Start(4711)).expect("a position");
            for way in
                [WAYS[1], WAYS[2], |copying: Copying| copying.without_cloning().seeking_in_the_source()]
            {
                let mut pending = tree.begin("/object").expect("begun");
                let passed = source.try_clone().expect("one more");
                run(way(Copying::new(passed, 0).expect("begun")), &mut pending).expect("copied");
                pending.commit(ALWAYS).expect("committed");
                let stored = std::fs::metadata(tree.path("object")).expect("there");
                assert_eq!(stored.len(), LENGTH);
                assert!(stored.blocks() * 512 <= (at.len() as u64 + 1) * (128 << 10), "{}", stored.blocks());
                let object = File::open(tree.path("object")).expect("there");
                for (number, offset) in at.iter().enumerate() {
                    let mut data = vec![0; 64 << 10];
                    assert_eq!(rustix::io::pread(&object, &mut data, *offset), Ok(data.len()));
                    assert!(data.iter().all(|byte| *byte == number as u8 + 1));
                }
                assert_eq!(fs::seek(&source, fs::SeekFrom::Current(0)), Ok(4711));
            }
        }
    }
}

#[test]
fn a_source_over_the_size_limit_is_refused_before_any_copy() {
    let tree = Tree::new();
    let pebibyte = memory_file(b"");
    fs::ftruncate(&pebibyte, 1 << 50).expect("as long as that");
    let pending = tree.begin("/object").expect("begun");
    assert_eq!(Copying::new(pebibyte, 1 << 40).map(|_| ()), Err(Error::TooLarge));
    assert_eq!(Copying::new(memory_file(b"12345"), 4).map(|_| ()), Err(Error::TooLarge));
    assert!(Copying::new(memory_file(b"1234"), 4).is_ok());
    drop(pending);
    assert!(tree.names().is_empty());
}

#[test]
fn a_stored_object_does_not_change_with_its_source() {
    let tree = Tree::new();
    let source = memory_file(b"as it was");
    let mut pending = tree.begin("/object").expect("begun");
    pending.copy_from(source.try_clone().expect("one more")).expect("copied");
    rustix::io::pwrite(&source, b"as it is now", 0).expect("written");
    pending.commit(ALWAYS).expect("committed");
    assert_eq!(tree.content("object"), b"as it was");
}

#[test]
fn a_source_that_shrinks_is_refused_and_one_that_grows_is_cut() {
    let tree = Tree::new();
    let path = tree.above.path().join("source");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
    for source in [file.into(), memory_file(b"")] {
        for way in WAYS {
            for (then, answer) in [(5, Err(Error::SourceShrank)), (20, Ok(10))] {
                fs::ftruncate(&source, 0).expect("empty");
                assert_eq!(rustix::io::pwrite(&source, b"0123456789", 0), Ok(10));
                let copying = way(Copying::new(source.try_clone().expect("one more"), 0).expect("begun"));
                fs::ftruncate(&source, then).expect("changed");
                let mut pending = tree.begin("/object").expect("begun");
                let outcome = run(copying, &mut pending).map(|_| pending.size());
                assert_eq!(outcome, answer);
            }
        }
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
    let mut pending = tree.begin("/object").expect("begun");
    for refused in [
        open(OFlags::WRONLY),
        open(OFlags::PATH),
        read_end,
        write_end,
        socket.into(),
        device.into(),
        directory.into(),
    ] {
        let name = format!("{refused:?}");
        assert_eq!(pending.copy_from(refused), Err(Error::BadDescriptor), "{name}");
    }
    assert_eq!(pending.copy_from(open(OFlags::RDWR)), Ok(7));
}
