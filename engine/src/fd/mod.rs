//! Descriptors that clients have not read yet: how many a connection may have, and how many it has.

pub mod budget;
pub mod counted_connection;
pub mod unread;
