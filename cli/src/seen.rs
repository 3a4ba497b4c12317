//! The newest roster of each fleet that this context has seen, verified: a file beside the context.
//!
//! A coordinator that was taken over can show operators an older roster than the last one. What they sign after that would say of a
//! host which was taken back since that it was set aside all the time, and that its old word stands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_model::{Code, Digest, FleetName, Refusal, RosterRevision};
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::files::{Existing, read_bounded, write};

/// The name of the file.
const SEEN_FILE: &str = "rosters-seen.json";
const FORMAT: &str = "muster.rosters-seen/1";
/// No such file comes near this, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A roster, as it is told from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeenRoster {
    /// Its revision.
    pub(crate) revision: RosterRevision,
    /// The digest of its payload.
    pub(crate) digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenFile {
    format: String,
    fleets: BTreeMap<FleetName, SeenRoster>,
}

/// Takes note of a roster that was shown as the last one, or handed in. One that is older than the newest that was seen is refused, and so is
/// another one of the same revision.
///
/// # Errors
/// Says what was seen, and where that is kept; or that the file cannot be read or written.
pub(crate) fn take_note(folder: &Path, fleet: &FleetName, shown: SeenRoster) -> Result<(), CliError> {
    let path = folder.join(SEEN_FILE);
    let mut file = read(&path)?;
    match file.fleets.get(fleet) {
        Some(seen) if *seen == shown => return Ok(()),
        Some(seen) if seen.revision >= shown.revision => return Err(refused(fleet, *seen, shown, &path)),
        Some(_) | None => {}
    }
    file.fleets.insert(fleet.clone(), shown);
    let bytes = serde_json::to_vec(&file).expect("it has string keys and no failing serialisers");
    write(&path, &bytes, 0o600, Existing::Replace)
}

fn read(path: &Path) -> Result<SeenFile, CliError> {
    if path.symlink_metadata().is_err() {
        return Ok(SeenFile { format: FORMAT.to_owned(), fleets: BTreeMap::new() });
    }
    let wrong = |reason: String| CliError::Content { path: PathBuf::from(path), reason };
    let bytes = read_bounded(path, BYTES_MAX)?;
    let file: SeenFile = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if file.format == FORMAT { Ok(file) } else { Err(wrong(format!("it has format `{}`", file.format))) }
}

fn refused(fleet: &FleetName, seen: SeenRoster, shown: SeenRoster, path: &Path) -> CliError {
    let (revision, path) = (seen.revision, path.display());
    let what = if shown.revision == revision {
        format!("another roster of revision {revision} than the one that was seen here")
    } else {
        format!("revision {} of the roster, and revision {revision} was seen here", shown.revision)
    };
    let detail = format!(
        "the coordinator shows {what}. Nothing is signed after it: a coordinator that was taken over shows operators what is over. If it \
         was restored from a backup or rebuilt, and you know which roster is the last, remove {path}"
    );
    CliError::refused(format!("go on from the roster of {fleet}"), Refusal::of(Code::RosterChanged, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> FleetName {
        FleetName::new("demo").unwrap()
    }

    fn roster(revision: u64, text: &str) -> SeenRoster {
        SeenRoster { revision: RosterRevision(revision), digest: Digest::of(text.as_bytes()) }
    }

    #[test]
    fn an_older_roster_or_another_of_the_same_revision_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let note = |shown| take_note(dir.path(), &fleet(), shown);
        note(roster(3, "three")).unwrap();
        note(roster(3, "three")).unwrap();
        note(roster(5, "five")).unwrap();
        for (shown, words) in [
            (roster(3, "three"), "revision 3 of the roster, and revision 5 was seen"),
            (roster(5, "another"), "another roster of revision 5"),
        ] {
            let error = note(shown).unwrap_err();
            let CliError::Refused { refusal, .. } = &error else { panic!("{error}") };
            assert_eq!(refusal.code(), Some(Code::RosterChanged));
            assert!(refusal.to_string().contains(words), "{refusal}");
            assert!(refusal.to_string().contains(SEEN_FILE), "it says what to do: {refusal}");
        }
        note(roster(6, "six")).unwrap();
        take_note(dir.path(), &FleetName::new("other").unwrap(), roster(1, "one")).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(SEEN_FILE), "{}").unwrap();
        assert!(matches!(take_note(dir.path(), &fleet(), roster(1, "one")), Err(CliError::Content { .. })));
    }
}
