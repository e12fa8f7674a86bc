//! A walk through a tree in the order of URIs, which can be left anywhere and gone on with later.
//!
//! It holds one descriptor and a bounded amount of names, however deep and wide the tree is: what does not fit is read again.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::ffi::CString;
use std::sync::Arc;

use crate::access::rules::View;
use crate::errors::Error;
use crate::protocol::MAX_URI;
use crate::storage::dir_batch::{Bound, NameBatch, Reading, RunLimits, Wanted};
use crate::storage::mapping::Mapping;

/// The longest path: a URI has a slash in front.
const MAX_PATH: usize = MAX_URI - 1;
/// Directories that one page enters; beyond that it ends, so that a tree without objects keeps no thread for long.
const MOST_DIRECTORIES: usize = 4096;
/// Names that are passed over between two looks at the clock.
const MOST_PASSED: usize = 64;
/// Bytes of runs that one walk holds besides the innermost.
const MOST_HELD: usize = 8 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// [`Walk::path`] is perhaps one.
    Object,
    /// [`Walk::path`] would be one, or a directory with some in it, and cannot be listed.
    LeftOut(LeftOut),
    /// Enough for one page; this is where to go on.
    PageFull(Vec<u8>),
    /// The turn is over; the next step goes on.
    Remainder,
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

/// Behind the path of a directory that a page has reported, in a cursor: no name has this byte.
const REPORTED: u8 = 0;

#[derive(Debug)]
pub(crate) struct Walk {
    /// None where nothing is hidden.
    view: Option<View>,
    /// Whether it stops at what it leaves out.
    reports: bool,
    limits: RunLimits,
    /// What the names in the outermost directory begin with.
    prefix: Vec<u8>,
    /// Where an earlier page ended.
    after: Vec<u8>,
    /// The innermost directory, empty or with a slash at its end, and behind it the name of the object that was found.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// The innermost directory, where it is needed.
    directory: Option<OwnedFd>,
    /// It is being read.
    reading: Option<Reading>,
    entered: usize,
}

#[derive(Debug)]
struct Level {
    /// How much of the path is the directory.
    length: usize,
    /// From where the run is, or would be, needed.
    bound: Bound,
    run: Option<Arc<NameBatch>>,
    next: usize,
}

impl Walk {
    /// Through `directory`, which is empty or ends in a slash, and all below it whose path starts with `directory` and
    /// `prefix`, from beyond `after` on, which is empty for a new walk.
    pub fn new(view: Option<View>, directory: &str, prefix: &str, after: &[u8], limits: RunLimits) -> Walk {
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

    /// The same walk, which also stops at what it leaves out.
    pub fn reporting(self, reports: bool) -> Walk {
        Walk { reports, ..self }
    }

    /// Where the next page goes on when this one has just taken what [`Walk::path`] is.
    pub fn place(&self) -> Vec<u8> {
        let mut place = self.path.clone();
        if place.ends_with(b"/") {
            place.push(REPORTED);
        }
        place
    }

    /// The path of the object that was found, below the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The next object; `kept` gives what is kept of an earlier page for a directory. Where the turn is over it rests, but gets
    /// further with each step.
    pub fn step(
        &mut self,
        mapping: &Mapping,
        kept: impl Fn(&[u8]) -> Option<Arc<NameBatch>>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Step, Error> {
        let mut passed = 0;
        loop {
            passed += 1;
            // Names that are hidden or left out bring no object, and are many, perhaps.
            if passed % MOST_PASSED == 0 && is_over() {
                return Ok(Step::Remainder);
            }
            let Some(level) = self.levels.last_mut() else {
                return Ok(Step::End);
            };
            self.path.truncate(level.length);
            let Some(run) = &level.run else {
                match self.fetch(mapping, &kept, is_over)? {
                    Fetched::Unreadable if self.may_report() => {
                        return Ok(Step::LeftOut(LeftOut::Unreadable));
                    }
                    _ if is_over() => return Ok(Step::Remainder),
                    _ => continue,
                }
            };
            match run.get(level.next) {
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
                    // On the way to where an earlier page ended, nothing is new yet; so each page gets further.
                    if self.entered >= MOST_DIRECTORIES && !self.after.starts_with(&self.path) {
                        return Ok(Step::PageFull(self.path.clone()));
                    }
                    self.enter();
                }
                None if !run.is_last => {
                    level.bound = run.last().map_or(Bound::START, Bound::after);
                    level.run = None;
                }
                None => {
                    self.levels.pop();
                    self.directory = None;
                }
            }
        }
    }

    /// Whether what is at the path is to be reported: an earlier page may have done so.
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

    /// What the next page may go on in: for each directory a name that is its own, and the run. The walk ends with it.
    pub fn take_runs(&mut self) -> impl Iterator<Item = (Vec<u8>, Arc<NameBatch>)> {
        let levels = std::mem::take(&mut self.levels);
        let (path, prefix) = (&self.path, &self.prefix);
        levels.into_iter().enumerate().filter_map(move |(depth, level)| {
            let run = level.run?;
            run.is_worth_keeping().then(|| (place(&path[..level.length], prefix, depth), run))
        })
    }

    /// Goes into the directory that is the path.
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
        self.levels.push(Level { length: self.path.len(), bound, run: None, next: 0 });
        self.lighten();
    }

