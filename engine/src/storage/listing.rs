//! All objects below a prefix, in the order of their URIs, a page at a time.
//!
//! A page knows only the path at which the previous page ended. So a listing returns an object that exists
//! throughout exactly once, whatever else is added, removed or replaced; see `dir_batch.rs` for large
//! directories. The server reads directories in name batches of bounded size. It keeps the batch in which a
//! page ends for the next page of the same listing only: a listing must contain an object that was put before
//! it began.

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::access::rules::View;
use crate::errors::Error;
use crate::protocol::v2::{self, encode_detailed, encode_entry, encode_left_out};
use crate::storage::cursor::Cursor;
use crate::storage::dir_batch::{BatchLimits, NameBatch};
use crate::storage::mapping::{Mapping, ObjectMeta, relative_path};
use crate::storage::walk::{LeftOut, Step, Walk};
use crate::sync::unpoisoned;

/// The limit where a request sets none.
pub const DEFAULT_LIMIT: u32 = 1_000;
pub const MAX_LIMIT: u32 = 10_000;
/// Bytes of entries in a page.
pub const MAX_PAGE_BYTES: usize = 1 << 20;
/// From this many bytes on, a page ends early where other listings wait for its place.
const MIN_PAGE_BYTES: usize = 16 << 10;
/// Bytes of an entry besides its path: kind, length and slash, size, time and nanoseconds.
const ENTRY_OVERHEAD: usize = 24;
/// Limits of the kept batches of all listings: bytes, number, and age.
const MAX_KEPT: usize = 64 << 20;
const MAX_BATCHES: usize = 512;
const MAX_AGE: Duration = Duration::from_secs(60);

/// How the entries of a page are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// `uri_len(2) uri size(8) mtime(8)` each, integers big-endian.
    #[default]
    Plain,
    /// `kind(1) path_len(2) path` each; behind an object `size(8) mtime(8) nanoseconds(4)`. It also reports
    /// the entries left out.
    Detailed,
}

impl Form {
    /// The form to answer with, where a request names one.
    pub fn from_number(number: Option<u8>) -> Form {
        if number.is_some_and(|number| number > 0) { Form::Detailed } else { Form::Plain }
    }

    /// The number of this form in the response.
    pub fn number(self) -> Option<u8> {
        (self == Form::Detailed).then_some(1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub form: Form,
    pub entries: Vec<u8>,
    pub count: u32,
    /// Where the next page continues; None on the last. A short or even an empty page may have one.
    pub cursor: Option<Vec<u8>>,
}

impl Page {
    fn leave_out(&mut self, reason: LeftOut, path: &[u8]) {
        let kind = match reason {
            LeftOut::Name => v2::LEFT_OUT_NAME,
            LeftOut::Unreadable => v2::LEFT_OUT_UNREADABLE,
            LeftOut::Long => v2::LEFT_OUT_LONG,
        };
        encode_left_out(&mut self.entries, kind, [b"/", path]);
        self.count += 1;
    }
}

/// Name batches of large directories, kept for running listings. All sessions share it; each gets only the
/// batches of its own listings.
#[derive(Debug)]
pub struct Listing {
    kept: Mutex<VecDeque<SavedBatch>>,
    /// The number of the next listing. The first is random, so that it differs from other servers' numbers.
    next: AtomicU64,
    key: RandomState,
    limits: BatchLimits,
}

impl Default for Listing {
    fn default() -> Self {
        let next = AtomicU64::new(RandomState::new().hash_one(0));
        Listing { kept: Mutex::default(), next, key: RandomState::new(), limits: BatchLimits::default() }
    }
}

/// A batch in which the next page of a listing continues.
#[derive(Debug)]
struct SavedBatch {
    session: u64,
    listing: u64,
    directory_key: Vec<u8>,
    batch: Arc<NameBatch>,
    since: Instant,
}

/// The page that a request wants: the first of all objects whose URI starts with `prefix`, or the one after
/// the page that gave `cursor`.
///
/// The leading slash of the prefix is optional, `/` means everything; `limit` 0 means [`DEFAULT_LIMIT`].
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// The session of the listing.
    pub session: u64,
    pub form: Form,
    /// None where nothing is hidden.
    pub view: Option<View>,
    pub prefix: String,
    pub cursor: Option<Vec<u8>>,
    pub limit: u32,
}

/// A page under construction.
#[derive(Debug)]
pub struct Paging {
    session: u64,
    listing: u64,
    prefix: Vec<u8>,
    /// The most entries, and bytes of them.
    limit: u32,
    max_bytes: usize,
    walk: Walk,
    /// Where the next page would continue.
    after: Vec<u8>,
    page: Page,
}

impl Listing {
    /// Begins a page of at most `max_bytes` bytes of entries, and at most [`MAX_PAGE_BYTES`]; one entry always fits.
    ///
    /// The listing includes links where the mapping follows them and they lead to objects. It includes the
    /// objects below a link to a directory only where the prefix itself leads there, since links can form
    /// circles. It leaves out unreadable directories and names without a URI; the detailed form reports them.
    /// It leaves out hidden objects silently.
    pub fn begin(&self, request: PageRequest, max_bytes: usize) -> Result<Paging, Error> {
        let PageRequest { session, form, view, prefix, cursor, limit } = request;
        let limit = if limit == 0 { DEFAULT_LIMIT } else { limit.min(MAX_LIMIT) };
        let max_bytes = max_bytes.min(MAX_PAGE_BYTES);
        let prefix = prefix.strip_prefix('/').unwrap_or(&prefix);
        let (directory, name) = prefix.split_at(prefix.rfind('/').map_or(0, |at| at + 1));
        if let Some(directory) = directory.strip_suffix('/') {
            relative_path(directory, &mut Vec::new())?;
        }
        let (listing, after) = match cursor {
            Some(bytes) => match Cursor::decode(&bytes, prefix.as_bytes(), &self.key, session)? {
                (Cursor { listing, after }, true) => (listing, after),
                // From another session or server, or forged: use only its path.
                (Cursor { after, .. }, false) => (self.next.fetch_add(1, Relaxed), after),
            },
            None => (self.next.fetch_add(1, Relaxed), Vec::new()),
        };
        let walk = Walk::new(view, directory, name, &after, self.limits).reporting(form == Form::Detailed);
        let page = Page { form, entries: Vec::new(), count: 0, cursor: None };
        let prefix = prefix.as_bytes().to_vec();
        Ok(Paging { session, listing, prefix, limit, max_bytes, walk, after, page })
    }

