use std::time::Duration;

use clap::Args;
use muster_model::{Code, Digest, FleetName, Refusal, Release, Version};
use muster_proto::v1;
use muster_trust::{Signer, sign};
use serde::Serialize;

use super::tree::{PackedTree, TreeArgs};
use super::upload::{missing, total_bytes, upload};
use crate::args::duration;
use crate::clock::unix_time;
use crate::commands::Env;
use crate::connect::{Session, answer};
use crate::error::CliError;
use crate::exit::Exit;
use crate::output::{Bars, Page, Report, Tone, bytes_text, counted};
use crate::view::ReleaseView;

/// Pack a tree, upload what the coordinator lacks, sign the release and make it known. It goes to no host yet.
///
/// Pushing the same tree under the same version again changes nothing. A version names one tree and a tree has one
/// version: whatever would change that is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  muster release push ./build --version 1.4.0
  muster release push ./build --fleet demo --version 1.4.0 --source-revision v1.4.0")]
pub(crate) struct Push {
    #[command(flatten)]
    tree: TreeArgs,
    /// The fleet that the release is for [default: the context's, or the only one there is]
    #[arg(long, short, value_name = "FLEET")]
    fleet: Option<FleetName>,
    /// The version, for people; the digest is what counts
    #[arg(long, value_name = "VERSION")]
    version: Version,
    /// The source revision that it was built from
    #[arg(long, value_name = "REVISION")]
    source_revision: Option<String>,
    /// What built it
    #[arg(long, value_name = "TEXT")]
    builder: Option<String>,
    /// After this time from now it may no longer be flipped to
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,
}

impl Push {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        let session = env.session().await?;
        // What would fail at the end anyway fails before gigabytes are read.
        let key = session.context().release_key()?;
        let fleet = session.fleet(self.fleet.clone()).await?;
        let tree = self.tree.pack(&env.ui)?;
        let manifest = &tree.packed.manifest;
        self.refuse_what_is_taken(&session, &fleet, manifest.digest()).await?;

        let blobs = missing(&session, &self.tree.dir, manifest).await?;
        let (uploaded, uploaded_bytes) = (blobs.len(), total_bytes(&blobs));
        let bar = Bars::bytes(&env.ui, "uploading", uploaded_bytes);
        Box::pin(upload(&session, blobs, &bar)).await?;
        drop(bar);

        let release = self.release(&fleet, &tree);
        let doing = format!("push {} of {fleet}", self.version);
        let signers: [&dyn Signer; 1] = [&*key];
        let envelope = sign(&release, &signers).map_err(CliError::trust(doing.as_str()))?;
        let request = v1::SubmitReleaseRequest { envelope: envelope.raw().to_vec() };
        let mut client = session.operations();
        let submitted = answer(&doing, client.submit_release(request)).await?;
        env.ui.report(&Pushed {
            release: ReleaseView { version: self.version.to_string(), digest: manifest.digest() },
            digest: manifest.digest().to_string(),
            fleet,
            existed: submitted.existed,
            files: manifest.files().count(),
            bytes: manifest.total_bytes(),
            uploaded,
            uploaded_bytes,
        })?;
        Ok(Exit::Proven)
    }

    /// The coordinator refuses this as well, but only after everything was uploaded.
    async fn refuse_what_is_taken(
        &self,
        session: &Session,
        fleet: &FleetName,
        digest: Digest,
    ) -> Result<(), CliError> {
        let known = session.releases(fleet).await?;
        let known = known.iter().map(ReleaseView::from);
        let Some(Taken { detail, next }) = taken(self.version.as_str(), digest, known) else { return Ok(()) };
        let doing = format!("push {} of {fleet}", self.version);
        Err(CliError::Refused { doing, refusal: Refusal::of(Code::ReleaseExists, detail), next: Some(next) })
    }

    fn release(&self, fleet: &FleetName, tree: &PackedTree) -> Release {
        let now = unix_time();
        Release {
            fleet: fleet.clone(),
            version: self.version.clone(),
            manifest: tree.packed.manifest.digest(),
            builder: self.builder.clone(),
            source_revision: self.source_revision.clone(),
            created_unix_ms: now,
            expires_unix_ms: self.expires.map(|expires| now.after(expires)),
            flags: tree.spec.flags.clone(),
        }
    }
}

/// Why a version cannot be pushed with a digest.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    detail: String,
    next: String,
}

fn taken(version: &str, digest: Digest, known: impl Iterator<Item = ReleaseView>) -> Option<Taken> {
    let mut under_another_version = None;
    for known in known {
        match (known.version == version, known.digest == digest) {
            (true, true) => return None,
            (true, false) => {
                return Some(Taken {
                    detail: format!(
                        "version {version} is {} already, and this tree is {digest}",
                        known.digest
                    ),
                    next: "push this tree under a version that is free".to_owned(),
                });
            }
            (false, true) => under_another_version = Some(known.version),
            (false, false) => {}
        }
    }
    under_another_version.map(|version| Taken {
        detail: format!("these bytes ({digest}) are {version} already, and keep that version"),
        next: format!(
            "use {version}: `muster deploy {version}`; or push the tree that you meant, which is another one"
        ),
    })
}

#[derive(Debug, Serialize)]
struct Pushed {
    fleet: FleetName,
    release: ReleaseView,
    digest: String,
    existed: bool,
    files: usize,
    bytes: u64,
    uploaded: usize,
    uploaded_bytes: u64,
}

impl Report for Pushed {
    const SCHEMA: &'static str = "muster.push/1";

    fn print(&self, page: &mut Page) {
        let known = if self.existed { "was known already" } else { "is known now" };
        page.toned(Tone::Good, format_args!("{} {} {known}", self.fleet, self.release));
        let (all, sent) = (bytes_text(self.bytes), bytes_text(self.uploaded_bytes));
        let (files, blobs) = (counted(self.files, "file"), counted(self.uploaded, "blob"));
        page.line(format_args!("{files}, {all}; uploaded {blobs}, {sent}"));
        page.line(format_args!("Next: muster deploy {} --fleet {}", self.release.digest.short(), self.fleet));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_and_a_tree_belong_to_each_other() {
        let release = |version: &str, byte| ReleaseView {
            version: version.to_owned(),
            digest: Digest::from_bytes([byte; 32]),
        };
        let known = || [release("1.0", 1), release("2.0", 2)].into_iter();
        let taken = |version, byte| taken(version, Digest::from_bytes([byte; 32]), known());
        assert_eq!(taken("1.0", 1), None, "pushed again");
        assert_eq!(taken("3.0", 3), None);
        let other_bytes = taken("1.0", 3).unwrap();
        assert!(other_bytes.detail.starts_with("version 1.0 is sha256:0101"), "{other_bytes:?}");
        assert!(other_bytes.next.contains("a version that is free"), "{other_bytes:?}");
        let same_bytes = taken("3.0", 2).unwrap();
        assert!(same_bytes.detail.contains("are 2.0 already"), "{same_bytes:?}");
        assert!(same_bytes.next.contains("`muster deploy 2.0`"), "{same_bytes:?}");
        assert_eq!(
            taken("1.0", 2).map(|taken| taken.next),
            Some(other_bytes.next),
            "the version comes first"
        );
    }
}
