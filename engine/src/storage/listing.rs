//! All objects below a prefix, in the order of their URIs, a page at a time.
//!
//! A page knows of the one before only the path at which that ended, so whatever is added or removed meanwhile, an object
//! that is there all the time is listed once. Directories are read in runs of bounded size; the run in which a page ends
//! is kept for the next page of the same listing, and for no other: an object that is put before a listing begins must be
//! in it.

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::errors::Error;
use crate::protocol::v2::{self, encode_detailed, encode_entry, encode_left_out};
use crate::rules::View;
use crate::storage::cursor::Cursor;
use crate::storage::directory_run::{Run, RunLimits};
use crate::storage::mapping::{Found, Mapping, relative_path};
use crate::storage::walk::{LeftOut, Step, Walk};

/// Where the caller names no limit.
pub const DEFAULT_LIMIT: u32 = 1_000;
pub const MAX_LIMIT: u32 = 10_000;
/// Bytes of entries in a page.
const MOST_CONTENT: usize = 1 << 20;
/// Bytes of an entry beside its path: kind, length and slash, size, time and nanoseconds.
const MOST_FACTS: usize = 24;
/// Bytes of runs that are kept, for all listings together, how many, and for how long.
const MOST_KEPT: usize = 16 << 20;
const MOST_RUNS: usize = 256;
const KEEP: Duration = Duration::from_secs(60);

/// How the entries of a page are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// `uri_len(2) uri size(8) mtime(8)` each, integers big-endian.
    #[default]
    Plain,
    /// `kind(1) path_len(2) path` each; behind an object `size(8) mtime(8) nanoseconds(4)`. It also says what is left out.
    Detailed,
}

impl Form {
    /// The form to answer with, where a request names one.
    pub fn asked_for(number: Option<u8>) -> Form {
        if number.is_some_and(|number| number > 0) { Form::Detailed } else { Form::Plain }
    }

