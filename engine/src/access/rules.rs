//! The rules about clients: who may connect, and who may use what is below which prefix. Values only; `access/accounts.rs` has them
//! obeyed.

use std::sync::Arc;

use crate::net::credentials::Credentials;

/// Users and groups. Both kinds are sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdSet {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl IdSet {
    pub fn new(mut uids: Vec<u32>, mut gids: Vec<u32>) -> Self {
        uids.sort_unstable();
        gids.sort_unstable();
        IdSet { uids, gids }
    }

    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    fn names(&self, who: &Credentials) -> bool {
        self.uids.binary_search(&who.uid).is_ok()
            || who.gids.iter().any(|gid| self.gids.binary_search(gid).is_ok())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Who may connect to a Unix socket; nobody named: everybody.
    connect: IdSet,
    /// Paths below the root without slashes around them, and who may use what is there; sorted.
    prefixes: Vec<(Box<[u8]>, IdSet)>,
    /// For each user; 0: no cap.
    pub max_connections: u32,
    pub max_descriptors: u32,
}

impl Rules {
    pub fn new(
        connect: IdSet,
        mut prefixes: Vec<(Box<[u8]>, IdSet)>,
        max_connections: u32,
        max_descriptors: u32,
    ) -> Self {
        prefixes.sort_by(|a, b| a.0.cmp(&b.0));
        Rules { connect, prefixes, max_connections, max_descriptors }
    }

    /// Whether there is anything that only some may use.
    pub fn has_prefixes(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// Whether the path is below a prefix, or is one.
    pub fn applies_to(&self, path: &[u8]) -> bool {
        self.governing(path).is_some()
    }

    fn admit(&self, who: &Credentials) -> bool {
        self.connect.is_empty() || self.connect.names(who)
    }

    /// The longest prefix that the path lies below, or is.
    fn governing(&self, path: &[u8]) -> Option<usize> {
        let mut end = path.len();
        loop {
            if let Ok(at) = self.prefixes.binary_search_by(|(prefix, _)| (**prefix).cmp(&path[..end])) {
                return Some(at);
            }
            if end == 0 {
                return None;
            }
            end = path[..end].iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        }
    }
}

/// What one client may use.
#[derive(Debug, Clone)]
pub struct View {
    rules: Arc<Rules>,
    is_admitted: bool,
    /// For each prefix.
    open: Arc<[bool]>,
}

impl View {
    /// `who` is None over a transport without users.
    pub fn new(rules: Arc<Rules>, who: Option<&Credentials>) -> Self {
        let open =
            rules.prefixes.iter().map(|(_, listed)| who.is_some_and(|who| listed.names(who))).collect();
        // Over other transports the list of those who may connect has no say.
        let is_admitted = who.is_none_or(|who| rules.admit(who));
        View { rules, is_admitted, open }
    }

    /// The rules that it comes from.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the client may be connected.
    pub fn is_admitted(&self) -> bool {
        self.is_admitted
    }

    fn may_use(&self, path: &[u8]) -> bool {
        self.is_admitted && self.rules.governing(path).is_none_or(|at| self.open[at])
    }

    /// Whether a listing leaves this out: an object; or, with a slash at its end, a directory with all that is below it.
    pub fn excludes(&self, path: &[u8]) -> bool {
        match path.strip_suffix(b"/") {
            None => !self.may_use(path),
            Some(b"") => !self.may_use(b"") && !self.is_open_below(b""),
            Some(directory) => !self.may_use(directory) && !self.is_open_below(path),
        }
    }

    /// Whether a prefix that begins with these bytes is open, though what is around it is not.
    fn is_open_below(&self, directory: &[u8]) -> bool {
        let first = self.rules.prefixes.partition_point(|(prefix, _)| &**prefix < directory);
        let below = self.rules.prefixes[first..]
            .iter()
            .take_while(|(prefix, _)| prefix.starts_with(directory))
            .count();
        self.is_admitted && self.open[first..first + below].contains(&true)
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
