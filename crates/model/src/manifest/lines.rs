//! The lines of a manifest: the one encoding, and its strict reading.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    Entry, EntryKind, External, ExternalCheck, MAX_ENTRIES, MAX_MANIFEST_BYTES, MAX_RULES, ManifestError,
    Mode, ModeError, RuleList, TreeRules,
};
use crate::{Digest, EntryPath, HostPath, LinkTarget, PathError};

const FORMAT: &str = "muster.manifest/1";

/// What the lines say, before it is checked whether it holds together.
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) rules: TreeRules,
    pub(super) stated_bytes: u64,
}

pub(super) fn encode(entries: &[Entry], rules: &TreeRules, total_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160 * (entries.len() + 1));
    write_line(&mut bytes, &Header::new(entries.len() as u64, total_bytes, rules));
    for entry in entries {
        write_line(&mut bytes, &EntryLine::new(entry));
    }
    bytes
}

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, ManifestError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(ManifestError::TooLarge { len: bytes.len() });
    }
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').enumerate();
    let (_, first) = lines.next().unwrap_or((0, b""));
    let (stated, stated_bytes, rules) = parse_header(first)?;
    if stated > MAX_ENTRIES as u64 {
        return Err(ManifestError::TooManyEntries { entries: stated });
    }
    let mut entries = Vec::new();
    let mut encoded = Vec::new();
    for (index, text) in lines {
        if entries.len() == MAX_ENTRIES {
            return Err(ManifestError::TooManyEntries { entries: MAX_ENTRIES as u64 + 1 });
        }
        let line = index + 1;
        let entry = parse_entry(line, whole(line, text)?)?;
        encoded.clear();
        write_line(&mut encoded, &EntryLine::new(&entry));
        if encoded != text {
            return Err(ManifestError::NotCanonical { line });
        }
        entries.push(entry);
    }
    if stated != entries.len() as u64 {
        return Err(ManifestError::EntriesStated { stated, found: entries.len() as u64 });
    }
    Ok(Parsed { entries, rules, stated_bytes })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    entries: u64,
    bytes: u64,
    absent: Vec<String>,
    external: Vec<ExternalItem>,
    mutable: Vec<String>,
    variants: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalItem {
    path: String,
    check: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryLine<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// Of a header in another format only this is understood, so it is read first.
#[derive(Deserialize)]
struct FormatOnly {
    format: String,
}

impl Header {
    fn new(entries: u64, bytes: u64, rules: &TreeRules) -> Self {
        Self {
            format: FORMAT.to_owned(),
            entries,
            bytes,
            absent: rules.absent.iter().map(ToString::to_string).collect(),
            external: rules.external.iter().map(ExternalItem::new).collect(),
            mutable: rules.mutable.iter().map(ToString::to_string).collect(),
            variants: Vec::new(),
        }
    }
}

impl ExternalItem {
    fn new(external: &External) -> Self {
        let (check, digest) = match external.check {
            ExternalCheck::Digest { digest } => ("digest", Some(digest)),
            ExternalCheck::Uniform => ("uniform", None),
            ExternalCheck::Present => ("present", None),
        };
        Self { path: external.path.to_string(), check: check.to_owned(), digest }
    }

    fn check(self) -> Result<External, ManifestError> {
        let path = HostPath::from_text(&self.path)
            .map_err(|source| ManifestError::RulePath { list: RuleList::External, source })?;
        let check = match (self.check.as_str(), self.digest) {
            ("digest", Some(digest)) => ExternalCheck::Digest { digest },
            ("uniform", None) => ExternalCheck::Uniform,
            ("present", None) => ExternalCheck::Present,
            (_, digest) => return Err(ManifestError::ExternalCheck { path, check: self.check, digest }),
        };
        Ok(External { path, check })
    }
}

impl<'a> EntryLine<'a> {
    fn new(entry: &'a Entry) -> Self {
        let mut line = Self {
            path: Cow::Owned(entry.path.to_string()),
            kind: Cow::Borrowed(entry.kind.type_name()),
            mode: None,
            size: None,
            digest: None,
            target: None,
        };
        match &entry.kind {
            EntryKind::Dir { mode } => line.mode = Some(mode.to_string()),
            EntryKind::File { mode, size, digest } => {
                line.mode = Some(mode.to_string());
                line.size = Some(*size);
                line.digest = Some(*digest);
            }
            EntryKind::Symlink { target } => line.target = Some(target.to_string()),
        }
        line
    }
}

fn parse_header(text: &[u8]) -> Result<(u64, u64, TreeRules), ManifestError> {
    let text = whole(1, text)?;
    let FormatOnly { format } = read(1, text)?;
    if format != FORMAT {
        return Err(ManifestError::Format {
            found: format.chars().take(64).flat_map(char::escape_debug).collect(),
        });
    }
    let header: Header = read(1, text)?;
    if !header.variants.is_empty() {
        return Err(ManifestError::VariantsUnsupported);
    }
    let lists = [
        (RuleList::Absent, header.absent.len()),
        (RuleList::External, header.external.len()),
        (RuleList::Mutable, header.mutable.len()),
    ];
    if let Some(&(list, len)) = lists.iter().find(|(_, len)| *len > MAX_RULES) {
        return Err(ManifestError::TooManyRules { list, len });
    }
    let rules = TreeRules {
        absent: paths(RuleList::Absent, &header.absent, HostPath::from_text)?,
        external: header.external.into_iter().map(ExternalItem::check).collect::<Result<_, _>>()?,
        mutable: paths(RuleList::Mutable, &header.mutable, EntryPath::from_text)?,
    };
    let mut encoded = Vec::with_capacity(text.len());
    write_line(&mut encoded, &Header::new(header.entries, header.bytes, &rules));
    if encoded.strip_suffix(b"\n") != Some(text) {
        return Err(ManifestError::NotCanonical { line: 1 });
    }
    Ok((header.entries, header.bytes, rules))
}

fn paths<T>(
    list: RuleList,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, PathError>,
) -> Result<Vec<T>, ManifestError> {
    texts
        .iter()
        .map(|text| parse(text))
        .collect::<Result<_, _>>()
        .map_err(|source| ManifestError::RulePath { list, source })
}

fn parse_entry(line: usize, text: &[u8]) -> Result<Entry, ManifestError> {
    let fields: EntryLine<'_> = read(line, text)?;
    let path = EntryPath::from_text(&fields.path).map_err(|source| ManifestError::Path { line, source })?;
    let mode = |text: String| {
        Mode::try_from(text).map_err(|error| match error {
            ModeError::Special { bits } => ManifestError::SpecialMode { line, path: path.clone(), bits },
            ModeError::Syntax { .. } => ManifestError::Syntax { line, reason: error.to_string() },
        })
    };
    let kind = match (&*fields.kind, fields.mode, fields.size, fields.digest, fields.target) {
        ("dir", Some(text), None, None, None) => EntryKind::Dir { mode: mode(text)? },
        ("file", Some(text), Some(size), Some(digest), None) => {
            EntryKind::File { mode: mode(text)?, size, digest }
        }
        ("symlink", None, None, None, Some(target)) => {
            let target =
                LinkTarget::from_text(&target).map_err(|source| ManifestError::Path { line, source })?;
            EntryKind::Symlink { target }
        }
        ("dir" | "file" | "symlink", ..) => {
            let reason = format!("a {} has a missing field or one that it does not take", fields.kind);
            return Err(ManifestError::Syntax { line, reason });
        }
        _ => {
            return Err(ManifestError::Syntax {
                line,
                reason: "the type is dir, file or symlink".to_owned(),
            });
        }
    };
    Ok(Entry { path, kind })
}

/// A line without its newline, which it must have.
fn whole(line: usize, text: &[u8]) -> Result<&[u8], ManifestError> {
    text.strip_suffix(b"\n").ok_or(ManifestError::CutOff { line })
}

fn read<'a, T: Deserialize<'a>>(line: usize, text: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(text).map_err(|error| ManifestError::Syntax { line, reason: error.to_string() })
}

fn write_line<T: Serialize>(bytes: &mut Vec<u8>, line: &T) {
    serde_json::to_writer(&mut *bytes, line).expect("a line has string keys, and memory takes every write");
    bytes.push(b'\n');
}
