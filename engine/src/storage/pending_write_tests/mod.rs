//! Puts on real file systems: whole or not at all, under all conditions, sources and disk errors.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod copying;
mod disk;
mod placing;
mod replacing;

use super::*;
use crate::storage::mapping::{Mapping, relative_path};
use crate::storage::staging::{Match, Staging};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Tree {
    above: TempDir,
    mapping: Mapping,
    staging: Staging,
}

impl Tree {
    fn new() -> Tree {
        Tree::in_directory(tempfile::tempdir().expect("a directory"))
    }

    fn in_directory(above: TempDir) -> Tree {
        std::fs::create_dir(above.path().join("root")).expect("a root");
        let mapping = Mapping::new(&above.path().join("root"), false).expect("a mapping");
        let staging = Staging::new(&mapping).expect("a staging directory");
        Tree { above, mapping, staging }
    }

    /// Runs `test` with O_TMPFILE and without it.
    fn each(test: impl Fn(&Tree)) {
        test(&Tree::new());
        let tree = Tree::new();
        test(&Tree { staging: tree.staging.with_named_files(), ..tree });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.above.path().join("root").join(name)
    }

    fn begin(&self, uri: &str) -> Result<PendingWrite, Error> {
        self.staging.begin(relative_path(uri, &mut Vec::new())?, false)
    }

    fn put(&self, uri: &str, content: &[u8], conditions: Conditions) -> Result<ObjectMeta, Error> {
        let mut pending = self.begin(uri)?;
        pending.write(content)?;
        pending.commit(conditions)
    }

    fn refusal(&self, uri: &str) -> Error {
        self.begin(uri).map(|_| ()).expect_err("refused")
    }

    fn content(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("there")
    }

    /// Names at the top of the root and in the staging directory.
    fn names(&self) -> Vec<String> {
        let mut names = names(&self.path(""));
        let reserved = names.iter().position(|name| name == ".objmapper").expect("the staging directory");
        names.remove(reserved);
        for own in names_in_staging(&self.path("")) {
            names.push(format!("staged {own}"));
        }
        names
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn names_in_staging(root: &Path) -> Vec<String> {
    let reserved = root.join(".objmapper");
    names(&reserved).iter().flat_map(|own| names(&reserved.join(own))).collect()
}

fn only_over(found: ObjectMeta) -> Conditions {
    Conditions { if_match: Some(Match::Etag(found.etag())), if_none_match: None }
}

const ONLY_NEW: Conditions = Conditions { if_match: None, if_none_match: Some(Match::Any) };
const ONLY_OVER_SOMETHING: Conditions = Conditions { if_match: Some(Match::Any), if_none_match: None };
const ALWAYS: Conditions = Conditions { if_match: None, if_none_match: None };

fn memory_file(content: &[u8]) -> OwnedFd {
    let mut file = File::from(fs::memfd_create(c"source", MemfdFlags::CLOEXEC).expect("a memory file"));
    file.write_all(content).expect("written");
    file.into()
}
