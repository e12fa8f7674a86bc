//! Sockets: those of both transports, passed descriptors, listening, and what the kernel knows of a peer.

pub mod credentials;
pub mod eventfd;
pub mod listener;
pub mod network;
pub mod socket;
mod socket_path;
pub mod timerfd;
pub mod transport;
