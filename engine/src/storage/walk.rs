//! A walk through a tree in the order of URIs, which can pause anywhere and continue later.
//!
//! It holds one descriptor and a bounded amount of names, however deep and wide the tree is: it reads names
//! beyond that again.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::ffi::CString;
use std::sync::Arc;

use crate::access::rules::View;
use crate::errors::Error;
use crate::protocol::MAX_URI;
use crate::storage::dir_batch::{BatchLimits, Bound, Filter, NameBatch, Reading};
use crate::storage::mapping::Mapping;

/// The longest path: a URI has a slash in front.
const MAX_PATH: usize = MAX_URI - 1;
/// Directories that one page enters; then the page ends, so that a tree without objects does not occupy a
/// thread for long.
const MAX_DIRECTORIES: usize = 4096;
/// Names skipped between two checks of the clock.
const MAX_PASSED: usize = 64;
/// Bytes of batches that one walk holds besides the innermost.
const MAX_HELD: usize = 8 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// [`Walk::path`] may be one.
    Object,
    /// [`Walk::path`] would be an object, or a directory with some, but cannot be listed.
    LeftOut(LeftOut),
    /// Enough for one page; the next one continues here.
    PageFull(Vec<u8>),
    /// The turn is over; the next step continues.
    TurnOver,
    End,
}

/// Why the walk leaves something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// Its name is not UTF-8, so it has no URI.
    Name,
    /// The server may not read the directory.
    Unreadable,
    /// Its URI would be too long.
    Long,
}

/// Follows the path of a directory that a page has reported, in a cursor: no name contains this byte.
const REPORTED: u8 = 0;

#[derive(Debug)]
pub(crate) struct Walk {
    /// None where nothing is hidden.
    view: Option<View>,
    /// Whether the walk reports what it leaves out.
    reports: bool,
    limits: BatchLimits,
    /// The prefix of names in the outermost directory.
    prefix: Vec<u8>,
    /// Where an earlier page ended.
    after: Vec<u8>,
    /// The innermost directory, empty or with a slash at its end, followed by the name of the object found.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// The innermost directory, once the walk needs it open.
    directory: Option<OwnedFd>,
    /// The reading under way.
    reading: Option<Reading>,
    entered: usize,
}

#[derive(Debug)]
struct Level {
    /// The length of the directory's part of the path.
    length: usize,
    /// The bound from which the walk needs the batch.
    bound: Bound,
    batch: Option<Arc<NameBatch>>,
    next: usize,
}

impl Walk {
    /// Walks `directory`, which is empty or ends in a slash, and all below it whose path starts with
    /// `directory` and `prefix`, from beyond `after` on; `after` is empty for a new walk.
    pub fn new(view: Option<View>, directory: &str, prefix: &str, after: &[u8], limits: BatchLimits) -> Walk {
        let mut walk = Walk {
            view,
            reports: false,
            limits,
            prefix: prefix.as_bytes().to_vec(),
            after: after.to_vec(),
            path: directory.as_bytes().to_vec(),
            levels: Vec::new(),
            directory: None,
            reading: None,
            entered: 0,
        };
        walk.enter();
        walk
    }

    /// The same walk, which reports what it leaves out if `reports`.
    pub fn reporting(self, reports: bool) -> Walk {
        Walk { reports, ..self }
    }

    /// Where the next page continues after this one has taken [`Walk::path`].
    pub fn resume_path(&self) -> Vec<u8> {
        let mut path = self.path.clone();
        if path.ends_with(b"/") {
            path.push(REPORTED);
        }
        path
    }

