//! How many downloads a user may have under way: another user's download does not wait behind all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

use crate::storage::pool::User;
use crate::sync::unpoisoned;

/// Downloads of one user at a time; each has eight parts under way at most.
const MAX_DOWNLOADS: usize = 4;
/// Beyond this number of users those without a download are forgotten.
const MAX_IDLE_USERS: usize = 1024;

#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<User, Arc<Semaphore>>>);

impl Turns {
    /// The turns of a user: a permit each.
    pub fn of(&self, user: User) -> Arc<Semaphore> {
        let mut users = unpoisoned(self.0.lock());
        if users.len() > MAX_IDLE_USERS {
            users.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        Arc::clone(users.entry(user).or_insert_with(|| Arc::new(Semaphore::new(MAX_DOWNLOADS))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_some_turns_and_takes_none_of_another() {
        let turns = Turns::default();
        let held: Vec<_> =
            (0..MAX_DOWNLOADS).map(|_| turns.of(User::Uid(1)).try_acquire_owned().unwrap()).collect();
        assert!(turns.of(User::Uid(1)).try_acquire_owned().is_err());
        assert!(turns.of(User::Uid(2)).try_acquire_owned().is_ok());
        drop(held);
        assert!(turns.of(User::Uid(1)).try_acquire_owned().is_ok());
    }

    #[test]
    fn users_without_a_download_are_forgotten() {
        let turns = Turns::default();
        let held = turns.of(User::Uid(0)).try_acquire_owned().unwrap();
        for uid in 1..3000 {
            turns.of(User::Uid(uid));
        }
        assert!(unpoisoned(turns.0.lock()).len() <= MAX_IDLE_USERS + 1);
        assert_eq!(turns.of(User::Uid(0)).available_permits(), MAX_DOWNLOADS - 1);
        drop(held);
    }
}
