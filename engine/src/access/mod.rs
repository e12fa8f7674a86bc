//! Access control: rules, the accounts of users and their connections, denials for the log.

pub mod accounts;
pub mod denials;
pub mod rules;
