//! What can go wrong, with the status and the message that a client gets for it.

use rustix::io::Errno;
use std::fmt;

use crate::protocol::Status;

/// Why the server refused a request, or failed to answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// No object exists at the URI.
    NotFound,
    /// The URI has an empty, `.` or `..` segment, or one that no file system could hold.
    BadPath,
    /// The URI leads to a symbolic link, which this server does not follow.
    Symlink,
    /// The URI leads out of the root.
    Outside,
    /// A directory, a FIFO, a device or a socket: the server serves regular files only.
    NotRegular,
    /// The server's own user has no permission to read it.
    NoPermission,
    /// The client's user is not on the list of users that may connect.
    NotAdmitted,
    /// The client's user is not on the list for this prefix, or the transport has no users.
    NotForThisUser,
    /// This server takes no writes.
    NotWritable,
    /// The server's own user has no permission to write there.
    MayNotWrite,
    /// A write to a URI that is a directory.
    IsDirectory,
    /// A write below a URI that is an object.
    NotDirectory,
    /// A write into a directory that does not exist.
    NoDirectory,
    /// A write to a URI that is a symbolic link.
    WriteToLink,
    /// A write to another file system that is mounted below the root: rename(2) cannot reach it.
    OtherFileSystem,
    /// The object's state does not, or no longer, match the request's conditions.
    Conflict,
    /// Neither 16 hex digits nor `*`.
    BadEtag,
    /// A put by descriptor of a file other than a regular file open for reading.
    BadDescriptor,
    /// A put of more bytes than `max_object_size`.
    TooLarge,
    /// A content arrives more slowly than `min_upload_rate`, or takes longer than `upload_timeout`.
    UploadTooSlow,
    /// A put by descriptor of a file whose file system may never answer.
    SourceNotLocal,
    /// A put by descriptor of a file whose file system does not answer.
    SourceStuck,
    /// A put by descriptor of a file that became shorter during the copy.
    SourceShrank,
    /// The cursor does not belong to this prefix, or is damaged.
    BadCursor,
    /// The directory in which the server prepares writes has been removed.
    StagingGone,
    /// The root has been removed, replaced or unmounted.
    RootGone,
    /// Descriptors pass over Unix sockets only.
    ModeNeedsUnix,
    /// The server or the machine has no descriptor left, or the queue is full: another try may succeed.
    Busy(&'static str),
    /// The origin of the object does not give it.
    Origin(OriginFailure),
    /// A write to an object of an origin.
    OriginIsReadOnly,
    /// A list of objects of an origin.
    OriginIsNotListed,
    /// An object of an origin that is larger than the whole disk cache.
    LargerThanCache,
    /// The disk cache has no place: clients hold what could leave, or the disk is full.
    CacheFull,
    /// The object is on its way from its origin, and this transport does not wait for it.
    OnItsWay,
    /// The kernel is out of memory.
    OutOfMemory,
    /// The storage failed.
    Storage(Errno),
    /// The codec refused the frame.
    Refused(Status),
    /// The request did not arrive in time.
    TooSlow,
    /// The deadline of the request has passed.
    DeadlinePassed,
}

/// Why an origin does not give an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginFailure {
    /// It cannot be reached, or answers with an error of its own.
    Unavailable,
    /// It refuses the server's credentials.
    Forbidden,
    /// The object changed while it was fetched, each time.
    Changed,
    /// An answer that does not fit the question.
    Failed,
    /// The server stopped the download.
    Stopped,
}

impl Error {
    pub const QUEUE_FULL: Error = Error::Busy("the server's queue is full; try again");

    pub fn is_queue_full(&self) -> bool {
        matches!((self, Self::QUEUE_FULL), (Error::Busy(why), Error::Busy(full)) if *why == full)
    }

    /// The errno to count if storage failed; ETIMEDOUT for a disk that never answers.
    pub fn of_storage(&self) -> Option<Errno> {
        match self {
            Error::Storage(errno) => Some(*errno),
            Error::SourceStuck => Some(Errno::TIMEDOUT),
            _ => None,
        }
    }

