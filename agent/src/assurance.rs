//! What a host's measurements are worth: whether its kernel seals what is installed, and what was found of each release.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use muster_artifact::{Assured, Seal, Shortfall, VerityUse, supports_verity};
use muster_model::{Assurance, Code, Digest, HostName, Refusal};
use muster_proto::v1;
use serde::{Deserialize, Serialize};

use crate::refusal;

/// Whether files of releases are to be sealed by the kernel, with fs-verity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verity {
    /// Where the file system has it.
    #[default]
    Auto,
    /// The same; and nothing is installed or attested that is not sealed.
    Require,
    /// No.
    Off,
}

impl Verity {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }

    /// What is asked of installations and measurements.
    pub(crate) const fn to_use(self) -> VerityUse {
        match self {
            Self::Auto | Self::Require => VerityUse::WherePossible,
            Self::Off => VerityUse::Off,
        }
    }
}

/// What the measurements of one fleet's releases are worth on this host.
#[derive(Debug)]
pub(crate) struct Assurances {
    verity: Verity,
    /// Whether the file system of the releases has fs-verity.
    is_supported: bool,
    /// What was found last of releases that were measured since the agent began.
    measured: Mutex<BTreeMap<Digest, Assured>>,
}

impl Assurances {
    /// Tries whether files in `releases` can be sealed.
    pub(crate) fn of_folder(releases: &Path, verity: Verity) -> Self {
        let is_supported = verity != Verity::Off && supports_verity(releases);
        Self { verity, is_supported, measured: Mutex::default() }
    }

    /// What is asked of installations and measurements.
    pub(crate) const fn verity(&self) -> VerityUse {
        self.verity.to_use()
    }

    pub(crate) fn note(&self, release: Digest, assured: &Assured) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.insert(release, assured.clone());
    }

    /// Refuses what root wants sealed and is not.
    pub(crate) fn require(&self, host: &HostName, release: Digest, assured: &Assured) -> Result<(), Refusal> {
        match (self.verity, assured) {
            (Verity::Require, Assured::Sha256(why)) => {
                let detail = format!("{why}; `verity = \"require\"` in its agent.toml ({release})");
                Err(refusal::at(host, Code::NotAssured, detail))
            }
            (Verity::Require, Assured::Verity) | (Verity::Auto | Verity::Off, _) => Ok(()),
        }
    }

    /// The least that measurements of these releases are worth, as far as it is known: found since the agent began, or kept with a seal.
    /// `seal` is where a release's is.
    pub(crate) fn least(
        &self,
        releases: &[Digest],
        seal: impl Fn(Digest) -> std::path::PathBuf,
    ) -> Option<v1::Assurance> {
        match (self.verity, self.is_supported) {
            (Verity::Off, _) => return Some(told(Assurance::Sha256, &Shortfall::Off.to_string())),
            (Verity::Auto | Verity::Require, false) => {
                return Some(told(Assurance::Sha256, &Shortfall::Unsupported.to_string()));
            }
            (Verity::Auto | Verity::Require, true) => {}
        }
        let mut least = None;
        for release in releases {
            let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner).get(release).cloned();
            match measured {
                Some(Assured::Sha256(why)) => return Some(told(Assurance::Sha256, &why.to_string())),
                Some(Assured::Verity) => least = Some(told(Assurance::Verity, "")),
                None => match Seal::read(&seal(*release)) {
                    Ok(seal) if seal.is_verity() => least = Some(told(Assurance::Verity, "")),
                    Ok(_) => return Some(told(Assurance::Sha256, "")),
                    // Not measured yet: nothing is said of it.
                    Err(_) => {}
                },
            }
        }
        least
    }
}

/// The level that is attested.
pub(crate) const fn level(assured: &Assured) -> Assurance {
    match assured {
        Assured::Sha256(_) => Assurance::Sha256,
        Assured::Verity => Assurance::Verity,
    }
}

fn told(level: Assurance, reason: &str) -> v1::Assurance {
    v1::Assurance { level: level.as_str().to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assurances(verity: Verity, is_supported: bool) -> Assurances {
        Assurances { verity, is_supported, measured: Mutex::default() }
    }

    fn release(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn what_root_requires_is_refused_where_it_is_not_so() {
        let host = HostName::new("host-1").unwrap();
        let unsealed = Assured::Sha256(Shortfall::Unsupported);
        for (verity, assured, is_refused) in [
            (Verity::Require, &unsealed, true),
            (Verity::Require, &Assured::Verity, false),
            (Verity::Auto, &unsealed, false),
            (Verity::Off, &unsealed, false),
        ] {
            let said = assurances(verity, true).require(&host, release("one"), assured);
            assert_eq!(said.is_err(), is_refused, "{verity:?} {assured:?}");
            if let Err(refusal) = said {
                assert_eq!(refusal.code(), Some(Code::NotAssured));
                let detail = &refusal.blockers[0].detail;
                assert!(detail.starts_with("this filesystem has no fs-verity; `verity"), "{detail}");
            }
        }
    }

    #[test]
    fn the_least_is_told_and_nothing_of_what_was_not_measured() {
        let none = |_| std::path::PathBuf::from("/nonexistent");
        let (one, two) = (release("one"), release("two"));
        let said = |assurances: &Assurances, releases: &[Digest]| {
            assurances.least(releases, none).map(|it| format!("{} {}", it.level, it.reason))
        };
        let with = assurances(Verity::Auto, true);
        assert_eq!(said(&with, &[one, two]), None);
        with.note(one, &Assured::Verity);
        assert_eq!(said(&with, &[one, two]).as_deref(), Some("verity "));
        with.note(two, &Assured::Sha256(Shortfall::NoFile));
        assert_eq!(said(&with, &[one, two]).as_deref(), Some("sha256 the tree has no file to seal"));
        assert_eq!(said(&with, &[one]).as_deref(), Some("verity "), "the other one is gone");
        let without = assurances(Verity::Require, false);
        assert_eq!(said(&without, &[]).as_deref(), Some("sha256 this filesystem has no fs-verity"));
        let off = assurances(Verity::Off, true);
        off.note(one, &Assured::Verity);
        assert_eq!(said(&off, &[one]).as_deref(), Some("sha256 fs-verity is switched off here"));
    }

    /// Without fs-verity nothing else can be said; where this runs on a file system that has it, `tests/verity/run` says more.
    #[test]
    fn a_folder_is_tried() {
        let folder = tempfile::tempdir().unwrap();
        let tried = Assurances::of_folder(folder.path(), Verity::Auto);
        let nothing = folder.path().join("nothing");
        assert_eq!(tried.least(&[], |_| nothing.clone()).is_none(), tried.is_supported);
        assert!(!Assurances::of_folder(&nothing, Verity::Auto).is_supported);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the trial leaves nothing");
    }
}
