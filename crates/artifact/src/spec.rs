//! `muster.toml`: what a release says that its folder alone cannot.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use muster_model::{
    Digest, EntryPath, External, ExternalCheck, FlagDeclaration, FlagKind, HostPath, PathError, TreeRules,
};
use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use crate::ArtifactError;

const MAX_SPEC_BYTES: u64 = 1 << 20;
const FLAG_KEY_LEN_MAX: usize = 64;
const SEMANTICS_LEN_MAX: usize = 1024;

/// A parsed and checked `muster.toml`. Without the file, the default holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReleaseSpec {
    /// What the release says about paths beyond listing its entries.
    pub rules: TreeRules,
    /// What packing does about symlinks that lead out of the tree.
    pub outside_links: OutsideLinks,
    /// The flags the release declares or removes, for the release document.
    pub flags: BTreeMap<String, FlagDeclaration>,
}

/// What packing does about symlinks that lead out of the tree, whose other end is not measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutsideLinks {
    /// Warns of them.
    #[default]
    Warn,
    /// Refuses to pack.
    Refuse,
}

impl ReleaseSpec {
    /// Reads and parses a file.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        let failed = |error| ArtifactError::io("read", path, error);
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_SPEC_BYTES + 1).read_to_string(&mut text))
            .map_err(failed)?;
        if text.len() as u64 > MAX_SPEC_BYTES {
            let reason = format!("a release file has at most {MAX_SPEC_BYTES} bytes");
            return Err(ArtifactError::Spec { path: path.to_owned(), line: 1, reason });
        }
        Self::parse(&text, path)
    }

    /// Parses `text`; `path` is for messages. Strict: an unknown field is an error.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ArtifactError> {
        let checked = toml::from_str::<RawSpec>(text)
            .map_err(|error| Problem { at: error.span(), reason: error.message().to_owned() })
            .and_then(RawSpec::check);
        checked.map_err(|Problem { at, reason }| {
            let before = at.map_or(0, |span| span.start).min(text.len());
            let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
            ArtifactError::Spec { path: path.to_owned(), line, reason }
        })
    }
}