    /// Maps an operating system's error to the error of a request for an object.
    pub fn from_open(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Error::NotFound,
            Errno::ACCESS | Errno::PERM => Error::NoPermission,
            Errno::LOOP => Error::Symlink,
            Errno::XDEV => Error::Outside,
            Errno::NXIO | Errno::NODEV | Errno::ISDIR => Error::NotRegular,
            Errno::NAMETOOLONG => Error::BadPath,
            Errno::MFILE | Errno::NFILE => Error::Busy("the server has no file descriptor left; try again"),
            Errno::AGAIN => Error::Busy("the path is being renamed; try again"),
            Errno::NOMEM => Error::OutOfMemory,
            other => Error::Storage(other),
        }
    }

    /// Maps an operating system's error to the error of a write.
    pub fn from_write(errno: Errno) -> Self {
        match errno {
            Errno::ACCESS | Errno::PERM => Error::MayNotWrite,
            Errno::ISDIR => Error::IsDirectory,
            Errno::NOTDIR => Error::NotDirectory,
            Errno::NOENT => Error::NoDirectory,
            Errno::XDEV => Error::OtherFileSystem,
            other => Error::from_open(other),
        }
    }

    /// The status byte on the wire.
    pub fn status(self) -> Status {
        match self {
            Error::NotFound => Status::NotFound,
            Error::NoDirectory => Status::NotFound,
            Error::BadPath | Error::BadEtag | Error::BadCursor => Status::InvalidRequest,
            Error::BadDescriptor | Error::SourceShrank => Status::InvalidRequest,
            Error::SourceNotLocal => Status::UnsupportedOp,
            Error::Symlink | Error::Outside | Error::NotRegular | Error::NoPermission => Status::Forbidden,
            // Reading a directory is FORBIDDEN (NotRegular), so writing to one is, too.
            Error::IsDirectory | Error::NotDirectory => Status::Forbidden,
            Error::NotAdmitted | Error::NotForThisUser => Status::Forbidden,
            Error::NotWritable | Error::MayNotWrite | Error::TooLarge => Status::Forbidden,
            Error::WriteToLink | Error::OtherFileSystem => Status::Forbidden,
            Error::Conflict => Status::Conflict,
            Error::ModeNeedsUnix => Status::InvalidMode,
            Error::Busy(_) | Error::CacheFull | Error::OnItsWay => Status::Unavailable,
            Error::Origin(OriginFailure::Forbidden) => Status::Forbidden,
            Error::Origin(_) => Status::Unavailable,
            Error::OriginIsReadOnly | Error::LargerThanCache => Status::Forbidden,
            Error::OriginIsNotListed => Status::UnsupportedOp,
            Error::OutOfMemory => Status::OutOfMemory,
            Error::Storage(_) | Error::StagingGone | Error::RootGone => Status::StorageError,
            Error::Refused(status) => status,
            Error::TooSlow | Error::DeadlinePassed | Error::UploadTooSlow | Error::SourceStuck => {
                Status::Timeout
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Error::NotFound => "no such object",
            Error::BadPath => "invalid URI: a segment is empty, '.', '..' or too long",
            Error::Symlink => {
                "a symbolic link, which this server does not follow; start it with --follow-symlinks"
            }
            Error::Outside => "outside the root",
            Error::NotRegular => "not a regular file",
            Error::NoPermission => "the server may not read this object",
            Error::ModeNeedsUnix => {
                "descriptors pass over Unix sockets only; use copy or splice, or put the content"
            }
            Error::NotAdmitted => {
                "this user may not connect; the server's allow_uid and allow_gid list the users that may"
            }
            Error::NotForThisUser => {
                "this client may not use this URI; the server's allow_prefix lists the users and groups that may"
            }
            Error::Busy(why) => why,
            Error::OutOfMemory => "out of memory",
            Error::Origin(OriginFailure::Unavailable) => {
                "the origin of this object is unreachable or fails; try again, or read the server's log"
            }
            Error::Origin(OriginFailure::Forbidden) => {
                "the origin of this object refuses the server's credentials; the server's log has its answer"
            }
            Error::Origin(OriginFailure::Changed) => {
                "the object changed at its origin while the server fetched it, twice; try again"
            }
            Error::Origin(OriginFailure::Failed) => {
                "the origin of this object sent an invalid answer; the server's log has it"
            }
            Error::Origin(OriginFailure::Stopped) => {
                "the server stopped the download from the origin; try again"
            }
            Error::OriginIsReadOnly => {
                "an object of an origin, which this server only reads; put it to the store itself"
            }
            Error::OriginIsNotListed => {
                "objects of an origin, which this server does not list; list the store itself"
            }
            Error::LargerThanCache => {
                "the object is larger than the server's disk cache; its disk_cache_size is the limit"
            }
            Error::CacheFull => {
                "the server's disk cache has no room, because clients hold its objects or the disk is full; try again"
            }
            Error::OnItsWay => "the object is on its way from its origin; try again, or ask over TCP",
            Error::NotWritable => "this server accepts no writes; start it with --writable",
            Error::MayNotWrite => {
                "the server's user may not write there; give it read, write and search permission on the directory"
            }
            Error::WriteToLink => "a symbolic link, which a write does not replace; choose another URI",
            Error::IsDirectory => "a directory, not an object; choose another URI",
            Error::NotDirectory => "a part of the URI is an object, not a directory; choose another URI",
            Error::NoDirectory => {
                "the directory does not exist on the server; create it there, or let the put create it"
            }
            Error::OtherFileSystem => {
                "another file system is mounted there, and writes stay on the root's file system; serve that directory as \
                 a root of its own"
            }
            Error::Conflict => {
                "the object does not meet the request's condition; stat it, then decide whether to try again"
            }
            Error::BadEtag => {
                "invalid etag: expected the 16 hex digits of stat or put, or '*' for any version"
            }
            Error::BadDescriptor => {
                "invalid descriptor: expected a regular file that is open for reading; send other data as content"
            }
            Error::TooLarge => "larger than the server allows; its max_object_size is the limit",
            Error::UploadTooSlow => {
                "the upload is too slow; the server's min_upload_rate and upload_timeout are the limits"
            }
            Error::SourceNotLocal => {
                "the passed file is on a file system that is in user space, on a network, or unknown to the server; send \
                 the content"
            }
            Error::SourceStuck => {
                "the file system of the passed file does not respond; put the file again when it can be read"
            }
            Error::SourceShrank => {
                "the file became shorter while it was copied; put it again when no program writes to it"
            }
            Error::BadCursor => {
                "invalid cursor: expected the previous page's, unchanged and with the same prefix; send none to start \
                 again"
            }
            Error::StagingGone => {
                "the server's directory .objmapper, in which it prepares writes, was removed; restart the server"
            }
            Error::RootGone => {
                "the server's root directory was removed, renamed or unmounted; put it back, and the server serves it again"
            }
            Error::Storage(Errno::NOSPC) => {
                "no space left on the server's file system; free some space, then put again"
            }
            Error::Storage(Errno::DQUOT) => {
                "the quota of the server's user is used up; free some space, then put again"
            }
            Error::Storage(Errno::FBIG) => {
                "larger than the server's file system, or its limit on file sizes (ulimit -f), allows"
            }
            Error::Storage(Errno::ROFS) => "the server's file system is mounted read-only",
            Error::Storage(Errno::IO) => {
                "the server's disk failed (input/output error); check its kernel log before you trust it again"
            }
            Error::Storage(errno) => return write!(out, "storage failed: {errno}"),
            Error::Refused(Status::InvalidRequest) => {
                "invalid URI: expected UTF-8 of 1 to 4096 bytes without NUL"
            }
            Error::Refused(Status::UriTooLong) => "the URI is longer than 4096 bytes",
            Error::Refused(Status::ProtocolError) => "not a request of this protocol",
            Error::Refused(Status::CapabilityError) => "more pending requests than the handshake allows",
            Error::Refused(Status::VersionMismatch) => "unsupported version; this server supports 1 and 2",
            Error::Refused(Status::InvalidMode) => "unsupported mode or operation",
            Error::Refused(_) => "refused",
            Error::TooSlow => "the request took too long to arrive",
            Error::DeadlinePassed => "the request's deadline has passed",
        };
        out.write_str(text)
    }
}

impl std::error::Error for Error {}

/// Why the server could not start, with the address or path that it is about.
#[derive(Debug)]
pub struct StartError {
    pub errno: Errno,
    pub message: String,
    pub subject: String,
}

impl StartError {
    pub fn new(errno: Errno, message: impl Into<String>, subject: impl Into<String>) -> Self {
        StartError { errno, message: message.into(), subject: subject.into() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.subject, self.message)
    }
}

impl std::error::Error for StartError {}

#[cfg(feature = "python")]
mod python {
    use super::StartError;
    use pyo3::PyErr;
    use pyo3::exceptions::PyOSError;

    impl From<StartError> for PyErr {
        // Three arguments make Python choose the subclass (PermissionError, FileNotFoundError, …) by errno.
        fn from(error: StartError) -> PyErr {
            PyOSError::new_err((error.errno.raw_os_error(), error.message, error.subject))
        }
    }
}
