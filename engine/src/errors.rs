//! What can go wrong, and the status and the words that a client gets for it.

use rustix::io::Errno;
use std::fmt;

use crate::protocol::Status;

/// Why a request was not answered with the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The URI names nothing.
    NotFound,
    /// The URI has an empty, `.` or `..` segment, or one that no file system could hold.
    BadPath,
    /// The URI leads to a symbolic link, which this server does not follow.
    Symlink,
    /// The URI leads out of the root.
    Outside,
    /// A directory, a FIFO, a device or a socket: only regular files are handed out.
    NotRegular,
    /// The server's own user may not read it.
    NoPermission,
    /// Descriptors pass over Unix sockets only.
    ModeNeedsUnix,
    /// Server or machine have no descriptor left, or the queue is full: another try may succeed.
    Busy(&'static str),
    /// The kernel is out of memory.
    OutOfMemory,
    /// The storage failed.
    Storage(Errno),
    /// The codec refused the frame.
    Refused(Status),
    /// The request did not arrive, or could not be answered, in time.
    TooSlow,
}

impl Error {
    /// What an operating system's error means for the one who asked for an object.
    pub fn from_open(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Error::NotFound,
            Errno::ACCESS | Errno::PERM => Error::NoPermission,
            Errno::LOOP => Error::Symlink,
            Errno::XDEV => Error::Outside,
            Errno::NXIO | Errno::NODEV | Errno::ISDIR => Error::NotRegular,
            Errno::NAMETOOLONG => Error::BadPath,
            Errno::MFILE | Errno::NFILE => Error::Busy("the server has no file descriptor left, try again"),
            Errno::AGAIN => Error::Busy("the path is being renamed, try again"),
            Errno::NOMEM => Error::OutOfMemory,
            other => Error::Storage(other),
        }
    }

    /// The status byte that stands for it on the wire.
    pub fn status(self) -> Status {
        match self {
            Error::NotFound => Status::NotFound,
            Error::BadPath => Status::InvalidRequest,
            Error::Symlink | Error::Outside | Error::NotRegular | Error::NoPermission => Status::Forbidden,
            Error::ModeNeedsUnix => Status::InvalidMode,
            Error::Busy(_) => Status::Unavailable,
            Error::OutOfMemory => Status::OutOfMemory,
            Error::Storage(_) => Status::StorageError,
            Error::Refused(status) => status,
            Error::TooSlow => Status::Timeout,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Error::NotFound => "no such object",
            Error::BadPath => "not a URI of an object: empty, '.', '..' and over-long segments are refused",
            Error::Symlink => "a symbolic link, and this server does not follow them",
            Error::Outside => "outside the root",
            Error::NotRegular => "not a regular file",
            Error::NoPermission => "the server may not read this object",
            Error::ModeNeedsUnix => "descriptors pass over Unix sockets only: ask for copy or splice",
            Error::Busy(why) => why,
            Error::OutOfMemory => "out of memory",
            Error::Storage(errno) => return write!(out, "storage failed: {errno}"),
            Error::Refused(Status::InvalidRequest) => {
                "not a URI: it must be UTF-8 of 1 to 4096 bytes without NUL"
            }
            Error::Refused(Status::UriTooLong) => "the URI is longer than 4096 bytes",
            Error::Refused(Status::ProtocolError) => "not a request of this protocol",
            Error::Refused(_) => "refused",
            Error::TooSlow => "the request took too long to arrive",
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
