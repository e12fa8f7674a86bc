//! The memory that a listing takes and keeps.

use super::*;

#[test]
fn nothing_is_kept_of_listings_that_are_over_and_little_of_others() {
    let objects: Vec<_> = (0..3000).map(|at| format!("{at:04}")).collect();
    let root = tree(&objects.iter().map(String::as_str).collect::<Vec<_>>());
    let (listing, mapping) = (Listing::default(), mapping(&root));
    for _ in 0..2 * MAX_BATCHES {
        listing.page(&mapping, None, "/", None, 1).expect("a page");
    }
    assert!(listing.kept().len() > 1 && listing.kept().len() <= MAX_BATCHES);
    listing.kept().clear();
    all(&listing, &mapping, "/", 100).expect("a listing");
    assert!(listing.kept().is_empty());
}

/// The peak resident memory of this process, in KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
#[ignore = "a benchmark: a million files; cargo test --release -- --ignored --exact --nocapture"]
fn a_million_objects_in_one_directory() {
    let root = tempfile::tempdir().expect("a directory");
    for at in 0..1_000_000u64 {
        File::create(root.path().join(format!("{:016x}.bin", crate::storage::etag::mix64(at))))
            .expect("a file");
    }
    let (listing, mapping) = (Listing::default(), mapping(&root));
    let before = peak_memory();
    let started = Instant::now();
    let (mut count, mut pages, mut slowest, mut cursor) = (0, 0, Duration::ZERO, None);
    loop {
        let one = Instant::now();
        let page = listing.page(&mapping, None, "/", cursor.as_deref(), 0).expect("a page");
        slowest = slowest.max(one.elapsed());
        count += page.count;
        pages += 1;
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(count, 1_000_000);
    eprintln!(
        "{count} objects in {pages} pages: {:.1} s, slowest page {} ms, {} KiB more memory at the most",
        started.elapsed().as_secs_f64(),
        slowest.as_millis(),
        peak_memory() - before
    );
}
