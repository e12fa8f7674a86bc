#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn cache(directory: &TempDir, size: u64) -> Arc<DiskCache> {
    DiskCache::open(&directory.path().join("cache"), size).unwrap()
}

fn record(key: &str, content: &[u8]) -> Record {
    Record {
        store: "s3://bucket".into(),
        key: key.into(),
        size: content.len() as u64,
        etag: Some(format!("\"{key}\"")),
        modified: 1_700_000_000,
        validated: 1,
        unsynced_since_boot: None,
    }
}

fn put(cache: &Arc<DiskCache>, table: &Arc<Table>, key: &str, content: &[u8]) -> Arc<Entry> {
    let pending = cache.begin(content.len() as u64).unwrap();
    pending.write(content, 0).unwrap();
    pending.commit(record(key, content), table).unwrap()
}

fn content(opened: &OpenObject) -> Vec<u8> {
    let mut bytes = vec![0; opened.size as usize];
    let file = std::fs::File::from(opened.file.try_clone().unwrap());
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The files below the cache's directory, but for its tag.
fn files(directory: &TempDir) -> usize {
    let mut count = 0;
    for folder in std::fs::read_dir(directory.path().join("cache/objects")).unwrap() {
        count += std::fs::read_dir(folder.unwrap().path()).unwrap().count();
    }
    count + std::fs::read_dir(directory.path().join("cache/staging")).unwrap().count()
}

#[test]
fn an_entry_is_opened_as_it_was_written() {
    let directory = TempDir::new().unwrap();
    let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
    for size in [0, 1, 4095, 4096, 4097, 100_000] {
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let entry = put(&cache, &table, "a/b", &bytes);
        let opened = cache.open_entry(&entry).unwrap().unwrap();
        assert_eq!((opened.size, content(&opened)), (size as u64, bytes));
        assert_eq!(opened.meta().mtime, 1_700_000_000);
        assert_eq!(opened.version.number(), entry.record.version_number());
        assert!(opened.is_unchanged());
        assert!(Arc::ptr_eq(&table.get("a/b").unwrap(), &entry));
    }
    assert_eq!(files(&directory), 1);
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let cache = cache(&directory, 10 * MIB);
    let pending = cache.begin(5 * MIB).unwrap();
    pending.write(b"a part", 0).unwrap();
    assert_eq!(pending.write(&[0; 7], 5 * MIB - 6), Err(NoRoom::Disk(Errno::FBIG)));
    assert_eq!(cache.usage().reserved_bytes, 5 * MIB + 4096);
    assert!(matches!(cache.begin(6 * MIB), Err(NoRoom::Full)));
    drop(pending);
    assert_eq!((cache.usage(), files(&directory)), (RoomUsage::default(), 0));
    assert!(matches!(cache.begin(11 * MIB), Err(NoRoom::TooLarge)));
}

#[test]
fn the_bound_holds_and_the_oldest_unused_entry_leaves_first() {
    let directory = TempDir::new().unwrap();
    let (cache, table) = (cache(&directory, 4 * MIB), Arc::default());
    let megabyte = vec![7; MIB as usize - 4096];
    for key in ["a", "b", "c", "d"] {
        put(&cache, &table, key, &megabyte);
    }
    assert_eq!(cache.usage().cached_bytes, 4 * MIB);
    for _ in 0..2 {
        cache.open_entry(&table.get("a").unwrap()).unwrap().unwrap();
    }
    put(&cache, &table, "e", &megabyte);
    assert_eq!(cache.usage().cached_bytes, 4 * MIB);
    let kept: Vec<bool> = ["a", "b", "c", "d", "e"].iter().map(|key| table.get(key).is_some()).collect();
    assert_eq!(kept, [true, false, true, true, true]);
    assert_eq!((files(&directory), cache.evicted()), (4, 1));
}

#[test]
fn an_entry_that_a_client_holds_stays_until_it_is_closed() {
    let directory = TempDir::new().unwrap();
    let (cache, table) = (cache(&directory, 2 * MIB), Arc::default());
    let megabyte = vec![7; MIB as usize - 4096];
    let held = cache.open_entry(&put(&cache, &table, "held", &megabyte)).unwrap().unwrap();
    put(&cache, &table, "free", &megabyte);
    put(&cache, &table, "new", &megabyte);
    assert!(table.get("held").is_some() && table.get("free").is_none());
    // Now both are held: none leaves, because that would free no byte.
    let held_too = cache.open_entry(&table.get("new").unwrap()).unwrap().unwrap();
    assert!(matches!(cache.begin(MIB - 4096), Err(NoRoom::Full)));
    assert!(table.get("held").is_some() && table.get("new").is_some());
    assert_eq!((content(&held), content(&held_too)), (megabyte.clone(), megabyte.clone()));
    drop((held, held_too));
    cache.sweep();
    assert_eq!(cache.usage().held_bytes, 0);
    put(&cache, &table, "again", &megabyte);
}

#[test]
fn a_new_version_takes_the_place_and_the_old_descriptor_stays_whole() {
    let directory = TempDir::new().unwrap();
    let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
    let old = put(&cache, &table, "a", b"old content");
    let opened = cache.open_entry(&old).unwrap().unwrap();
    let new = put(&cache, &table, "a", b"the new one");
    assert_eq!(content(&opened), b"old content");
    assert!(old.is_evicted() && cache.open_entry(&old).unwrap().is_none());
    assert_eq!(content(&cache.open_entry(&new).unwrap().unwrap()), b"the new one");
    assert_eq!((cache.usage().cached_files, cache.usage().held_files, cache.damaged()), (1, 1, 0));
}

#[test]
fn a_file_that_is_gone_or_changed_is_a_miss() {
    let directory = TempDir::new().unwrap();
    let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
    for (key, damage) in [("gone", 0), ("cut", 1), ("foreign", 2)] {
        let entry = put(&cache, &table, key, b"content");
        let path = directory.path().join("cache").join(entry.path().to_str().unwrap());
        match damage {
            0 => std::fs::remove_file(&path).unwrap(),
            1 => fs::truncate(&path, 3),
            _ => {
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, b"content").unwrap();
            }
        }
        assert!(cache.open_entry(&entry).unwrap().is_none());
        assert!(table.get(key).is_none() && cache.find("s3://bucket", key, &table).is_none());
    }
    assert!(cache.damaged() >= 3);
    assert_eq!((cache.usage().cached_bytes, files(&directory)), (0, 0));

    mod fs {
        pub fn truncate(path: &std::path::Path, size: u64) {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
        }
    }
}

