//! An entry: one version of one object of an origin, as a file of the cache.

use rustix::fd::OwnedFd;
use rustix::fs::{self, Stat, XattrFlags};
use rustix::io::{self, Errno};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fmt::Write;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::disk_cache::table::Table;
use crate::storage::etag::Version;

/// Holds a [`Record`] as JSON.
const ATTRIBUTE: &str = "user.objmapper.entry";
/// A key of S3 has 1,024 bytes at most; with escapes and the other fields a record stays below this.
const MAX_RECORD: usize = 8192;
/// The eviction reads two bits of a count (S3-FIFO).
const MAX_USES: u8 = 3;

/// Where an entry's file lies: 128 bits of SHA-256 over the store's URL and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryId([u8; 16]);

impl EntryId {
    pub fn new(store: &str, key: &str) -> EntryId {
        let digest = Sha256::new().chain_update(store).chain_update([0]).chain_update(key).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        EntryId(id)
    }

    /// The path below the cache's directory: `objects/`, two hex digits, a slash, the other thirty.
    pub fn path(&self) -> CString {
        let mut path = String::with_capacity(41);
        path.push_str("objects/");
        for (at, byte) in self.0.iter().enumerate() {
            if at == 1 {
                path.push('/');
            }
            // Writing to a string does not fail.
            let _ = write!(path, "{byte:02x}");
        }
        CString::new(path).unwrap_or_default()
    }

    /// The id of a file, from the names of its directory and itself.
    pub fn parse(directory: &str, name: &str) -> Option<EntryId> {
        let digits = [directory.as_bytes(), name.as_bytes()].concat();
        if digits.len() != 32 || directory.len() != 2 {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let digit =
                |at: usize| (pair[at] as char).to_digit(16).filter(|_| !pair[at].is_ascii_uppercase());
            *byte = (digit(0)? * 16 + digit(1)?) as u8;
        }
        Some(EntryId(id))
    }
}

/// What the cache keeps about an entry beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The URL of the store, without credentials.
    pub store: String,
    pub key: String,
    pub size: u64,
    /// The origin's, with its quotes.
    pub etag: Option<String>,
    /// Seconds since 1970 at which the object changed at the origin.
    pub modified: i64,
    /// Milliseconds since 1970 at which the origin last confirmed this version.
    pub validated: u64,
    /// The machine's boot in which the file was written, until the file is known to be on the disk.
    pub unsynced_since_boot: Option<String>,
}

