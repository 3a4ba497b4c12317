//! Where symlinks lead, decided from the manifest alone.
//!
//! Resolution is Linux's, within the tree: component by component, through other symlinks, up with `..`. It
//! ends where the tree does, because what lies around it differs from host to host. Each symlink is resolved
//! once, so that the work is proportional to the length of all targets whatever they say.

use std::collections::HashMap;

use super::check::line_of;
use super::{Entry, EntryKind, MAX_LINKS, ManifestError, find};

/// Refuses symlinks that Linux would refuse to follow.
pub(super) fn check(entries: &[Entry]) -> Result<(), ManifestError> {
    resolve_all(entries).map(drop)
}

/// The symlinks, by index, that lead out of the tree.
pub(super) fn leading_out(entries: &[Entry]) -> Vec<usize> {
    let resolved = resolve_all(entries).expect("a manifest's symlinks were resolved when it was checked");
    let mut out: Vec<_> =
        resolved.into_iter().filter(|(_, end)| end.at == At::Outside).map(|(index, _)| index).collect();
    out.sort_unstable();
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Root,
    Entry(usize),
    /// A name in the tree that is not listed; by the closed world there is nothing.
    Nothing,
    Outside,
}

#[derive(Clone, Copy)]
struct End {
    at: At,
    /// How many symlinks it took, this one included.
    links: usize,
}

struct Cycle;

fn resolve_all(entries: &[Entry]) -> Result<HashMap<usize, End>, ManifestError> {
    let mut resolver = Resolver { entries, known: HashMap::new(), path: Vec::new() };
    for (index, entry) in entries.iter().enumerate() {
        if matches!(entry.kind, EntryKind::Symlink { .. }) && resolver.resolve(index, 1).is_err() {
            return Err(ManifestError::LinkCycle { line: line_of(index), path: entry.path.clone() });
        }
    }
    Ok(resolver.known)
}

struct Resolver<'a> {
    entries: &'a [Entry],
    known: HashMap<usize, End>,
    path: Vec<u8>,
}

impl Resolver<'_> {
    /// `depth` counts the symlinks being resolved at the moment, and bounds the recursion: a circle runs into
    /// it.
    fn resolve(&mut self, index: usize, depth: usize) -> Result<End, Cycle> {
        let entries = self.entries;
        let EntryKind::Symlink { target } = &entries[index].kind else {
            return Ok(End { at: At::Entry(index), links: 0 });
        };
        if let Some(end) = self.known.get(&index) {
            return Ok(*end);
        }
        if depth > MAX_LINKS {
            return Err(Cycle);
        }
        let mut end = End { at: self.parent(index), links: 1 };
        let target = target.as_bytes();
        if target.starts_with(b"/") {
            end.at = At::Outside;
        }
        for component in target.split(|&byte| byte == b'/') {
            end.at = match (end.at, component) {
                (At::Outside | At::Nothing, _) => break,
                (at, b"" | b".") => at,
                (At::Root, b"..") => At::Outside,
                (At::Entry(at), b"..") => self.parent(at),
                (at, name) => match self.child(at, name) {
                    None => At::Nothing,
                    Some(child) => {
                        let next = self.resolve(child, depth + 1)?;
                        end.links += next.links;
                        next.at
                    }
                },
            };
            if end.links > MAX_LINKS {
                return Err(Cycle);
            }
        }
        self.known.insert(index, end);
        Ok(end)
    }

    fn parent(&self, index: usize) -> At {
        match self.entries[index].path.parent_bytes() {
            None => At::Root,
            Some(parent) => find(self.entries, parent).map_or(At::Nothing, At::Entry),
        }
    }

    fn child(&mut self, at: At, name: &[u8]) -> Option<usize> {
        self.path.clear();
        if let At::Entry(index) = at {
            self.path.extend_from_slice(self.entries[index].path.as_bytes());
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        find(self.entries, &self.path)
    }
}