#[test]
fn entries_outlive_the_server() {
    let directory = TempDir::new().unwrap();
    {
        let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
        put(&cache, &table, "a", b"content");
        put(&cache, &table, "b", b"more");
    }
    let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
    let entry = cache.find("s3://bucket", "a", &table).unwrap();
    assert_eq!(content(&cache.open_entry(&entry).unwrap().unwrap()), b"content");
    assert_eq!((entry.record.etag.as_deref(), entry.validated()), (Some("\"a\""), 1));
    assert!(
        cache.find("s3://other", "a", &table).is_none() && cache.find("s3://bucket", "c", &table).is_none()
    );
    cache.scan();
    assert_eq!((cache.usage().cached_files, cache.damaged()), (2, 0));
    cache.confirm(&entry, 99);
    cache.sync(&entry);
    cache.confirm(&entry, 100);
    drop((cache, table, entry));
    let (cache, table) = (self::cache(&directory, 10 * MIB), Arc::default());
    let entry = cache.find("s3://bucket", "a", &table).unwrap();
    assert_eq!((entry.validated(), entry.is_synced()), (100, true));
}

#[test]
fn an_entry_of_an_earlier_boot_counts_only_if_the_disk_had_it() {
    let directory = TempDir::new().unwrap();
    {
        let (cache, table) = (cache(&directory, 10 * MIB), Arc::default());
        let synced = put(&cache, &table, "synced", b"content");
        cache.sync(&synced);
        put(&cache, &table, "not", b"content");
    }
    let mut cache = Arc::into_inner(cache(&directory, 10 * MIB)).unwrap();
    cache.boot = "another".to_owned();
    let (cache, table) = (Arc::new(cache), Arc::default());
    assert!(cache.find("s3://bucket", "synced", &table).is_some());
    assert!(cache.find("s3://bucket", "not", &table).is_none());
    assert_eq!((files(&directory), cache.damaged()), (1, 1));
}

#[test]
fn a_directory_serves_one_cache_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let place = directory.path().join("cache");
    let first = DiskCache::open(&place, MIB).unwrap();
    let second = DiskCache::open(&place, MIB).unwrap_err();
    assert!(second.to_string().contains("another server"), "{second}");
    drop(first);
    DiskCache::open(&place, MIB).unwrap();
    let foreign = directory.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("file"), b"another program").unwrap();
    let error = DiskCache::open(&foreign, MIB).unwrap_err();
    assert!(error.to_string().contains("not a cache's"), "{error}");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
}
