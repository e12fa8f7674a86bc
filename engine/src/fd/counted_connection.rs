//! What the accounts of descriptors ask of a connection.

use crate::net::transport::Transport;

/// A connection whose descriptors count against its user until the client has read them.
pub trait CountedConnection: Send + Sync + std::fmt::Debug {
    fn transport(&self) -> Transport;

    /// Releases the descriptors that the client has received.
    fn settle_unread(&self);

    /// Whether descriptors are still on their way to the client. They count against the user until it reads or
    /// closes.
    fn has_unread_fds(&self) -> bool;

    /// Releases all descriptors from the account. The caller drops the connection afterwards.
    fn forget_unread(&self);
}
