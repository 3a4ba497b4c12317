//! Which release is meant by what was typed: a digest, a unique prefix of one, or a version.

use std::fmt;
use std::str::FromStr;

use muster_model::{Digest, FleetName, Version};

use crate::exit::Exit;
use crate::suggest::closest;

/// A prefix of a digest has at least this many hex digits.
const PREFIX_LEN_MIN: usize = 8;

/// How many versions are named where none was found.
const VERSIONS_NAMED_MAX: usize = 6;

/// What was typed for a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReleaseName(String);

/// A text that can be neither a digest nor a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a release is `sha256:…`, at least 8 hex digits of its digest, or a version")]
pub(crate) struct NotARelease;

/// What a release goes by.
pub(crate) trait Named {
    /// Its version.
    fn version(&self) -> &Version;
    /// Its manifest's digest.
    fn digest(&self) -> Digest;
}

/// Why a name leads to no release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Nothing of that name.
    #[error("there is no release `{name}` in the fleet {fleet}")]
    Unknown {
        /// What was typed.
        name: ReleaseName,
        /// Where it was looked for.
        fleet: FleetName,
        /// What there is instead.
        hint: String,
    },
    /// More than one.
    #[error("`{name}` could mean {}", .candidates.join(" or "))]
    Ambiguous {
        /// What was typed.
        name: ReleaseName,
        /// Version and digest of each.
        candidates: Vec<String>,
    },
}

impl ResolveError {
    /// The exit code.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Unknown { .. } => Exit::Missing,
            Self::Ambiguous { .. } => Exit::Usage,
        }
    }

    /// What to do next.
    pub(crate) fn next(&self) -> String {
        match self {
            Self::Unknown { hint, .. } => hint.clone(),
            Self::Ambiguous { .. } => "give more digits of the digest".to_owned(),
        }
    }
}

impl ReleaseName {
    /// The one release of `known` that is meant. A text that is one release's version and the prefix of another's digest
    /// is ambiguous: guessing here would flip a fleet to the wrong bytes.
    pub(crate) fn resolve<'a, R: Named>(
        &self,
        fleet: &FleetName,
        known: &'a [R],
    ) -> Result<&'a R, ResolveError> {
        let mut found: Vec<&R> = known.iter().filter(|release| self.means(*release)).collect();
        found.sort_by_key(|release| release.digest());
        found.dedup_by_key(|release| release.digest());
        match found[..] {
            [] => {
                let hint = self.hint(fleet, known);
                Err(ResolveError::Unknown { name: self.clone(), fleet: fleet.clone(), hint })
            }
            [release] => Ok(release),
            _ => {
                let describe = |release: &&R| format!("{} ({})", release.version(), release.digest());
                let candidates = found.iter().map(describe).collect();
                Err(ResolveError::Ambiguous { name: self.clone(), candidates })
            }
        }
    }

    /// What there is, where there is nothing of this name.
    fn hint<R: Named>(&self, fleet: &FleetName, known: &[R]) -> String {
        if known.is_empty() {
            return format!("{fleet} has no release yet: add one with `muster release push`");
        }
        let versions = || known.iter().map(|release| release.version().as_str());
        let beginning = self.0.strip_prefix("sha256:").unwrap_or(&self.0);
        let is_beginning = |release: &&R| release.digest().hex().starts_with(beginning);
        let meant = known.iter().find(is_beginning).map(|release| {
            let (digest, version) = (release.digest().short(), release.version());
            format!("did you mean `{digest}`, which is {version}? ")
        });
        let alike = || closest(&self.0, versions()).map(|version| format!("did you mean `{version}`? "));
        let meant = meant.or_else(alike).unwrap_or_default();
        let named = versions().take(VERSIONS_NAMED_MAX).collect::<Vec<_>>().join(", ");
        let more = match known.len().checked_sub(VERSIONS_NAMED_MAX) {
            Some(more @ 1..) => format!(" and {more} more"),
            Some(0) | None => String::new(),
        };
        format!(
            "{meant}there are {named}{more}; `muster release list` shows their digests, of which at least \
             {PREFIX_LEN_MIN} hex digits count"
        )
    }

    fn means(&self, release: &impl Named) -> bool {
        let text = self.0.as_str();
        release.version().as_str() == text
            || prefix(text).is_some_and(|prefix| release.digest().hex().starts_with(prefix))
    }
}

