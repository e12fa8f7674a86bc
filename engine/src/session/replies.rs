//! From what is asked to a reply in the outbox: at once where nothing has to be waited for, else by way of the storage pool.

use rustix::fd::OwnedFd;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::copies::PutDescriptor;
use super::descriptors::Source;
use super::errand::{Errand, Owed, Rest, part};
use super::outbox::{Ending, Payload, Segment, end_of_part_ahead, is_in_memory};
use super::{Manner, Scratch, Session};
use crate::errors::Error;
use crate::journal::Note;
use crate::protocol::{self, Operation, Status, v2};
use crate::storage::cache::Cached;
use crate::storage::listing::{Form, WantedPage};
use crate::storage::mapping::{self, Found, Opened};
use crate::storage::target::{Conditions, Match};
use crate::transport;
use crate::transport::Transport;

/// Contents up to this size are copied beside their head; larger ones go by sendfile.
pub(super) const SMALL: u64 = 64 << 10;
/// One turn of a session sends so many bytes of files before others have theirs. Few, so that clients of the same file stay
/// close together: what one of them brought into the processor's caches is there for the next.
pub(super) const BYTES_A_TURN: usize = 256 << 10;
/// And takes in so many of what is put.
pub(super) const CONTENT_A_TURN: usize = 4 << 20;
/// So many bytes of a file the disk is asked for at once, before any of them is sent.
pub(super) const BYTES_AHEAD: u64 = 4 << 20;

/// How a reply is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    One,
    Two { id: u32, extended: bool },
}

/// What a reply must know of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub framing: Framing,
    pub operation: Operation,
    /// When the request was there as a whole.
    pub complete_at: Instant,
    /// When storage had found what is answered, where it was waited for, or when its sending began, where it takes more than a turn.
    pub answered_at: Option<Instant>,
    pub uri: Note,
}

/// A request of either version.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub asked: Asked,
    pub uri: &'a str,
    pub parameters: v2::Parameters<'a>,
    pub has_priority: bool,
    /// What came along with a put by descriptor.
    pub source: Option<Source>,
}

impl Wanted<'_> {
    pub fn conditions(&self) -> Result<Conditions, Error> {
        Ok(Conditions {
            if_match: self.parameters.if_match.map(Match::parse).transpose()?,
            if_none_match: self.parameters.if_none_match.map(Match::parse).transpose()?,
        })
    }

    /// When the client gives up; DEADLINE_PASSED where it has.
    pub fn deadline(&self, scratch: &Scratch) -> Result<Option<Instant>, Error> {
        let Some(left) = self.parameters.deadline else { return Ok(None) };
        let left = left.saturating_sub(scratch.queued.map_or(Duration::ZERO, |queued| queued.wait));
        let deadline = self.asked.complete_at + left;
        if Instant::now() >= deadline { Err(Error::DeadlinePassed) } else { Ok(Some(deadline)) }
    }
}

impl Session {
    /// Answers a request, or sends an errand for it. An error is the answer, and the caller's to push.
    pub(super) fn attend(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        mut wanted: Wanted<'_>,
    ) -> Result<(), Error> {
        let operation = wanted.asked.operation;
        let deadline = wanted.deadline(scratch)?;
        let conditions = wanted.conditions()?;
        if matches!(operation, Operation::PutDescriptor | Operation::Delete) && self.service.staging.is_none()
        {
            return Err(Error::NotWritable);
        }
        if matches!(operation, Operation::FdPass | Operation::PutDescriptor)
            && self.transport != Transport::Unix
        {
            return Err(Error::ModeNeedsUnix);
        }
        let parameters = wanted.parameters;
        let rest = match operation {
            Operation::List => {
                let (prefix, view) = (wanted.uri.to_owned(), self.check_list(wanted.uri)?);
                let cursor = parameters.cursor.map(<[u8]>::to_vec);
                let (form, limit) = (Form::asked_for(parameters.form), parameters.limit.unwrap_or(0));
                self.has_listed = true;
                let session = self.connection.number();
                Rest::List(WantedPage { session, form, view, prefix, cursor, limit })
            }
            _ => Rest::Nothing,
        };
        let mut path = std::mem::take(&mut scratch.path);
        let outcome = (|| {
            let path = match operation {
                Operation::List => c"",
                _ => mapping::relative_path(wanted.uri, &mut path)?,
            };
            if operation != Operation::List {
                self.check_use(path.to_bytes())?;
            }
            if operation == Operation::FdPass {
                self.check_descriptors(1)?;
            }
            if operation == Operation::PutDescriptor {
                let source = wanted.source.take().ok_or(Error::BadDescriptor)?;
                let to = (path.to_owned(), parameters.make_parents, conditions);
                self.jobs += 1;
                let owed = Owed::new(&self.connection, operation);
                PutDescriptor::submit(&self.service, owed, wanted.asked, deadline, source, to);
                return Ok(());
            }
            if self.attend_at_once(scratch, manner, &wanted, path, conditions)? {
                return Ok(());
            }
            let errand = Errand {
                operation,
                path: path.to_owned(),
                offset: parameters.offset.unwrap_or(0),
                length: parameters.length,
                conditions,
                deadline,
                room: 0,
                rest,
            };
            self.send_errand(scratch, manner, wanted.asked, errand, wanted.has_priority)
        })();
        scratch.path = path;
        outcome
    }

