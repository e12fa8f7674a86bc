//! Files: opens objects by URI, writes and lists them, and caches small ones in memory.

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
