//! Files: from a URI to one that is open, those on their way in, all below a prefix, and what of them is kept in memory.

pub mod cache;
mod cursor;
mod directory_run;
pub mod file_system;
pub mod incoming;
pub mod listing;
pub mod mapping;
pub mod pool;
pub mod root;
mod smallest;
pub mod staging;
pub mod target;
mod turns;
mod versions;
mod walk;