    /// Continues a page until it is complete, or the turn is over: then None.
    pub fn advance(
        &self,
        mapping: &Mapping,
        paging: &mut Paging,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Page>, Error> {
        let (session, listing) = (paging.session, paging.listing);
        let (limit, max_bytes) = (paging.limit, paging.max_bytes);
        let Paging { walk, page, after, .. } = paging;
        let is_full = |page: &Page, path: &[u8]| {
            let fits = page.entries.len() + path.len() + ENTRY_OVERHEAD <= max_bytes;
            // One entry always fits, so every page advances.
            page.count == limit || (page.count > 0 && !fits)
        };
        let has_more = loop {
            match walk.step(mapping, |directory_key| self.take(session, listing, directory_key), is_over)? {
                Step::End => break false,
                Step::TurnOver => return Ok(None),
                Step::PageFull(at) => {
                    *after = at;
                    break true;
                }
                Step::Object => {
                    let lookup = stat(mapping, walk)?;
                    let path = walk.path();
                    if lookup == Lookup::Forbidden && page.form == Form::Detailed {
                        if is_full(page, path) {
                            break true;
                        }
                        page.leave_out(LeftOut::Unreadable, path);
                        *after = walk.resume_path();
                    } else if let Lookup::Object(meta) = lookup {
                        if is_full(page, path) {
                            break true;
                        }
                        let (uri, size, mtime) = ([&b"/"[..], path], meta.size, meta.mtime);
                        match page.form {
                            Form::Plain => encode_entry(&mut page.entries, uri, size, mtime),
                            Form::Detailed => {
                                let nanoseconds = meta.version.mtime_nanoseconds();
                                encode_detailed(&mut page.entries, uri, size, mtime, nanoseconds);
                            }
                        }
                        page.count += 1;
                        after.clear();
                        after.extend_from_slice(path);
                    }
                    if is_over() {
                        return Ok(None);
                    }
                }
                Step::LeftOut(reason) => {
                    let path = walk.path();
                    if is_full(page, path) {
                        break true;
                    }
                    page.leave_out(reason, path);
                    *after = walk.resume_path();
                }
            }
        };
        if !has_more {
            // A removed directory reads like an empty one.
            mapping.check_root()?;
        }
        Ok(Some(self.finish(paging, has_more)))
    }

    /// Ends a page early, where it has enough entries for a reply; the next page continues behind them.
    pub fn cut(&self, paging: &mut Paging) -> Option<Page> {
        (paging.page.entries.len() >= MIN_PAGE_BYTES).then(|| self.finish(paging, true))
    }

    fn finish(&self, paging: &mut Paging, has_more: bool) -> Page {
        let (session, listing) = (paging.session, paging.listing);
        if has_more {
            let after = std::mem::take(&mut paging.after);
            let cursor = Cursor { listing, after };
            paging.page.cursor = Some(cursor.encode(&paging.prefix, &self.key, session));
            self.save_batches(paging);
        } else {
            self.kept().retain(|kept| kept.listing != listing || kept.session != session);
        }
        // The page may wait long for its client.
        paging.page.entries.shrink_to_fit();
        let empty = Page { form: paging.page.form, entries: Vec::new(), count: 0, cursor: None };
        std::mem::replace(&mut paging.page, empty)
    }

    /// Keeps the batches that a paused page has read.
    pub fn save_batches(&self, paging: &mut Paging) {
        let batches: Vec<_> = paging.walk.take_batches().collect();
        batches.into_iter().for_each(|(directory_key, batch)| {
            self.save(paging.session, paging.listing, directory_key, batch)
        });
    }

    /// Drops the batches of a session that has ended.
    pub fn forget(&self, session: u64) {
        self.kept().retain(|kept| kept.session != session);
    }

    /// Drops batches that are too old. Called once a second.
    pub fn sweep(&self) {
        self.kept().retain(|kept| kept.since.elapsed() <= MAX_AGE);
    }

    #[cfg(test)]
    fn with_batches_of(names: usize) -> Listing {
        Listing { limits: BatchLimits { names, ..BatchLimits::default() }, ..Listing::default() }
    }

    fn take(&self, session: u64, listing: u64, directory_key: &[u8]) -> Option<Arc<NameBatch>> {
        let mut kept = self.kept();
        let matches = |kept: &SavedBatch| {
            kept.session == session && kept.listing == listing && kept.directory_key == directory_key
        };
        let at = kept.iter().position(matches)?;
        kept.remove(at).filter(|kept| kept.since.elapsed() <= MAX_AGE).map(|kept| kept.batch)
    }

    /// Over a limit, drops the oldest batch of the session with the most.
    fn save(&self, session: u64, listing: u64, directory_key: Vec<u8>, batch: Arc<NameBatch>) {
        let mut kept = self.kept();
        kept.push_back(SavedBatch { session, listing, directory_key, batch, since: Instant::now() });
        let mut weight: usize = kept.iter().map(SavedBatch::weight).sum();
        while weight > MAX_KEPT || kept.len() > MAX_BATCHES {
            let mut shares = HashMap::<u64, usize>::new();
            for kept in &*kept {
                *shares.entry(kept.session).or_default() += kept.weight();
            }
            let largest = shares.into_iter().max_by_key(|(_, share)| *share).map(|(session, _)| session);
            let at = kept.iter().position(|kept| Some(kept.session) == largest);
            let Some(dropped) = at.and_then(|at| kept.remove(at)) else { break };
            weight -= dropped.weight();
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<SavedBatch>> {
        unpoisoned(self.kept.lock())
    }
}

impl Paging {
    /// The number of the listing, under which [`Listing::save_batches`] keeps its batches.
    pub fn listing(&self) -> u64 {
        self.listing
    }

    /// Begins as a page of this listing: gets the batches of one that gave up its place.
    pub fn with_listing(self, listing: u64) -> Paging {
        Paging { listing, ..self }
    }
}

impl SavedBatch {
    fn weight(&self) -> usize {
        self.batch.weight() + self.directory_key.capacity() + size_of::<SavedBatch>()
    }
}

/// The file at the walk's position.
#[derive(Debug, PartialEq, Eq)]
enum Lookup {
    Object(ObjectMeta),
    /// No object, or no longer one.
    Nothing,
    /// The server may read the directory's names, but may not stat its entries.
    Forbidden,
}

fn stat(mapping: &Mapping, walk: &mut Walk) -> Result<Lookup, Error> {
    let Some((directory, name)) = walk.here(mapping)? else {
        return Ok(Lookup::Nothing);
    };
    let stat = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Lookup::Nothing),
        Err(Errno::ACCESS) => return Ok(Lookup::Forbidden),
        answer => answer.map_err(Error::from_open)?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Lookup::Object(ObjectMeta::from_stat(&stat))),
        FileType::Symlink if mapping.follows_symlinks() => {
            let path = std::ffi::CString::new(walk.path()).map_err(|_| Error::BadPath)?;
            match mapping.stat(&path) {
                Ok(meta) => Ok(Lookup::Object(meta)),
                Err(error @ (Error::Busy(_) | Error::OutOfMemory | Error::Storage(_))) => Err(error),
                Err(_) => Ok(Lookup::Nothing),
            }
        }
        _ => Ok(Lookup::Nothing),
    }
}

#[cfg(test)]
#[path = "listing_tests/mod.rs"]
mod tests;