    /// Answers what needs no waiting, or where this thread may wait; false where an errand must be sent.
    fn attend_at_once(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        wanted: &Wanted<'_>,
        path: &CStr,
        conditions: Conditions,
    ) -> Result<bool, Error> {
        let may_wait = self.may_wait(manner);
        let asked = wanted.asked;
        match asked.operation {
            Operation::FdPass => {
                let Some(opened) = self.open(path, may_wait)? else { return Ok(false) };
                conditions.check_version(Some(&opened.version))?;
                self.push_descriptor(scratch, asked, opened)?;
            }
            Operation::Copy | Operation::Splice => {
                return self.copy_at_once(scratch, wanted, path, conditions, may_wait);
            }
            Operation::Stat => {
                let found = match may_wait {
                    true => self.service.mapping.stat(path)?,
                    false => match self.service.mapping.stat_cached(path)? {
                        Some(found) => found,
                        None => return Ok(false),
                    },
                };
                conditions.check_version(Some(&found.version))?;
                self.push_known(scratch, asked, Some(&found));
            }
            Operation::List | Operation::Put | Operation::PutDescriptor | Operation::Delete => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn open(&self, path: &CStr, may_wait: bool) -> Result<Option<Opened>, Error> {
        match may_wait {
            true => self.service.mapping.open(path).map(Some),
            false => self.service.mapping.open_cached(path),
        }
    }

    fn copy_at_once(
        &mut self,
        scratch: &mut Scratch,
        wanted: &Wanted<'_>,
        path: &CStr,
        conditions: Conditions,
        may_wait: bool,
    ) -> Result<bool, Error> {
        let (asked, offset, length) =
            (wanted.asked, wanted.parameters.offset.unwrap_or(0), wanted.parameters.length);
        let is_cached = asked.operation == Operation::Copy && self.service.cache.is_on();
        let most_small = self.most_small(scratch);
        if is_cached
            && let Some(Cached { version, bytes, .. }) = self.service.cache.get(path, asked.complete_at)
            && self.service.mapping.is_still(path, &version)
        {
            let (at, end) = part(bytes.len() as u64, offset, length);
            if end - at <= most_small {
                self.service.statistics.record_cache(scratch.shard, true);
                conditions.check_version(Some(&version))?;
                let found = Found { size: bytes.len() as u64, mtime: version.mtime(), version };
                self.push_bytes(scratch, asked, &found, &bytes[at as usize..end as usize]);
                return Ok(true);
            }
        }
        let seen = is_cached.then(SystemTime::now);
        let Some(opened) = self.open(path, may_wait)? else { return Ok(false) };
        conditions.check_version(Some(&opened.version))?;
        let (at, end) = part(opened.size, offset, length);
        if end > at && (end - at > most_small || asked.operation == Operation::Splice) {
            // Once its head is out, everything behind it waits for the content, and a failure can only close.
            if may_wait {
                transport::touch(&opened.file, at, 1).map_err(Error::Storage)?;
            } else if !is_in_memory(&opened.file, end_of_part_ahead(at, end)) {
                return Ok(false);
            }
            self.push_file(scratch, asked, opened, at, end);
            return Ok(true);
        }
        let before = scratch.out.len();
        push_head(&mut scratch.out, asked, end - at, Some(&opened.found()));
        let start = scratch.out.len();
        match append_part(&opened.file, at, end, &mut scratch.out, may_wait) {
            Ok(true) => {}
            Ok(false) => {
                scratch.out.truncate(before);
                return Ok(false);
            }
            Err(error) => {
                scratch.out.truncate(before);
                return Err(error);
            }
        }
        let content = (scratch.out.len() - start) as u64;
        if content != end - at {
            // The file became shorter meanwhile.
            correct_length(&mut scratch.out[before..], asked.framing, content);
        }
        if let Some(seen) = seen {
            self.service.statistics.record_cache(scratch.shard, false);
            if content == opened.size {
                self.service.keep(path, &opened, &scratch.out[start..], seen);
            }
        }
        let length = scratch.out.len() - before;
        self.push_buffered(length, Some(Ending { asked, status: Status::Ok, content }));
        Ok(true)
    }

    pub(super) fn push_descriptor(
        &mut self,
        scratch: &mut Scratch,
        asked: Asked,
        opened: Opened,
    ) -> Result<(), Error> {
        mapping::clear_status_flags(&opened.file)?;
        self.hold();
        let ends = Some(Ending { asked, status: Status::Ok, content: 0 });
        let found = opened.found();
        let payload = match asked.framing {
            Framing::One => Payload::Descriptor { byte: Status::Ok as u8, file: opened.file },
            Framing::Two { extended, .. } => {
                let before = scratch.out.len();
                push_head(&mut scratch.out, asked, if extended { found.size } else { 0 }, Some(&found));
                let length = scratch.out.len() - before;
                if extended {
                    Payload::Carrying { length, file: opened.file }
                } else {
                    self.push_buffered(length, None);
                    Payload::Descriptor { byte: v2::MARKER, file: opened.file }
                }
            }
        };
        self.outbox.push_back(Segment { payload, ends });
        Ok(())
    }

    pub(super) fn push_bytes(&mut self, scratch: &mut Scratch, asked: Asked, found: &Found, bytes: &[u8]) {
        let before = scratch.out.len();
        push_head(&mut scratch.out, asked, bytes.len() as u64, Some(found));
        scratch.out.extend_from_slice(bytes);
        let ending = Ending { asked, status: Status::Ok, content: bytes.len() as u64 };
        let length = scratch.out.len() - before;
        self.push_buffered(length, Some(ending));
    }

    /// The part that the first turn sends is in memory, or may be waited for.
    pub(super) fn push_file(
        &mut self,
        scratch: &mut Scratch,
        asked: Asked,
        opened: Opened,
        at: u64,
        end: u64,
    ) {
        let before = scratch.out.len();
        push_head(&mut scratch.out, asked, end - at, Some(&opened.found()));
        let length = scratch.out.len() - before;
        self.push_buffered(length, None);
        let ends = Some(Ending { asked, status: Status::Ok, content: end - at });
        self.hold();
        let payload =
            Payload::File { file: Arc::new(opened.file), at, end, warm: end_of_part_ahead(at, end) };
        self.outbox.push_back(Segment { payload, ends });
    }

    /// A response that is its metadata.
    pub(super) fn push_known(&mut self, scratch: &mut Scratch, asked: Asked, found: Option<&Found>) {
        let before = scratch.out.len();
        push_head(&mut scratch.out, asked, 0, found);
        let length = scratch.out.len() - before;
        self.push_buffered(length, Some(Ending { asked, status: Status::Ok, content: 0 }));
    }

    pub(super) fn push_buffered(&mut self, length: usize, ends: Option<Ending>) {
        self.outbox.push_back(Segment { payload: Payload::Buffered(length), ends });
    }

    pub(super) fn push_error(&mut self, scratch: &mut Scratch, asked: Asked, error: Error) {
        let error = self.service.note_failure(error, asked.operation, &asked.uri);
        self.count_refusal(&error);
        let before = scratch.out.len();
        let (status, text) = (error.status(), error.to_string());
        match asked.framing {
            Framing::One => protocol::encode_error(&mut scratch.out, status, &text),
            Framing::Two { id, .. } => v2::encode_refusal(&mut scratch.out, id, status, &text),
        }
        let length = scratch.out.len() - before;
        self.push_buffered(length, Some(Ending { asked, status, content: 0 }));
    }
}

/// What precedes a content, or stands alone. In version 1 only contents have a head.
pub(super) fn push_head(out: &mut Vec<u8>, asked: Asked, content: u64, found: Option<&Found>) {
    match asked.framing {
        Framing::One => out.extend_from_slice(&protocol::content_head(content)),
        Framing::Two { id, .. } => {
            let etag = found.map(Found::etag);
            // Left out of answers with a content, where a client that needs no time would pay for them.
            let is_exact =
                matches!(asked.operation, Operation::Stat | Operation::Put | Operation::PutDescriptor);
            let metadata = v2::Metadata {
                size: found.map(|found| found.size),
                mtime: found.map(|found| found.mtime as u64),
                nanoseconds: found.filter(|_| is_exact).map(|found| found.version.mtime_nanoseconds()),
                etag: etag.as_ref().map(<[u8; 16]>::as_slice),
                ..v2::Metadata::default()
            };
            v2::encode_response(out, id, Status::Ok, content, &metadata);
        }
    }
}

/// Puts another length into a head that was pushed.
fn correct_length(head: &mut [u8], framing: Framing, content: u64) {
    let at = if framing == Framing::One { 1 } else { v2::CONTENT_LEN_AT };
    head[at..at + 8].copy_from_slice(&content.to_be_bytes());
}

/// Appends what the file has between two offsets; fewer bytes where it ends before. False where the disk would have to be
/// waited for, and this thread may not.
fn append_part(file: &OwnedFd, at: u64, end: u64, out: &mut Vec<u8>, may_wait: bool) -> Result<bool, Error> {
    let start = out.len();
    let length = (end - at) as usize;
    out.resize(start + length, 0);
    let mut have = 0;
    while have < length {
        let (room, offset) = (&mut out[start + have..], at + have as u64);
        let read = match may_wait {
            false => match mapping::read_cached(file, room, offset)? {
                Some(read) => read,
                None => return Ok(false),
            },
            true => match rustix::io::pread(file, room, offset) {
                Err(rustix::io::Errno::INTR) => continue,
                answer => answer.map_err(Error::Storage)?,
            },
        };
        if read == 0 {
            break;
        }
        have += read;
    }
    out.truncate(start + have);
    Ok(true)
}
