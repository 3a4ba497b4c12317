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
use crate::output::{Bars, Page, Report, Tone, bytes_text};
use crate::view::ReleaseView;

/// Pack a tree, upload what the coordinator lacks, sign the release and make it known. It goes to no host yet.
///
/// Pushing the same tree under the same version again changes nothing; another tree under a version that exists is
/// refused.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  muster release push ./build --fleet demo --version 1.4.0 --source-revision \"$(git rev-parse HEAD)\"")]
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
        self.refuse_taken_version(&session, &fleet, manifest.digest()).await?;

        let blobs = missing(&session, &self.tree.dir, manifest).await?;
        let (uploaded, uploaded_bytes) = (blobs.len(), total_bytes(&blobs));
        let bar = Bars::bytes(&env.ui, "uploading", uploaded_bytes);
        Box::pin(upload(&session, blobs, &bar)).await?;
        drop(bar);

        let release = self.release(&fleet, &tree);
        let doing = format!("push {} of {fleet}", self.version);
        let signers: [&dyn Signer; 1] = [&key];
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
    async fn refuse_taken_version(
        &self,
        session: &Session,
        fleet: &FleetName,
        digest: Digest,
    ) -> Result<(), CliError> {
        let known = session.releases(fleet).await?;
        match known.iter().find(|known| known.release.version == self.version) {
            Some(taken) if taken.release.manifest != digest => {
                let detail = format!(
                    "version {} is {} already, and this tree is {digest}",
                    self.version, taken.release.manifest
                );
                let refusal = Refusal::of(Code::ReleaseExists, detail);
                Err(CliError::Refused { doing: format!("push {} of {fleet}", self.version), refusal })
            }
            Some(_) | None => Ok(()),
        }
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
        page.line(format_args!("{} files, {all}; uploaded {} blobs, {sent}", self.files, self.uploaded));
        page.line(format_args!("Next: muster deploy {} --fleet {}", self.release.digest.short(), self.fleet));
    }
}
