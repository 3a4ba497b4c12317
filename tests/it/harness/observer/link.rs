//! Seeing what a host serves by its link.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::{Outcome, Probe};

/// Reads a link. Its run is the link itself: one is never changed, only removed and made.
pub(super) struct LinkProbe(pub(super) PathBuf);

impl Probe for LinkProbe {
    fn look(&mut self) -> Outcome {
        match self.read() {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Nothing,
            Err(_) => Outcome::Unknown,
        }
    }
}

impl LinkProbe {
    fn read(&self) -> io::Result<Outcome> {
        let before = run(&fs::symlink_metadata(&self.0)?);
        let release = fs::read_link(&self.0)?;
        let after = run(&fs::symlink_metadata(&self.0)?);
        let Some(name) = release.file_name() else { return Ok(Outcome::Unknown) };
        let release = format!("sha256:{}", name.display());
        Ok(if before == after { Outcome::Serves { release, run: after } } else { Outcome::Unknown })
    }
}

fn run(link: &Metadata) -> String {
    format!("{}-{}-{}", link.ino(), link.ctime(), link.ctime_nsec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::harness::observer::{LINK_PAUSE, Observer};

    fn serves(release: &str) -> impl Fn(&Outcome) -> bool {
        move |outcome| matches!(outcome, Outcome::Serves { release: found, .. } if found == release)
    }

    #[test]
    fn a_link_is_read_and_its_absence_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut probe = LinkProbe(folder.path().join("current"));
        assert_eq!(probe.look(), Outcome::Nothing);
        symlink("releases/a", &probe.0).unwrap();
        let first = probe.look();
        assert!(serves("sha256:a")(&first), "{first:?}");
        assert_eq!(probe.look(), first, "it is the same link");
        fs::remove_file(&probe.0).unwrap();
        symlink("releases/b", &probe.0).unwrap();
        assert!(serves("sha256:b")(&probe.look()));
    }

    #[test]
    fn links_that_lead_to_different_releases_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let links = ["host-1", "host-2"].map(|host| (host.to_owned(), folder.path().join(host)));
        let probes = links.iter().map(|(host, link)| (host.clone(), LinkProbe(link.clone()))).collect();
        let observer = Observer::watch(probes, LINK_PAUSE);
        symlink("releases/a", &links[0].1).unwrap();
        symlink("releases/a", &links[1].1).unwrap();
        observer.wait_all_serve("sha256:a");
        assert_eq!(observer.record().violation(), None);
        let renamed = folder.path().join("new");
        symlink("releases/b", &renamed).unwrap();
        fs::rename(&renamed, &links[1].1).unwrap();
        crate::harness::until("the observer sees both", || observer.record().violation().is_some());
        let seen = observer.finish();
        assert_eq!(seen.releases, 2, "{seen:?}");
        assert_eq!(seen.runs["host-2"], ["sha256:a", "sha256:b"]);
    }
}