impl FromStr for ReleaseName {
    type Err = NotARelease;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if prefix(text).is_none() && Version::new(text).is_err() {
            return Err(NotARelease);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ReleaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hex digits, if the text can be a digest or the beginning of one.
fn prefix(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    ((PREFIX_LEN_MIN..=2 * Digest::LEN).contains(&digits.len()) && is_hex).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known(Version, Digest);

    impl Named for Known {
        fn version(&self) -> &Version {
            &self.0
        }

        fn digest(&self) -> Digest {
            self.1
        }
    }

    fn known(version: &str, hex: &str) -> Known {
        let hex = format!("{hex:0<64}");
        Known(Version::new(version).unwrap(), Digest::from_hex(&hex).unwrap())
    }

    fn resolve(name: &str, known: &[Known]) -> Result<String, ResolveError> {
        let name: ReleaseName = name.parse().unwrap();
        let fleet = FleetName::new("demo").unwrap();
        name.resolve(&fleet, known).map(|release| release.0.to_string())
    }

    #[test]
    fn a_release_goes_by_digest_prefix_or_version() {
        let releases = [known("1.0.0", "abcdef0123"), known("1.0.1", "abcdef0199"), known("2", "77")];
        assert_eq!(resolve("1.0.0", &releases).as_deref(), Ok("1.0.0"));
        assert_eq!(resolve("abcdef012", &releases).as_deref(), Ok("1.0.0"));
        assert_eq!(resolve("sha256:abcdef019", &releases).as_deref(), Ok("1.0.1"));
        assert_eq!(resolve(&releases[2].1.to_string(), &releases).as_deref(), Ok("2"));
        assert_eq!(resolve(&releases[2].1.hex(), &releases).as_deref(), Ok("2"));
        assert!(matches!(resolve("3", &releases), Err(ResolveError::Unknown { .. })));
        assert!(matches!(resolve("99999999", &releases), Err(ResolveError::Unknown { .. })));
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let next = |name: &str, releases: &[Known]| resolve(name, releases).unwrap_err().next();
        let releases = [known("1.0.0", "410def0123"), known("1.1.0", "77")];
        let short = next("410", &releases);
        assert!(short.contains("`410def012300`, which is 1.0.0") && short.contains("at least 8"), "{short}");
        assert!(next("1.0.", &releases).starts_with("did you mean `1.0.0`? there are 1.0.0, 1.1.0;"));
        assert!(next("zzz", &releases).starts_with("there are 1.0.0, 1.1.0;"), "{}", next("zzz", &releases));
        assert!(next("1", &[]).contains("muster release push"));
        let many: Vec<Known> = (0..20).map(|number| known(&format!("{number}.x"), "88")).collect();
        assert!(next("zzz", &many).contains(" and 14 more;"));
    }

    #[test]
    fn what_could_mean_two_releases_is_refused_with_both_names() {
        let releases = [known("1.0.0", "abcdef0123"), known("1.0.1", "abcdef0199")];
        let error = resolve("abcdef01", &releases).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_string().contains("1.0.0") && error.to_string().contains("1.0.1"), "{error}");
        let version_or_prefix = [known("20260101", "77"), known("1", "20260101")];
        assert!(matches!(resolve("20260101", &version_or_prefix), Err(ResolveError::Ambiguous { .. })));
    }

    #[test]
    fn one_digest_under_two_versions_is_one_release() {
        let releases = [known("1.0.0", "abcdef0123"), known("1.0.1", "abcdef0123")];
        assert!(resolve("abcdef01", &releases).is_ok());
    }

    #[test]
    fn a_text_that_can_be_neither_is_wrong_usage() {
        for bad in ["", "-1", "a b", "sha256:", "sha256:abc", "sha256:XYZXYZXYZ", "a/b"] {
            assert_eq!(bad.parse::<ReleaseName>(), Err(NotARelease), "{bad}");
        }
    }
}