struct Problem {
    at: Option<Range<usize>>,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpec {
    #[serde(default)]
    tree: RawTree,
    #[serde(default)]
    external: Vec<RawExternal>,
    #[serde(default)]
    flags: BTreeMap<Spanned<String>, RawFlag>,
    variants: Option<Spanned<toml::Value>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTree {
    mutable: Vec<Spanned<String>>,
    absent: Vec<Spanned<String>>,
    outside_links: OutsideLinks,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExternal {
    path: Spanned<String>,
    check: Spanned<String>,
    digest: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFlag {
    #[serde(rename = "type")]
    kind: Option<FlagKind>,
    default: Option<Spanned<toml::Value>>,
    semantics: Option<Spanned<String>>,
    expires: Option<Spanned<toml::Value>>,
    #[serde(default)]
    removed: bool,
}

impl RawSpec {
    fn check(self) -> Result<ReleaseSpec, Problem> {
        if let Some(variants) = self.variants {
            let reason = "`variants` (one manifest for each class of hosts) are not supported yet";
            return Err(problem(&variants, reason));
        }
        let rules = TreeRules {
            absent: paths(&self.tree.absent, HostPath::from_text)?,
            external: self.external.into_iter().map(RawExternal::check).collect::<Result<_, _>>()?,
            mutable: paths(&self.tree.mutable, EntryPath::from_text)?,
        };
        let mut flags = BTreeMap::new();
        for (key, flag) in self.flags {
            check_key(&key)?;
            let declaration = flag.check(&key)?;
            flags.insert(key.into_inner(), declaration);
        }
        Ok(ReleaseSpec { rules, outside_links: self.tree.outside_links, flags })
    }
}

impl RawExternal {
    fn check(self) -> Result<External, Problem> {
        let path = path(&self.path, HostPath::from_text)?;
        let check = match (self.check.get_ref().as_str(), &self.digest) {
            ("digest", Some(text)) => {
                let digest: Digest = text.get_ref().parse().map_err(|error| problem(text, error))?;
                ExternalCheck::Digest { digest }
            }
            ("digest", None) => {
                return Err(problem(
                    &self.check,
                    "check `digest` needs `digest = \"sha256:…\"` (see sha256sum)",
                ));
            }
            ("uniform" | "present", Some(text)) => {
                return Err(problem(text, "only check `digest` takes a digest"));
            }
            ("uniform", None) => ExternalCheck::Uniform,
            ("present", None) => ExternalCheck::Present,
            _ => return Err(problem(&self.check, "the check is `digest`, `uniform` or `present`")),
        };
        Ok(External { path, check })
    }
}

impl RawFlag {
    fn check(self, key: &Spanned<String>) -> Result<FlagDeclaration, Problem> {
        let Self { kind, default, semantics, expires, removed } = self;
        if removed {
            if kind.is_some() || default.is_some() || semantics.is_some() || expires.is_some() {
                return Err(problem(key, "a removed flag has no other field"));
            }
            return Ok(FlagDeclaration {
                kind: None,
                default: None,
                semantics: None,
                expires: None,
                removed,
            });
        }
        let (Some(kind), Some(default), Some(semantics)) = (kind, default, semantics) else {
            return Err(problem(key, "a flag needs `type`, `default` and `semantics`, or `removed = true`"));
        };
        if semantics.get_ref().trim().is_empty() || semantics.get_ref().len() > SEMANTICS_LEN_MAX {
            let reason = format!("`semantics` says in 1 to {SEMANTICS_LEN_MAX} bytes what the flag does");
            return Err(problem(&semantics, reason));
        }
        let value =
            json(default.get_ref()).ok_or_else(|| problem(&default, "a default is no date and no NaN"))?;
        if !is_of_kind(kind, &value) {
            return Err(problem(&default, "the default is not of the flag's type"));
        }
        Ok(FlagDeclaration {
            kind: Some(kind),
            default: Some(value),
            semantics: Some(semantics.into_inner()),
            expires: expires.map(|expires| date(&expires)).transpose()?,
            removed,
        })
    }
}

fn check_key(key: &Spanned<String>) -> Result<(), Problem> {
    let text = key.get_ref();
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.len() <= FLAG_KEY_LEN_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(inner)
    {
        return Ok(());
    }
    let rule = "letters, digits, `_`, `-` and `.`, beginning with a letter";
    Err(problem(key, format!("a flag's key has 1 to {FLAG_KEY_LEN_MAX} characters: {rule}")))
}

fn is_of_kind(kind: FlagKind, value: &serde_json::Value) -> bool {
    match kind {
        FlagKind::Boolean => value.is_boolean(),
        FlagKind::String => value.is_string(),
        FlagKind::Number => value.is_number(),
        FlagKind::Object => value.is_object(),
    }
}

/// JSON has neither dates nor numbers that are not finite.
fn json(value: &toml::Value) -> Option<serde_json::Value> {
    Some(match value {
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        toml::Value::Boolean(value) => (*value).into(),
        toml::Value::Datetime(_) => return None,
        toml::Value::Array(items) => items.iter().map(json).collect::<Option<Vec<_>>>()?.into(),
        toml::Value::Table(items) => {
            let items = items.iter().map(|(key, value)| Some((key.clone(), json(value)?)));
            items.collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
    })
}

/// A day, as a TOML date or as text.
fn date(value: &Spanned<toml::Value>) -> Result<String, Problem> {
    let parsed = match value.get_ref() {
        toml::Value::Datetime(date) => Some(*date),
        toml::Value::String(text) => text.parse().ok(),
        toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Array(_)
        | toml::Value::Table(_) => None,
    };
    match parsed {
        Some(Datetime { date: Some(date), time: None, offset: None }) => Ok(date.to_string()),
        _ => Err(problem(value, "`expires` is a date without time, such as 2027-03-31")),
    }
}

fn paths<T>(texts: &[Spanned<String>], parse: fn(&str) -> Result<T, PathError>) -> Result<Vec<T>, Problem> {
    texts.iter().map(|text| path(text, parse)).collect()
}

fn path<T>(text: &Spanned<String>, parse: fn(&str) -> Result<T, PathError>) -> Result<T, Problem> {
    parse(text.get_ref()).map_err(|error| problem(text, error))
}

fn problem<T>(at: &Spanned<T>, reason: impl ToString) -> Problem {
    Problem { at: Some(at.span()), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
