//! Checks requests against the access rules about the session's client; see `access/accounts.rs`.

use super::Session;
use crate::access::rules::View;
use crate::errors::Error;

impl Session {
    /// Evaluates the rules for the client again when the rules have changed.
    pub(super) fn refresh_access(&mut self) {
        let generation = self.service.clients.generation();
        if generation == self.rules_seen {
            return;
        }
        let before = self.client_access.take();
        self.client_access = self.service.clients.reevaluate(self.socket(), self.transport, before);
        self.rules_seen =
            self.client_access.as_ref().map_or(generation, |client_access| client_access.generation);
        self.open_access();
    }

    /// Charges the client's descriptors to its user's account, once.
    pub(super) fn open_access(&mut self) {
        if let Some(account) = self.client_access.as_ref().and_then(|client_access| client_access.account()) {
            self.connection.attach_account(account, self.open_fds);
        }
    }

    /// FORBIDDEN if the client may not use the object.
    pub(super) fn check_use(&self, path: &[u8]) -> Result<(), Error> {
        match &self.client_access {
            None => Ok(()),
            Some(client_access) => client_access.check(path, &self.service.clients),
        }
    }

    /// The client's view, which filters a listing. FORBIDDEN if that would leave nothing.
    pub(super) fn check_list(&self, prefix: &str) -> Result<Option<View>, Error> {
        let Some(client_access) = &self.client_access else { return Ok(None) };
        client_access.check(format!("{}/", prefix.trim_matches('/')).as_bytes(), &self.service.clients)?;
        Ok(Some(client_access.view().clone()))
    }

    /// UNAVAILABLE if the client's user may not have `more` further descriptors.
    pub(super) fn check_descriptors(&self, more: u32) -> Result<(), Error> {
        match &self.client_access {
            None => Ok(()),
            Some(client_access) => {
                client_access.check_descriptors(&*self.connection, &self.service.clients, more)
            }
        }
    }
}
