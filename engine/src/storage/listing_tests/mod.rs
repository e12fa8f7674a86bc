//! Listings of real trees, compared with the objects made there; whole, by pages of every size, and while the
//! tree changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod changes;
mod contents;
mod cost;
mod left_out;
mod pages;

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

fn tree(objects: &[&str]) -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for object in objects {
        make(root.path(), object);
    }
    root
}

/// An object with as many bytes as its path.
fn make(root: &Path, object: &str) {
    let path = root.join(object);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    std::fs::write(path, object).expect("a file");
}

/// Runs `run` in a thread with only the file owner's permissions, also where the tests run as root.
fn without_capabilities(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let none = rustix::thread::CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets).expect("dropped");
            run();
        });
    });
}

fn mapping(root: &TempDir) -> Mapping {
    Mapping::new(root.path(), false).expect("a mapping")
}

impl Listing {
    pub(crate) fn page(
        &self,
        mapping: &Mapping,
        view: Option<&View>,
        prefix: &str,
        cursor: Option<&[u8]>,
        limit: u32,
    ) -> Result<Page, Error> {
        self.page_in(Form::Plain, mapping, view, prefix, cursor, limit)
    }

    fn page_in(
        &self,
        form: Form,
        mapping: &Mapping,
        view: Option<&View>,
        prefix: &str,
        cursor: Option<&[u8]>,
        limit: u32,
    ) -> Result<Page, Error> {
        let (view, prefix, cursor) = (view.cloned(), prefix.to_owned(), cursor.map(<[u8]>::to_vec));
        self.whole(mapping, PageRequest { session: 0, form, view, prefix, cursor, limit })
    }

    /// In turns that end at once.
    fn whole(&self, mapping: &Mapping, request: PageRequest) -> Result<Page, Error> {
        self.whole_of(mapping, request, MAX_PAGE_BYTES)
    }

    fn whole_of(&self, mapping: &Mapping, request: PageRequest, max_bytes: usize) -> Result<Page, Error> {
        let mut paging = self.begin(request, max_bytes)?;
        loop {
            if let Some(page) = self.advance(mapping, &mut paging, &|| true)? {
                return Ok(page);
            }
        }
    }
}

/// URI, size and mtime of each entry.
fn decode(mut entries: &[u8]) -> Vec<(String, u64, i64)> {
    let mut decoded = Vec::new();
    while let Some((length, rest)) = entries.split_first_chunk::<2>() {
        let (uri, rest) = rest.split_at(u16::from_be_bytes(*length).into());
        let (size, rest) = rest.split_first_chunk::<8>().expect("a size");
        let (mtime, rest) = rest.split_first_chunk::<8>().expect("a time");
        let uri = String::from_utf8(uri.to_vec()).expect("UTF-8");
        decoded.push((uri, u64::from_be_bytes(*size), i64::from_be_bytes(*mtime)));
        entries = rest;
    }
    assert!(entries.is_empty());
    decoded
}

fn uris(page: &Page) -> Vec<String> {
    let entries = decode(&page.entries);
    assert_eq!(entries.len(), page.count as usize);
    entries.into_iter().map(|(uri, ..)| uri).collect()
}

/// All pages, one after the other.
fn all(listing: &Listing, mapping: &Mapping, prefix: &str, limit: u32) -> Result<Vec<String>, Error> {
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let page = listing.page(mapping, None, prefix, cursor.as_deref(), limit)?;
        assert!(page.count <= limit);
        listed.extend(uris(&page));
        match page.cursor {
            Some(next) => assert_ne!(cursor.replace(next), cursor, "every page gets further"),
            None => return Ok(listed),
        }
    }
}

fn list(root: &TempDir, prefix: &str) -> Vec<String> {
    all(&Listing::default(), &mapping(root), prefix, 1000).expect("a listing")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_is_listed_in_order_whatever_the_pages(
        paths in prop::collection::btree_set("[ab.0é-]{1,3}(/[ab.0é-]{1,2}){0,3}", 0..30),
        prefix in "/?[ab.0-]{0,2}(/[ab.0-]{0,2})?",
        names in 1usize..6,
        limit in 1u32..9,
    ) {
        let root = tempfile::tempdir().expect("a directory");
        let mut request = BTreeSet::new();
        for path in &paths {
            let target = root.path().join(path);
            let has_dots = path.split('/').any(|segment| segment == "." || segment == "..");
            // A name is an object or a directory; the first one stays.
            if !has_dots
                && std::fs::create_dir_all(target.parent().expect("a parent")).is_ok()
                && File::create_new(&target).is_ok()
            {
                request.insert(format!("/{path}"));
            }
        }
        let spelled = format!("/{}", prefix.strip_prefix('/').unwrap_or(&prefix));
        request.retain(|uri| uri.starts_with(&spelled));
        let listing = Listing::with_batches_of(names);
        match all(&listing, &mapping(&root), &prefix, limit) {
            Err(error) => {
                prop_assert_eq!(error, Error::BadPath);
                prop_assert!(request.is_empty());
            }
            Ok(listed) => prop_assert_eq!(listed, request.into_iter().collect::<Vec<_>>()),
        }
    }
}
