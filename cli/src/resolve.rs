//! Which release is meant by what was typed: a digest, a unique prefix of one, or a version.

use std::fmt;
use std::str::FromStr;

use muster_model::{Digest, FleetName, Version};

use crate::exit::Exit;

/// A prefix of a digest has at least this many hex digits.
const PREFIX_LEN_MIN: usize = 8;

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
    pub(crate) const fn next(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "look at `muster release list`, or add it with `muster release push`",
            Self::Ambiguous { .. } => "give more digits of the digest",
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
            [] => Err(ResolveError::Unknown { name: self.clone(), fleet: fleet.clone() }),
            [release] => Ok(release),
            _ => {
                let describe = |release: &&R| format!("{} ({})", release.version(), release.digest());
                let candidates = found.iter().map(describe).collect();
                Err(ResolveError::Ambiguous { name: self.clone(), candidates })
            }
        }
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
