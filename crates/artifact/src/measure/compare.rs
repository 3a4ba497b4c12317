//! What was found in the tree against what the manifest lists.

use std::cmp::Ordering;
use std::collections::HashSet;

use muster_model::{Difference, DifferenceKind, Entry, EntryKind, EntryPath, Manifest, Place};
use rustix::fs::FileType;

use super::rebuild::is_unlisted_mutable;
use crate::walk::{Found, FoundKind, Walked};

pub(super) fn compare(expected: &Manifest, walked: &Walked) -> Vec<Difference> {
    let mut comparison = Comparison::default();
    let mut entries = expected.entries().iter().peekable();
    let mut found = walked.found.iter().filter(|found| !is_unlisted_mutable(expected, found)).peekable();
    loop {
        let order = match (entries.peek(), found.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(entry), Some(found)) => entry.path.cmp(&found.path),
        };
        let entry = if order == Ordering::Greater { None } else { entries.next() };
        let here = if order == Ordering::Less { None } else { found.next() };
        match (entry, here) {
            (Some(entry), Some(here)) => comparison.both(entry, here),
            (Some(entry), None) => comparison.missing(entry),
            (None, Some(here)) => comparison.extra(here),
            (None, None) => break,
        }
    }
    for (folder, error) in &walked.beyond {
        comparison.add(folder, DifferenceKind::Extra, "nothing".to_owned(), error.to_string());
    }
    comparison.differences
}

/// What is in a folder that is missing, or that should not be there, goes without saying.
#[derive(Default)]
struct Comparison<'a> {
    differences: Vec<Difference>,
    missing: HashSet<&'a [u8]>,
    extra: HashSet<&'a [u8]>,
}

impl<'a> Comparison<'a> {
    fn missing(&mut self, entry: &'a Entry) {
        let implied = is_in(&self.missing, &entry.path);
        if matches!(entry.kind, EntryKind::Dir { .. }) {
            self.missing.insert(entry.path.as_bytes());
        }
        if !implied {
            self.add(&entry.path, DifferenceKind::Missing, entry.kind.to_string(), "nothing".to_owned());
        }
    }

    fn extra(&mut self, found: &'a Found) {
        let implied = is_in(&self.extra, &found.path);
        if matches!(found.kind, FoundKind::Dir) {
            self.extra.insert(found.path.as_bytes());
        }
        if !implied {
            self.add(&found.path, DifferenceKind::Extra, "nothing".to_owned(), describe(found));
        }
    }

    fn both(&mut self, entry: &'a Entry, found: &'a Found) {
        if let FoundKind::Unreadable(why) = &found.kind {
            self.missing.insert(entry.path.as_bytes());
            self.add(&entry.path, DifferenceKind::Unreadable, entry.kind.to_string(), why.clone());
            return;
        }
        match (&entry.kind, &found.kind) {
            (EntryKind::Dir { mode }, FoundKind::Dir | FoundKind::Mutable(FileType::Directory)) => {
                self.mode(entry, mode.bits(), found);
            }
            (EntryKind::File { mode, size, digest }, FoundKind::File { digest: measured, .. }) => {
                self.mode(entry, mode.bits(), found);
                if *size != found.stamp.size {
                    let (expected, measured) =
                        (format!("{size} bytes"), format!("{} bytes", found.stamp.size));
                    self.add(&entry.path, DifferenceKind::Size, expected, measured);
                } else if Some(*digest) != *measured {
                    let measured = measured.map_or_else(|| "unread".to_owned(), |digest| digest.to_string());
                    self.add(&entry.path, DifferenceKind::Content, digest.to_string(), measured);
                }
            }
            (EntryKind::Symlink { target }, FoundKind::Symlink { target: measured }) => {
                if target.as_bytes() != measured.as_slice() {
                    let measured = muster_model::escape(measured);
                    self.add(&entry.path, DifferenceKind::Target, target.to_string(), measured);
                }
            }
            (EntryKind::Dir { .. } | EntryKind::File { .. } | EntryKind::Symlink { .. }, _) => {
                self.missing.insert(entry.path.as_bytes());
                self.extra.insert(entry.path.as_bytes());
                self.add(&entry.path, DifferenceKind::Type, entry.kind.to_string(), describe(found));
            }
        }
    }

    fn mode(&mut self, entry: &Entry, expected: u16, found: &Found) {
        let measured = found.stamp.permissions();
        if u32::from(expected) != measured {
            let (expected, measured) = (format!("{expected:04o}"), format!("{measured:04o}"));
            self.add(&entry.path, DifferenceKind::Mode, expected, measured);
        }
    }

    fn add(&mut self, path: &EntryPath, kind: DifferenceKind, expected: String, measured: String) {
        self.differences.push(Difference { path: Place::Tree(path.clone()), kind, expected, measured });
    }
}

fn is_in(folders: &HashSet<&[u8]>, path: &EntryPath) -> bool {
    !folders.is_empty() && path.parent().is_some_and(|parent| folders.contains(parent.as_bytes()))
}

fn describe(found: &Found) -> String {
    let mode = found.stamp.permissions();
    match &found.kind {
        FoundKind::Dir | FoundKind::Mutable(FileType::Directory) => format!("dir, mode {mode:04o}"),
        FoundKind::File { digest, .. } => {
            let digest = digest.map(|digest| format!(", {digest}")).unwrap_or_default();
            format!("file, mode {mode:04o}, {} bytes{digest}", found.stamp.size)
        }
        FoundKind::Symlink { target } => format!("symlink to `{}`", muster_model::escape(target)),
        FoundKind::Mutable(file_type) => format!("{file_type:?}"),
        FoundKind::Special(what) => (*what).to_owned(),
        FoundKind::Unreadable(why) => format!("something that cannot be read: {why}"),
    }
}
