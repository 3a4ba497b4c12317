//! Which hosts hold certain bytes: which of them still have the vulnerable library?

use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use muster_model::{Code, Digest, EntryPath, HostName, Manifest, Refusal};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::find_request::What;
use tonic::Status;

use super::blocking;
use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::ledger::{Documents, ReleaseEntry};
use crate::status::{blob_refusal, chain, malformed, refused};

/// What is told of at most.
const FOUND_MAX: usize = 10_000;

enum Wanted {
    Digest(Digest),
    Path(Box<GlobMatcher>),
}

/// What is known of a fleet, for the search.
struct Holding {
    fleet: String,
    releases: Arc<Vec<ReleaseEntry>>,
    /// The hosts that are connected, with the releases they have and the one they serve.
    hosts: Vec<(HostName, Vec<Digest>, Option<Digest>)>,
}

/// Looks through the manifests of all releases that some host has.
pub(super) async fn find(shared: &Arc<Shared>, request: v1::FindRequest) -> Result<v1::FindResponse, Status> {
    let wanted = match request.what {
        Some(What::Digest(bytes)) => Wanted::Digest(convert::digest("digest", &bytes).map_err(malformed)?),
        Some(What::Path(glob)) => {
            let glob = GlobBuilder::new(&glob).literal_separator(true).build();
            let glob = glob.map_err(|error| Status::invalid_argument(format!("not a glob: {error}")))?;
            Wanted::Path(Box::new(glob.compile_matcher()))
        }
        None => return Err(Status::invalid_argument("name a digest or a path to look for")),
    };
    let fleets = if request.fleet.is_empty() {
        shared.fleets()
    } else {
        let name = convert::fleet(&request.fleet).map_err(malformed)?;
        vec![shared.fleet(&name).ok_or_else(|| refused(super::fleet_unknown(&name)))?]
    };
    let mut holdings = Vec::new();
    let mut unknown_hosts = Vec::new();
    for fleet in fleets {
        holdings.push(holding(shared, &fleet, &mut unknown_hosts).await.map_err(refused)?);
    }
    let documents = shared.documents.clone();
    let mut found =
        blocking(&shared.machine, move || search(&documents, &wanted, &holdings)).await.map_err(refused)?;
    let truncated = found.len() > FOUND_MAX;
    found.truncate(FOUND_MAX);
    unknown_hosts.sort_unstable();
    unknown_hosts.dedup();
    Ok(v1::FindResponse { found, unknown_hosts, truncated })
}

async fn holding(
    shared: &Shared,
    fleet: &FleetHandle,
    unknown: &mut Vec<String>,
) -> Result<Holding, Refusal> {
    let view = fleet.view().await?;
    let mut inventory = fleet.inventory();
    let mut hosts = Vec::new();
    for host in view.hosts.into_iter().chain(view.parked) {
        match (host.session, inventory.remove(&host.host)) {
            (Some(_), Some(held)) => {
                let serving =
                    host.serving.filter(|epoch| *epoch == view.record.epoch).and(view.record.serving);
                hosts.push((host.host, held.manifests.iter().copied().collect(), serving));
            }
            (None, _) | (Some(_), None) => unknown.push(host.host.as_str().to_owned()),
        }
    }
    let releases = shared.ledger.history(&fleet.name).releases;
    Ok(Holding { fleet: fleet.name.as_str().to_owned(), releases, hosts })
}

fn search(documents: &Documents, wanted: &Wanted, holdings: &[Holding]) -> Result<Vec<v1::Found>, Refusal> {
    let mut found = Vec::new();
    for holding in holdings {
        for release in holding.releases.iter() {
            let holds =
                |(_, held, _): &&(HostName, Vec<Digest>, Option<Digest>)| held.contains(&release.manifest);
            let hosts: Vec<_> = holding.hosts.iter().filter(holds).collect();
            if hosts.is_empty() {
                continue;
            }
            let bytes = documents.read_manifest(release.manifest).map_err(|error| blob_refusal(&error))?;
            let manifest =
                Manifest::parse(&bytes).map_err(|error| Refusal::of(Code::BlobDamaged, chain(&error)))?;
            for (path, _, digest) in manifest.files().filter(|(path, _, digest)| wanted.is(path, *digest)) {
                let names = |serving_only: bool| {
                    let matching = hosts
                        .iter()
                        .filter(|(_, _, serving)| !serving_only || *serving == Some(release.manifest));
                    matching.map(|(host, _, _)| host.as_str().to_owned()).collect()
                };
                found.push(v1::Found {
                    fleet: holding.fleet.clone(),
                    release: Some(super::release::reference(release).into()),
                    path: path.to_string(),
                    digest: digest.as_bytes().to_vec(),
                    hosts: names(false),
                    serving_hosts: names(true),
                });
                if found.len() > FOUND_MAX {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

impl Wanted {
    fn is(&self, path: &EntryPath, digest: Digest) -> bool {
        match self {
            Self::Digest(wanted) => *wanted == digest,
            Self::Path(glob) => glob.is_match(path.to_string()),
        }
    }
}