impl Record {
    /// 64 bits that stand for the origin's version, the same on every node: of its ETag, else of size and time.
    pub fn version_number(&self) -> u64 {
        let digest = match &self.etag {
            Some(etag) => Sha256::new().chain_update(etag).finalize(),
            None => Sha256::new()
                .chain_update(self.size.to_be_bytes())
                .chain_update(self.modified.to_be_bytes())
                .finalize(),
        };
        digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)).max(1)
    }

    /// The version of an object of this record that is in no file.
    pub fn version(&self) -> Version {
        Version::from_origin(self.size, self.modified, self.version_number())
    }

    pub fn write(&self, file: &OwnedFd) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(|_| Errno::INVAL)?;
        fs::fsetxattr(file, ATTRIBUTE, &text, XattrFlags::empty())
    }

    /// The record of a file; None if it has none, or a damaged one.
    pub fn read(file: &OwnedFd) -> io::Result<Option<Record>> {
        let mut text = vec![0; MAX_RECORD];
        match fs::fgetxattr(file, ATTRIBUTE, &mut text[..]) {
            Ok(length) => Ok(serde_json::from_slice(&text[..length]).ok()),
            Err(Errno::NODATA | Errno::RANGE) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// An entry that requests can use. The file at its path is this entry's while inode and times match.
#[derive(Debug)]
pub struct Entry {
    pub id: EntryId,
    path: CString,
    pub record: Record,
    /// Bytes of the cache that it takes.
    pub footprint: u64,
    file: Version,
    version: Version,
    validated: AtomicU64,
    uses: AtomicU8,
    is_evicted: AtomicBool,
    is_synced: AtomicBool,
    /// Where requests find it, under [`Record::key`].
    pub(super) table: Weak<Table>,
}

impl Entry {
    pub fn new(id: EntryId, record: Record, stat: &Stat, footprint: u64, table: Weak<Table>) -> Entry {
        let file = Version::from_stat(stat);
        let version = file.of_object(record.modified, record.version_number());
        let validated = record.validated.into();
        let (uses, is_evicted) = (AtomicU8::new(0), AtomicBool::new(false));
        let is_synced = record.unsynced_since_boot.is_none().into();
        Entry {
            id,
            path: id.path(),
            record,
            footprint,
            file,
            version,
            validated,
            uses,
            is_evicted,
            is_synced,
            table,
        }
    }

    pub fn path(&self) -> &CString {
        &self.path
    }

    /// The version that clients see.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a file is this entry's, unchanged.
    pub fn is_file(&self, stat: &Stat) -> bool {
        let found = Version::from_stat(stat);
        // The change time moves when a link is made or removed, or an attribute is set.
        found.same_content(&self.file)
    }

    pub fn note_use(&self) {
        let uses = self.uses.load(Relaxed);
        if uses < MAX_USES {
            // Two threads may count once: the eviction asks for more than one, not how many.
            self.uses.store(uses + 1, Relaxed);
        }
    }

    /// Takes the count down by one; false if it is zero.
    pub fn spend_use(&self) -> bool {
        self.uses.fetch_update(Relaxed, Relaxed, |uses| uses.checked_sub(1)).is_ok()
    }

    pub fn uses(&self) -> u8 {
        self.uses.load(Relaxed)
    }

    /// Milliseconds since 1970 at which the origin last confirmed it.
    pub fn validated(&self) -> u64 {
        self.validated.load(Relaxed)
    }

    pub fn set_validated(&self, at: u64) {
        self.validated.store(at, Relaxed);
    }

    /// Whether the disk has the whole file.
    pub fn is_synced(&self) -> bool {
        self.is_synced.load(Relaxed)
    }

    pub fn set_synced(&self) {
        self.is_synced.store(true, Relaxed);
    }

    pub fn is_evicted(&self) -> bool {
        self.is_evicted.load(Relaxed)
    }

    /// Marks it as gone; false if it was.
    pub(super) fn mark_evicted(&self) -> bool {
        !self.is_evicted.swap(true, Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_again_in_its_path() {
        let id = EntryId::new("s3://bucket/prefix", "a/b");
        let path = id.path().into_string().unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        assert_eq!((parts.len(), parts[0]), (3, "objects"));
        assert_eq!(EntryId::parse(parts[1], parts[2]), Some(id));
        assert_ne!(EntryId::new("s3://bucket/prefix", "a/c"), id);
        // The separator keeps a store's end from passing for a key's beginning.
        assert_ne!(EntryId::new("s3://bucket/prefi", "xa/b"), EntryId::new("s3://bucket/prefix", "a/b"));
        for (directory, name) in [("", ""), ("ab", "cd"), ("a", &*"b".repeat(31)), ("zz", &*"0".repeat(30))] {
            assert_eq!(EntryId::parse(directory, name), None);
        }
        assert_eq!(EntryId::parse("AB", &"0".repeat(30)), None);
    }

    #[test]
    fn a_version_follows_the_etag_alone_where_there_is_one() {
        let record = |etag: Option<&str>, size, modified| Record {
            store: "s3://b".into(),
            key: "k".into(),
            size,
            etag: etag.map(str::to_owned),
            modified,
            validated: 0,
            unsynced_since_boot: None,
        };
        let number = |etag, size, modified| record(etag, size, modified).version_number();
        assert_eq!(number(Some("\"1\""), 1, 1), number(Some("\"1\""), 2, 9));
        assert_ne!(number(Some("\"1\""), 1, 1), number(Some("\"2\""), 1, 1));
        assert_ne!(number(None, 1, 1), number(None, 1, 2));
        assert_ne!(number(None, 1, 1), number(None, 2, 1));
    }
}
