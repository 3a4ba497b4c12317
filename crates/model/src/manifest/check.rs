//! What holds between the entries of a manifest, and between entries and rules.

use super::{
    Entry, EntryKind, MAX_ENTRIES, MAX_FILE_BYTES, MAX_RULES, MAX_TREE_BYTES, ManifestError, RuleList,
    TreeRules, find, links,
};
use crate::EntryPath;

/// Checks sorted entries and rules; returns the bytes of all files.
pub(super) fn check(entries: &[Entry], rules: &TreeRules) -> Result<u64, ManifestError> {
    if entries.len() > MAX_ENTRIES {
        return Err(ManifestError::TooManyEntries { entries: entries.len() as u64 });
    }
    check_order(entries)?;
    check_parents(entries)?;
    let total_bytes = check_sizes(entries)?;
    check_rule_lists(rules)?;
    check_mutable(entries, &rules.mutable)?;
    for external in &rules.external {
        if let Some(absent) =
            rules.absent.iter().find(|&absent| external.path == *absent || external.path.is_below(absent))
        {
            return Err(ManifestError::AbsentExternal {
                path: external.path.clone(),
                absent: absent.clone(),
            });
        }
    }
    links::check(entries)?;
    Ok(total_bytes)
}

/// The line of the entry at `index`, below the header.
pub(super) const fn line_of(index: usize) -> usize {
    index + 2
}

fn check_order(entries: &[Entry]) -> Result<(), ManifestError> {
    for (index, pair) in entries.windows(2).enumerate() {
        let (before, path, line) = (&pair[0].path, &pair[1].path, line_of(index + 1));
        match before.cmp(path) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Err(ManifestError::Duplicate { line, path: path.clone() }),
            std::cmp::Ordering::Greater => {
                return Err(ManifestError::Unsorted { line, path: path.clone(), after: before.clone() });
            }
        }
    }
    Ok(())
}

fn check_parents(entries: &[Entry]) -> Result<(), ManifestError> {
    // Neighbours mostly share their folder, so the last one found saves most searches.
    let mut known: Option<&[u8]> = None;
    for (index, entry) in entries.iter().enumerate() {
        let Some(parent) = entry.path.parent_bytes() else { continue };
        if known == Some(parent) {
            continue;
        }
        match find(entries, parent).map(|found| &entries[found].kind) {
            Some(EntryKind::Dir { .. }) => known = Some(parent),
            Some(EntryKind::File { .. } | EntryKind::Symlink { .. }) | None => {
                return Err(orphan(entries, index));
            }
        }
    }
    Ok(())
}

/// Names what stands in the way of an entry whose folder is not one: the nearest listed path above it.
fn orphan(entries: &[Entry], index: usize) -> ManifestError {
    let (line, path) = (line_of(index), entries[index].path.clone());
    let mut above = path.parent();
    while let Some(parent) = above {
        match find(entries, parent.as_bytes()).map(|found| &entries[found].kind) {
            Some(EntryKind::Symlink { .. }) => return ManifestError::UnderSymlink { line, path, parent },
            Some(EntryKind::File { .. }) => return ManifestError::UnderFile { line, path, parent },
            Some(EntryKind::Dir { .. }) => break,
            None => above = parent.parent(),
        }
    }
    ManifestError::NoParent { line, path }
}

fn check_sizes(entries: &[Entry]) -> Result<u64, ManifestError> {
    let mut total: u64 = 0;
    for (index, entry) in entries.iter().enumerate() {
        let EntryKind::File { size, .. } = entry.kind else { continue };
        let line = line_of(index);
        if size > MAX_FILE_BYTES {
            return Err(ManifestError::FileTooLarge { line, path: entry.path.clone(), size });
        }
        total = total
            .checked_add(size)
            .filter(|&total| total <= MAX_TREE_BYTES)
            .ok_or_else(|| ManifestError::TreeTooLarge { line, path: entry.path.clone() })?;
    }
    Ok(total)
}

fn check_rule_lists(rules: &TreeRules) -> Result<(), ManifestError> {
    check_list(RuleList::Absent, &rules.absent)?;
    check_list(
        RuleList::External,
        &rules.external.iter().map(|external| &external.path).collect::<Vec<_>>(),
    )?;
    check_list(RuleList::Mutable, &rules.mutable)
}

fn check_list<T: Ord + ToString>(list: RuleList, paths: &[T]) -> Result<(), ManifestError> {
    if paths.len() > MAX_RULES {
        return Err(ManifestError::TooManyRules { list, len: paths.len() });
    }
    match paths.windows(2).find(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(pair) => Err(ManifestError::RulesUnsorted { list, path: pair[1].to_string() }),
    }
}

fn check_mutable(entries: &[Entry], mutable: &[EntryPath]) -> Result<(), ManifestError> {
    for path in mutable {
        let mut above = path.parent();
        while let Some(outer) = above {
            if mutable.binary_search(&outer).is_ok() {
                return Err(ManifestError::MutableNested { path: path.clone(), outer });
            }
            above = outer.parent();
        }
        if let Some(parent) = path.parent_bytes()
            && !find(entries, parent)
                .is_some_and(|index| matches!(entries[index].kind, EntryKind::Dir { .. }))
        {
            return Err(ManifestError::MutableParent { path: path.clone() });
        }
        let at = find(entries, path.as_bytes()).map(|index| &entries[index]);
        let not_a_folder = at.filter(|entry| !matches!(entry.kind, EntryKind::Dir { .. }));
        if let Some(entry) = not_a_folder.or_else(|| first_below(entries, path)) {
            return Err(ManifestError::MutableEntry { path: entry.path.clone(), mutable: path.clone() });
        }
    }
    Ok(())
}

fn first_below<'a>(entries: &'a [Entry], folder: &EntryPath) -> Option<&'a Entry> {
    let start = [folder.as_bytes(), b"/"].concat();
    let index = entries.partition_point(|entry| entry.path.as_bytes() < start.as_slice());
    entries.get(index).filter(|entry| entry.path.is_below(folder))
}
