//! `muster release`: packing, signing and publishing trees.

mod diff;
mod list;
mod pack;
mod push;
mod show;
mod tree;
mod upload;

use clap::Subcommand;
use muster_model::{Digest, MAX_MANIFEST_BYTES, Manifest};
use muster_proto::v1;

use super::Env;
use crate::connect::{KnownRelease, Session, failed};
use crate::error::CliError;
use crate::exit::Exit;

/// Pack, publish, list and compare releases.
#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseCommand {
    Pack(pack::Pack),
    Push(push::Push),
    List(list::List),
    Show(show::Show),
    Diff(diff::Diff),
}

impl ReleaseCommand {
    pub(super) async fn run(self, env: &Env) -> Result<Exit, CliError> {
        match self {
            Self::Pack(pack) => pack.run(env),
            Self::Push(push) => Box::pin(push.run(env)).await,
            Self::List(list) => Box::pin(list.run(env)).await,
            Self::Show(show) => Box::pin(show.run(env)).await,
            Self::Diff(diff) => Box::pin(diff.run(env)).await,
        }
    }
}

/// Fetches the manifest of a release; it is believed because its digest is the one that was signed.
pub(super) async fn fetch_manifest(session: &Session, release: &KnownRelease) -> Result<Manifest, CliError> {
    let digest = release.release.manifest;
    let doing = format!("fetch the manifest {digest}");
    let wrong = |what: String| CliError::Contradiction { doing: doing.clone(), what };
    let size = usize::try_from(release.manifest_size).unwrap_or(usize::MAX).min(MAX_MANIFEST_BYTES);
    let request = v1::DownloadRequest { digest: digest.as_bytes().to_vec() };
    let mut client = session.blobs();
    let mut stream = client.download(request).await.map_err(|status| failed(&doing, status))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.map_err(|status| failed(&doing, status))? {
        if bytes.len() + part.chunk.len() > size {
            return Err(wrong(format!("it is larger than the {size} bytes that were announced")));
        }
        bytes.extend_from_slice(&part.chunk);
    }
    let found = Digest::of(&bytes);
    if found != digest {
        return Err(wrong(format!("what came has the digest {found}")));
    }
    Manifest::parse(&bytes).map_err(|error| wrong(error.to_string()))
}
