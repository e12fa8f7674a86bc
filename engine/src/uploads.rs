//! Incoming contents by user: how many each user may send at a time, and how many bytes of the disk the server may
//! reserve for what the user's clients have announced and not sent.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::errors::Error;
use crate::storage::pool::User;
use crate::sync::unpoisoned;

/// Bytes of contents that may wait for a writer, over all users.
const MAX_BUFFERED: usize = 64 << 20;

#[derive(Debug)]
pub struct Uploads {
    /// The limit per user; 0: any number.
    max_uploads: u32,
    /// Bytes that the server may reserve for one user; 0: none ahead.
    max_reserved: u64,
    users: Mutex<HashMap<User, Share>>,
    /// Bytes of contents that wait for a writer, over all users.
    buffered: AtomicUsize,
}

#[derive(Debug, Default)]
struct Share {
    uploads: u32,
    reserved: u64,
}

/// One incoming content, counted until this is dropped.
#[derive(Debug)]
pub struct Upload {
    uploads: Arc<Uploads>,
    user: User,
    reserved: u64,
}

impl Uploads {
    pub fn new(max_uploads: u32, max_reserved: u64) -> Uploads {
        Uploads { max_uploads, max_reserved, users: Mutex::default(), buffered: AtomicUsize::new(0) }
    }

    /// Counts one more; UNAVAILABLE if the user is at the limit.
    pub fn begin(self: &Arc<Self>, user: User) -> Result<Upload, Error> {
        let mut users = self.users();
        let share = users.entry(user).or_default();
        if self.max_uploads > 0 && share.uploads >= self.max_uploads {
            return Err(Error::Busy("this user has reached its limit of uploads; try again"));
        }
        share.uploads += 1;
        drop(users);
        Ok(Upload { uploads: Arc::clone(self), user, reserved: 0 })
    }

    /// The number of incoming contents and the bytes reserved for them, over all users.
    pub fn figures(&self) -> (u64, u64) {
        let users = self.users();
        (
            users.values().map(|share| u64::from(share.uploads)).sum(),
            users.values().map(|share| share.reserved).sum(),
        )
    }

    pub fn buffer(&self, bytes: usize) {
        self.buffered.fetch_add(bytes, Relaxed);
    }

    pub fn unbuffer(&self, bytes: usize) {
        self.buffered.fetch_sub(bytes, Relaxed);
    }

    /// Whether a content with waiting bytes may have more.
    pub fn may_buffer(&self) -> bool {
        self.buffered.load(Relaxed) < MAX_BUFFERED
    }

    fn users(&self) -> MutexGuard<'_, HashMap<User, Share>> {
        unpoisoned(self.users.lock())
    }
}

impl Upload {
    /// Sets the reservation to `bytes` bytes, or to what the user may still have. Returns the number reserved.
    pub fn reserve(&mut self, bytes: u64) -> u64 {
        let mut users = self.uploads.users();
        if let Some(share) = users.get_mut(&self.user) {
            share.reserved -= self.reserved;
            self.reserved = bytes.min(self.uploads.max_reserved.saturating_sub(share.reserved));
            share.reserved += self.reserved;
        }
        self.reserved
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.reserve(0);
        let mut users = self.uploads.users();
        if let Some(share) = users.get_mut(&self.user) {
            share.uploads -= 1;
            if share.uploads == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_its_own_uploads_and_reservations() {
        let uploads = Arc::new(Uploads::new(2, 1000));
        let begin = |uid| uploads.begin(User::Uid(uid));
        let (mut one, mut other) = (begin(1).expect("one"), begin(1).expect("two"));
        assert!(matches!(begin(1), Err(Error::Busy(_))));
        let mut stranger = begin(2).expect("another user's");
        assert_eq!((one.reserve(700), other.reserve(700), stranger.reserve(700)), (700, 300, 700));
        assert_eq!(uploads.figures(), (3, 1700));
        // Written bytes are no longer reserved.
        assert_eq!((one.reserve(100), other.reserve(5000)), (100, 900));
        drop(one);
        assert_eq!(other.reserve(5000), 1000);
        begin(1).expect("as many as before");
        drop((other, stranger));
        assert_eq!(uploads.figures(), (0, 0));
    }

    #[test]
    fn zero_means_unlimited_uploads_and_no_reservation() {
        let uploads = Arc::new(Uploads::new(0, 0));
        let mut begun: Vec<_> = (0..100).map(|_| uploads.begin(User::Unknown).expect("one more")).collect();
        assert_eq!(begun[0].reserve(1), 0);
    }
}
