//! Descriptors that clients have not read yet: how many a connection may have, and which they are.

pub mod budget;
pub mod unread;
