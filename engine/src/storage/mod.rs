//! Files: from a URI to one that is open, those on their way in, all below a prefix, and what of them is kept in memory.

pub mod cache;
pub mod copiers;
pub mod copying;
mod cursor;
mod dir_batch;
pub mod file_system;
pub mod listing;
pub mod mapping;
mod mounts;
pub mod pending_write;
pub mod pool;
mod quota;
pub mod readahead;
pub mod root;
mod smallest;
pub mod staging;
pub mod target;
mod turns;
pub mod version;
mod versions;
mod walk;