    /// What the response says of it.
    pub fn number(self) -> Option<u8> {
        (self == Form::Detailed).then_some(1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub form: Form,
    pub entries: Vec<u8>,
    pub count: u32,
    /// Where the next page goes on; None on the last. A page may be short, even empty, and yet have one.
    pub cursor: Option<Vec<u8>>,
}

/// What listings that are under way have already read of large directories. One for all sessions.
#[derive(Debug, Default)]
pub struct Listing {
    kept: Mutex<VecDeque<Kept>>,
    next: AtomicU64,
    limits: RunLimits,
}

/// A run that the next page of a listing will go on in.
#[derive(Debug)]
struct Kept {
    listing: u64,
    place: Vec<u8>,
    run: Arc<Run>,
    since: Instant,
}

impl Listing {
    /// The first page of all objects whose URI starts with `prefix`, or the one after that which gave `cursor`. The leading
    /// slash is optional, `/` means everything; `limit` 0 means [`DEFAULT_LIMIT`].
    ///
    /// Links are listed where the mapping follows them and they lead to objects; what lies below a link to a directory is
    /// listed only where the prefix itself leads there, since links can form circles. What the server cannot read and what
    /// has no URI is left out; the detailed form says so. What `view` hides is left out without a word.
    pub fn page_in(
        &self,
        form: Form,
        mapping: &Mapping,
        view: Option<&View>,
        prefix: &str,
        cursor: Option<&[u8]>,
        limit: u32,
    ) -> Result<Page, Error> {
        let limit = if limit == 0 { DEFAULT_LIMIT } else { limit.min(MAX_LIMIT) };
        let prefix = prefix.strip_prefix('/').unwrap_or(prefix);
        let (directory, name) = prefix.split_at(prefix.rfind('/').map_or(0, |at| at + 1));
        if let Some(directory) = directory.strip_suffix('/') {
            relative_path(directory, &mut Vec::new())?;
        }
        let cursor = match cursor {
            Some(bytes) => Cursor::decode(bytes, prefix.as_bytes())?,
            None => Cursor { listing: self.next.fetch_add(1, Relaxed), after: Vec::new() },
        };
        let listing = cursor.listing;
        let mut walk = Walk::new(mapping, view, directory, name, &cursor.after, self.limits)
            .reporting(form == Form::Detailed);
        let mut page = Page { form, entries: Vec::new(), count: 0, cursor: None };
        let mut after = cursor.after.clone();
        let goes_on = loop {
            match walk.step(|place| self.take(listing, place))? {
                Step::End => break false,
                Step::Pause(at) => {
                    after = at;
                    break true;
                }
                Step::Object => {
                    let Some(found) = stat(mapping, &mut walk)? else {
                        continue;
                    };
                    let path = walk.path();
                    if page.count == limit || page.entries.len() + path.len() + MOST_FACTS > MOST_CONTENT {
                        break true;
                    }
                    let (uri, size, mtime) = ([&b"/"[..], path], found.size, found.mtime);
                    match form {
                        Form::Plain => encode_entry(&mut page.entries, uri, size, mtime),
                        Form::Detailed => {
                            let nanoseconds = found.version.mtime_nanoseconds();
                            encode_detailed(&mut page.entries, uri, size, mtime, nanoseconds);
                        }
                    }
                    page.count += 1;
                    after.clear();
                    after.extend_from_slice(path);
                }
                Step::LeftOut(reason) => {
                    let path = walk.path();
                    if page.count == limit || page.entries.len() + path.len() + MOST_FACTS > MOST_CONTENT {
                        break true;
                    }
                    let kind = match reason {
                        LeftOut::Name => v2::LEFT_OUT_NAME,
                        LeftOut::Unreadable => v2::LEFT_OUT_UNREADABLE,
                    };
                    encode_left_out(&mut page.entries, kind, [b"/", path]);
                    page.count += 1;
                    after = walk.place();
                }
            }
        };
        if goes_on {
            walk.into_runs().for_each(|(place, run)| self.keep(listing, place, run));
            page.cursor = Some(Cursor { listing, after }.encode(prefix.as_bytes()));
        } else {
            self.kept().retain(|kept| kept.listing != listing);
        }
        Ok(page)
    }

    #[cfg(test)]
    fn with_runs_of(names: usize) -> Listing {
        Listing { limits: RunLimits { names, ..RunLimits::default() }, ..Listing::default() }
    }

    fn take(&self, listing: u64, place: &[u8]) -> Option<Arc<Run>> {
        let mut kept = self.kept();
        let at = kept.iter().position(|kept| kept.listing == listing && kept.place == place)?;
        kept.remove(at).map(|kept| kept.run)
    }

    fn keep(&self, listing: u64, place: Vec<u8>, run: Arc<Run>) {
        let mut kept = self.kept();
        kept.push_back(Kept { listing, place, run, since: Instant::now() });
        let mut weight: usize = kept.iter().map(Kept::weight).sum();
        while let Some(oldest) = kept.front()
            && (weight > MOST_KEPT || kept.len() > MOST_RUNS || oldest.since.elapsed() > KEEP)
        {
            weight -= oldest.weight();
            kept.pop_front();
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn weight(&self) -> usize {
        self.run.weight() + self.place.capacity() + size_of::<Kept>()
    }
}

/// What the walk stands at; None where that is no object, or no longer.
fn stat(mapping: &Mapping, walk: &mut Walk<'_>) -> Result<Option<Found>, Error> {
    let Some((directory, name)) = walk.here()? else {
        return Ok(None);
    };
    let stat = match fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT | Errno::ACCESS) => return Ok(None),
        answer => answer.map_err(Error::from_open)?,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(Found::of(&stat))),
        FileType::Symlink if mapping.follows_symlinks() => {
            let path = std::ffi::CString::new(walk.path()).map_err(|_| Error::BadPath)?;
            match mapping.stat(&path) {
                Ok(found) => Ok(Some(found)),
                Err(error @ (Error::Busy(_) | Error::OutOfMemory | Error::Storage(_))) => Err(error),
                Err(_) => Ok(None),
            }
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
#[path = "listing_tests/mod.rs"]
mod tests;
