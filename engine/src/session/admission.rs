//! What a session asks of the rules about its client; see `peers.rs`.

use super::Session;
use crate::errors::Error;
use crate::rules::View;

impl Session {
    /// Has the client judged again where the rules have changed.
    pub(super) fn heed_rules(&mut self) {
        let generation = self.service.peers.generation();
        if generation == self.rules_seen {
            return;
        }
        let before = self.guest.take();
        self.guest = self.service.peers.judge_again(self.socket(), self.transport, before);
        self.rules_seen = self.guest.as_ref().map_or(generation, |guest| guest.generation);
        self.open_account();
    }

    /// Puts what the client has of descriptors on its user's account, once.
    pub(super) fn open_account(&mut self) {
        if let Some(account) = self.guest.as_ref().and_then(|guest| guest.account()) {
            self.connection.charge(account, self.held);
        }
    }

    /// FORBIDDEN where the client may not use the object.
    pub(super) fn check_use(&self, path: &[u8]) -> Result<(), Error> {
        match &self.guest {
            None => Ok(()),
            Some(guest) => guest.check(path, &self.service.peers),
        }
    }

    /// What is left out of a listing. FORBIDDEN where that would be all.
    pub(super) fn check_list(&self, prefix: &str) -> Result<Option<View>, Error> {
        let Some(guest) = &self.guest else { return Ok(None) };
        guest.check(format!("{}/", prefix.trim_matches('/')).as_bytes(), &self.service.peers)?;
        Ok(Some(guest.view().clone()))
    }

    /// UNAVAILABLE where its user may not have so many descriptors more.
    pub(super) fn check_descriptors(&self, more: u32) -> Result<(), Error> {
        match &self.guest {
            None => Ok(()),
            Some(guest) => guest.check_descriptors(&self.connection, &self.service, more),
        }
    }
}
