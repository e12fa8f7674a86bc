//! The access rules: which users may connect, and which may use the paths below a prefix. Values only;
//! `access/accounts.rs` enforces them.

use std::sync::Arc;

use crate::net::credentials::Credentials;

/// Users and groups. Both lists are sorted.
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

    fn names(&self, peer: &Credentials) -> bool {
        self.uids.binary_search(&peer.uid).is_ok()
            || peer.gids.iter().any(|gid| self.gids.binary_search(gid).is_ok())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Users that may connect to a Unix socket; an empty list admits all users.
    connect: IdSet,
    /// Paths below the root without slashes around them, and the users that may use what is there; sorted.
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

    /// Whether some paths are restricted to some users.
    pub fn has_prefixes(&self) -> bool {
        !self.prefixes.is_empty()
    }

    /// Whether the path is a prefix or lies below one.
    pub fn applies_to(&self, path: &[u8]) -> bool {
        self.governing(path).is_some()
    }

    fn admit(&self, peer: &Credentials) -> bool {
        self.connect.is_empty() || self.connect.names(peer)
    }

    /// The longest prefix that the path equals or lies below.
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

/// The paths that one client may use.
#[derive(Debug, Clone)]
pub struct View {
    rules: Arc<Rules>,
    is_admitted: bool,
    /// For each prefix.
    open: Arc<[bool]>,
}

impl View {
    /// `peer` is None over a transport without users.
    pub fn new(rules: Arc<Rules>, peer: Option<&Credentials>) -> Self {
        let open =
            rules.prefixes.iter().map(|(_, listed)| peer.is_some_and(|peer| listed.names(peer))).collect();
        // The list of users that may connect does not apply to other transports.
        let is_admitted = peer.is_none_or(|peer| rules.admit(peer));
        View { rules, is_admitted, open }
    }

    /// The rules of this view.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the client may connect.
    pub fn is_admitted(&self) -> bool {
        self.is_admitted
    }

    fn may_use(&self, path: &[u8]) -> bool {
        self.is_admitted && self.rules.governing(path).is_none_or(|at| self.open[at])
    }

    /// Whether a listing omits this path: an object, or, with a slash at its end, a directory with all below it.
    pub fn excludes(&self, path: &[u8]) -> bool {
        match path.strip_suffix(b"/") {
            None => !self.may_use(path),
            Some(b"") => !self.may_use(b"") && !self.is_open_below(b""),
            Some(directory) => !self.may_use(directory) && !self.is_open_below(path),
        }
    }

    /// Whether an open prefix begins with these bytes, though its surroundings are closed.
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
