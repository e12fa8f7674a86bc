//! The wire protocol, sans-IO: bytes in, values out. The Python codec is held to the same vectors
//! (`tests/vectors`).
//!
//! This module holds what both versions share, and exports the names of version 1; those of version 2 are in [`v2`].

mod hello;
mod metadata;
mod parameters;
mod response;
mod tlv;
pub mod v1;
pub mod v2;

pub use v1::{
    CONTENT_HEAD, Decoded, DecodedReply, ReplyDecoder, RequestDecoder, content_head, encode_error,
    encode_request,
};

/// The longest URI, in bytes.
pub const MAX_URI: usize = 4096;
/// The longest content: file offsets are signed.
pub const MAX_CONTENT: u64 = i64::MAX as u64;

/// How an object is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    FdPass = b'1',
    Copy = b'2',
    Splice = b'3',
}

impl Mode {
    pub fn from_byte(byte: u8) -> Option<Mode> {
        match byte {
            b'1' => Some(Mode::FdPass),
            b'2' => Some(Mode::Copy),
            b'3' => Some(Mode::Splice),
            _ => None,
        }
    }
}

/// The operation on an object: delivery in one of the modes, or one of the extension's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    FdPass = b'1',
    Copy = b'2',
    Splice = b'3',
    Stat = b's',
    List = b'l',
    /// The content follows the request.
    Put = b'p',
    /// The content comes as a descriptor, on the request's first byte.
    PutDescriptor = b'P',
    Delete = b'd',
}

impl Operation {
    pub const ALL: [Operation; 8] = [
        Operation::FdPass,
        Operation::Copy,
        Operation::Splice,
        Operation::Stat,
        Operation::List,
        Operation::Put,
        Operation::PutDescriptor,
        Operation::Delete,
    ];

    pub fn from_byte(byte: u8) -> Option<Operation> {
        match byte {
            b'1' => Some(Operation::FdPass),
            b'2' => Some(Operation::Copy),
            b'3' => Some(Operation::Splice),
            b's' => Some(Operation::Stat),
            b'l' => Some(Operation::List),
            b'p' => Some(Operation::Put),
            b'P' => Some(Operation::PutDescriptor),
            b'd' => Some(Operation::Delete),
            _ => None,
        }
    }

    /// The mode of delivery; None for the extension's operations.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Operation::FdPass => Some(Mode::FdPass),
            Operation::Copy => Some(Mode::Copy),
            Operation::Splice => Some(Mode::Splice),
            _ => None,
        }
    }

    /// A small number without gaps, for tables.
    pub fn index(self) -> usize {
        match self {
            Operation::FdPass => 0,
            Operation::Copy => 1,
            Operation::Splice => 2,
            Operation::Stat => 3,
            Operation::List => 4,
            Operation::Put => 5,
            Operation::PutDescriptor => 6,
            Operation::Delete => 7,
        }
    }

    pub fn name(self) -> &'static str {
        ["fdpass", "copy", "splice", "stat", "list", "put", "put-descriptor", "delete"][self.index()]
    }
}

impl From<Mode> for Operation {
    fn from(mode: Mode) -> Operation {
        match mode {
            Mode::FdPass => Operation::FdPass,
            Mode::Copy => Operation::Copy,
            Mode::Splice => Operation::Splice,
        }
    }
}

/// The result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    Ok = 0x00,
    NotFound = 0x01,
    InvalidRequest = 0x02,
    InvalidMode = 0x03,
    UriTooLong = 0x04,
    UnsupportedOp = 0x05,
    Forbidden = 0x06,
    Conflict = 0x07,
    InternalError = 0x10,
    StorageError = 0x11,
    OutOfMemory = 0x12,
    Timeout = 0x13,
    Unavailable = 0x14,
    ProtocolError = 0x20,
    VersionMismatch = 0x21,
    CapabilityError = 0x22,
}

impl Status {
    pub const ALL: [Status; 16] = [
        Status::Ok,
        Status::NotFound,
        Status::InvalidRequest,
        Status::InvalidMode,
        Status::UriTooLong,
        Status::UnsupportedOp,
        Status::Forbidden,
        Status::Conflict,
        Status::InternalError,
        Status::StorageError,
        Status::OutOfMemory,
        Status::Timeout,
        Status::Unavailable,
        Status::ProtocolError,
        Status::VersionMismatch,
        Status::CapabilityError,
    ];

    pub fn from_byte(byte: u8) -> Option<Status> {
        Status::ALL.into_iter().find(|status| *status as u8 == byte)
    }

    /// The position in [`Status::ALL`], for tables.
    pub fn index(self) -> usize {
        match self as u8 {
            low @ 0x00..=0x07 => low as usize,
            middle @ 0x10..=0x14 => 8 + (middle - 0x10) as usize,
            high => 13 + (high - 0x20) as usize,
        }
    }
}

#[cfg(test)]
mod malformed_tests;
#[cfg(test)]
mod vectors;
