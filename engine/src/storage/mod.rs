//! Files: opens objects by URI, writes and lists them, and caches small ones in memory.

pub mod cache;
pub mod copier_threads;
mod cursor;
mod dir_batch;
mod distinct_versions;
pub mod etag;
mod fair_round;
pub mod listing;
pub mod mapping;
pub mod pending_write;
pub mod pool;
mod quota;
pub mod readahead;
pub mod remote_file_systems;
pub mod root;
mod smallest_names;
pub mod source_copy;
mod source_file_system;
pub mod staging;
pub mod target;
mod turns;
mod walk;