    /// Forgets outer runs where they have become too many; they are read again from where they were left.
    fn lighten(&mut self) {
        let mut held: usize = self.levels.iter().filter_map(|level| Some(level.run.as_ref()?.weight())).sum();
        for level in &mut self.levels {
            if held <= MOST_HELD {
                break;
            }
            if let Some(run) = level.run.take() {
                held -= run.weight();
                let last = level.next.checked_sub(1).and_then(|last| run.get(last));
                level.bound = last.map_or(level.bound.clone(), Bound::after);
            }
        }
    }

    /// Gets the innermost directory's run, or a part of it.
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
        let mut run = None;
        if self.reading.is_none() {
            // Only on the way to where the earlier page ended can there be anything.
            let is_on_the_way = self.after.starts_with(&self.path);
            let from_before =
                if is_on_the_way { kept(&place(&self.path, &self.prefix, depth)) } else { None };
            run = from_before.filter(|run| run.covers(&level.bound));
            if run.is_none() {
                // Opened anew, since what is left of a directory that was read before is its end.
                self.directory = None;
                match open(mapping, &self.path)? {
                    Reached::Directory(directory) => {
                        let wanted = Wanted {
                            bound: level.bound.clone(),
                            prefix: if depth == 0 { self.prefix.clone() } else { Vec::new() },
                            symlinks: mapping.follows_symlinks(),
                        };
                        self.directory = Some(directory);
                        self.reading = Some(Reading::new(wanted, self.limits));
                    }
                    Reached::Nothing => run = Some(Arc::new(NameBatch::empty())),
                    Reached::Unreadable => {
                        fetched = Fetched::Unreadable;
                        run = Some(Arc::new(NameBatch::empty()));
                    }
                }
            }
        }
        if let (Some(mut reading), Some(directory)) = (self.reading.take(), &self.directory) {
            if !reading.go_on(directory, is_over).map_err(Error::from_open)? {
                self.reading = Some(reading);
                return Ok(Fetched::Part);
            }
            run = Some(Arc::new(reading.into_run()));
        }
        if let Some(run) = run {
            level.next = run.position(&level.bound);
            level.run = Some(run);
        }
        Ok(fetched)
    }
}

/// Names the directory, together with what is wanted of it.
fn place(directory: &[u8], prefix: &[u8], depth: usize) -> Vec<u8> {
    [directory, if depth == 0 { prefix } else { b"" }].concat()
}

#[derive(Debug, PartialEq, Eq)]
enum Fetched {
    Batch,
    /// There is more of the directory to be read.
    Part,
    /// An empty run stands for a directory that the server may not read.
    Unreadable,
}

#[derive(Debug)]
enum Reached {
    Directory(OwnedFd),
    /// No directory that could be listed.
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