    /// The path of the object found, below the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Finds the next object; `kept` returns the batch that an earlier page kept for a directory. Pauses
    /// where the turn is over, but advances with each step.
    pub fn step(
        &mut self,
        mapping: &Mapping,
        kept: impl Fn(&[u8]) -> Option<Arc<NameBatch>>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Step, Error> {
        let mut passed = 0;
        loop {
            passed += 1;
            // Hidden or left-out names bring no object, and may be many.
            if passed % MAX_PASSED == 0 && is_over() {
                return Ok(Step::TurnOver);
            }
            let Some(level) = self.levels.last_mut() else {
                return Ok(Step::End);
            };
            self.path.truncate(level.length);
            let Some(batch) = &level.batch else {
                match self.fetch(mapping, &kept, is_over)? {
                    Fetched::Unreadable if self.may_report() => {
                        return Ok(Step::LeftOut(LeftOut::Unreadable));
                    }
                    _ if is_over() => return Ok(Step::TurnOver),
                    _ => continue,
                }
            };
            match batch.get(level.next) {
                Some(key) => {
                    level.next += 1;
                    let is_long = self.path.len() + key.len() > MAX_PATH;
                    self.path.extend_from_slice(key);
                    if self.view.as_ref().is_some_and(|view| view.excludes(&self.path)) {
                        continue;
                    }
                    if std::str::from_utf8(key).is_err() {
                        if self.may_report() {
                            return Ok(Step::LeftOut(LeftOut::Name));
                        }
                        continue;
                    }
                    if is_long {
                        if self.may_report() {
                            return Ok(Step::LeftOut(LeftOut::Long));
                        }
                        continue;
                    }
                    if !key.ends_with(b"/") {
                        return Ok(Step::Object);
                    }
                    // On the way to where the earlier page ended there is nothing new yet; so each page advances.
                    if self.entered >= MAX_DIRECTORIES && !self.after.starts_with(&self.path) {
                        return Ok(Step::PageFull(self.path.clone()));
                    }
                    self.enter();
                }
                None if !batch.is_last => {
                    level.bound = batch.last().map_or(Bound::START, Bound::after);
                    level.batch = None;
                }
                None => {
                    self.levels.pop();
                    self.directory = None;
                }
            }
        }
    }

    /// Whether to report the path: an earlier page may have done so.
    fn may_report(&self) -> bool {
        self.reports && self.after.strip_prefix(&*self.path) != Some(&[REPORTED])
    }

    /// The directory in which the object was found, and its name there; None where the directory is gone.
    pub fn here(&mut self, mapping: &Mapping) -> Result<Option<(&OwnedFd, CString)>, Error> {
        let length = self.levels.last().map_or(0, |level| level.length);
        let name = CString::new(&self.path[length..]).map_err(|_| Error::BadPath)?;
        if self.directory.is_none() {
            self.directory = match open(mapping, &self.path[..length])? {
                Reached::Directory(directory) => Some(directory),
                Reached::Nothing | Reached::Unreadable => None,
            };
        }
        Ok(self.directory.as_ref().map(|directory| (directory, name)))
    }

    /// The batches in which the next page may continue: for each directory a key and its batch. Ends the walk.
    pub fn take_batches(&mut self) -> impl Iterator<Item = (Vec<u8>, Arc<NameBatch>)> {
        let levels = std::mem::take(&mut self.levels);
        let (path, prefix) = (&self.path, &self.prefix);
        levels.into_iter().enumerate().filter_map(move |(depth, level)| {
            let batch = level.batch?;
            batch.is_worth_keeping().then(|| (directory_key(&path[..level.length], prefix, depth), batch))
        })
    }

    /// Enters the directory at the path.
    fn enter(&mut self) {
        self.directory = None;
        let bound = match self.after.strip_prefix(&*self.path) {
            None => {
                self.entered += 1;
                Bound::START
            }
            Some(rest) => match rest.iter().position(|&byte| byte == b'/') {
                Some(slash) => Bound::from(&rest[..=slash]),
                None => Bound::after(rest),
            },
        };
        self.levels.push(Level { length: self.path.len(), bound, batch: None, next: 0 });
        self.lighten();
    }

    /// Drops outer batches where they hold too much; the walk reads them again from where it left them.
    fn lighten(&mut self) {
        let mut held: usize =
            self.levels.iter().filter_map(|level| Some(level.batch.as_ref()?.weight())).sum();
        for level in &mut self.levels {
            if held <= MAX_HELD {
                break;
            }
            if let Some(batch) = level.batch.take() {
                held -= batch.weight();
                let last = level.next.checked_sub(1).and_then(|last| batch.get(last));
                level.bound = last.map_or(level.bound.clone(), Bound::after);
            }
        }
    }

    /// Gets the innermost directory's batch, or a part of it.
    fn fetch(
        &mut self,
        mapping: &Mapping,
        kept: impl Fn(&[u8]) -> Option<Arc<NameBatch>>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Fetched, Error> {
        let depth = self.levels.len() - 1;
        let Some(level) = self.levels.last_mut() else {
            return Ok(Fetched::Batch);
        };
        let mut fetched = Fetched::Batch;
        let mut batch = None;
        if self.reading.is_none() {
            // An earlier page keeps batches only for directories on the way to where it ended.
            let is_on_the_way = self.after.starts_with(&self.path);
            let from_before =
                if is_on_the_way { kept(&directory_key(&self.path, &self.prefix, depth)) } else { None };
            batch = from_before.filter(|batch| batch.covers(&level.bound));
            if batch.is_none() {
                // Opens it anew: the descriptor of a directory read before is at its end.
                self.directory = None;
                match open(mapping, &self.path)? {
                    Reached::Directory(directory) => {
                        let filter = Filter {
                            bound: level.bound.clone(),
                            prefix: if depth == 0 { self.prefix.clone() } else { Vec::new() },
                            symlinks: mapping.follows_symlinks(),
                        };
                        self.directory = Some(directory);
                        self.reading = Some(Reading::new(filter, self.limits));
                    }
                    Reached::Nothing => batch = Some(Arc::new(NameBatch::empty())),
                    Reached::Unreadable => {
                        fetched = Fetched::Unreadable;
                        batch = Some(Arc::new(NameBatch::empty()));
                    }
                }
            }
        }
        if let (Some(mut reading), Some(directory)) = (self.reading.take(), &self.directory) {
            if !reading.advance(directory, is_over).map_err(Error::from_open)? {
                self.reading = Some(reading);
                return Ok(Fetched::Part);
            }
            batch = Some(Arc::new(reading.into_batch()));
        }
        if let Some(batch) = batch {
            level.next = batch.position(&level.bound);
            level.batch = Some(batch);
        }
        Ok(fetched)
    }
}

/// The key of a directory's batch: its path, and for the outermost directory the prefix.
fn directory_key(directory: &[u8], prefix: &[u8], depth: usize) -> Vec<u8> {
    [directory, if depth == 0 { prefix } else { b"" }].concat()
}

#[derive(Debug, PartialEq, Eq)]
enum Fetched {
    Batch,
    /// More of the directory remains to be read.
    Part,
    /// An empty batch stands for a directory that the server may not read.
    Unreadable,
}

#[derive(Debug)]
enum Reached {
    Directory(OwnedFd),
    /// Not a directory that can be listed.
    Nothing,
    Unreadable,
}

fn open(mapping: &Mapping, directory: &[u8]) -> Result<Reached, Error> {
    let path = CString::new(directory.strip_suffix(b"/").unwrap_or(b".")).map_err(|_| Error::BadPath)?;
    match mapping.open_directory(&path) {
        Ok(directory) => Ok(Reached::Directory(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => {
            Ok(Reached::Nothing)
        }
        Err(Errno::ACCESS | Errno::PERM) => Ok(Reached::Unreadable),
        Err(errno) => Err(Error::from_open(errno)),
    }
}
