//! Releases and receipts.

use std::sync::Arc;

use muster_audit::Kind;
use muster_model::{Code, Digest, Epoch, Manifest, Refusal, Release};
use muster_proto::convert::ReleaseRef;
use muster_proto::v1;
use muster_trust::verify;

use super::blocking;
use crate::coordinator::Shared;
use crate::fleet::FleetHandle;
use crate::ledger::{Documents, ReleaseEntry};
use crate::status::{blob_refusal, chain};

/// Verifies a release, sees that all its bytes are here, and makes it known.
pub(super) async fn submit(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    who: &str,
) -> Result<v1::SubmitReleaseResponse, Refusal> {
    // The fleet stands in the document, so that the signatures come first and the fleet second.
    let root = shared.root();
    let keys = root.root().role(muster_model::SigningRole::Release);
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let verified = verify::<Release>(&envelope, keys).map_err(invalid)?;
    let name = verified.envelope_digest();
    let release = verified.into_document().into_inner();
    let Some(fleet) = shared.fleet(&release.fleet) else {
        return Err(super::fleet_unknown(&release.fleet));
    };
    // Once more with everything that the root says of the role, its expiry included.
    root.verify_release(&envelope, &fleet.name, shared.machine.unix_time()).map_err(invalid)?;
    let history = shared.ledger.history(&fleet.name);
    let mut outdated = None;
    if let Some(known) = history.release_like(&release.version, release.manifest) {
        if !known.is_of(&release.version, release.manifest) || still_holds(shared, known).await? {
            return known_already(known, &release);
        }
        outdated = Some(known.envelope);
    }
    let (documents, stated) = (shared.documents.clone(), release.clone());
    let entry = blocking(&shared.machine, move || {
        let entry = complete(&documents, &stated, name)?;
        documents.put(name, &envelope).map_err(|error| blob_refusal(&error))?;
        Ok(entry)
    })
    .await?;
    let added = entry.clone();
    // Somebody else may have been faster since: what counts is the order of the chain.
    if let Some(known) = shared.write(move |ledger| ledger.add_release(added, outdated)).await? {
        return known_already(&known, &release);
    }
    let known = shared.audit.entry(Kind::Release, who).of_fleet(&entry.fleet);
    let known = known.with("release", name).with("manifest", entry.manifest).saying(entry.version.as_str());
    shared.audit(vec![known]).await?;
    tracing::info!(fleet = %entry.fleet, version = %entry.version, manifest = %entry.manifest, "release submitted");
    Ok(submitted(&entry, false))
}

/// Whether a release that was taken once is signed by keys that may still sign. One that is not can be signed anew.
async fn still_holds(shared: &Arc<Shared>, known: &ReleaseEntry) -> Result<bool, Refusal> {
    let (documents, envelope) = (shared.documents.clone(), known.envelope);
    let read = move || documents.read(envelope).map_err(|error| blob_refusal(&error));
    let bytes = blocking(&shared.machine, read).await?;
    Ok(shared.root().verify_release(&bytes, &known.fleet, shared.machine.unix_time()).is_ok())
}

/// Submitting a release again is no change; another one of the same version or manifest is refused.
fn known_already(known: &ReleaseEntry, release: &Release) -> Result<v1::SubmitReleaseResponse, Refusal> {
    if known.is_of(&release.version, release.manifest) {
        return Ok(submitted(known, true));
    }
    let detail = format!("version {} is {} already; a release never changes", known.version, known.manifest);
    Err(Refusal::of(Code::ReleaseExists, detail))
}

/// The releases of a fleet, newest first.
pub(super) async fn list(
    shared: &Arc<Shared>,
    fleet: &FleetHandle,
) -> Result<v1::ListReleasesResponse, Refusal> {
    let view = fleet.view().await?;
    let inventory = fleet.inventory();
    let (documents, releases) = (shared.documents.clone(), shared.ledger.history(&fleet.name).releases);
    let connected: Vec<_> = view
        .hosts
        .iter()
        .filter(|host| host.session.is_some())
        .filter_map(|host| inventory.get(&host.host).map(|held| (&host.host, held)))
        .collect();
    let deployed = |manifest: Digest| -> Vec<String> {
        let has_it = connected.iter().filter(|(_, held)| held.manifests.contains(&manifest));
        has_it.map(|(host, _)| host.as_str().to_owned()).collect()
    };
    let deployed: Vec<Vec<String>> = releases.iter().map(|release| deployed(release.manifest)).collect();
    let serving = view.record.serving;
    let releases = blocking(&shared.machine, move || {
        let summary = |(release, deployed): (&ReleaseEntry, Vec<String>)| {
            let envelope = documents.read(release.envelope);
            Ok(v1::ReleaseSummary {
                release: Some(reference(release).into()),
                envelope: envelope.map_err(|error| blob_refusal(&error))?,
                manifest_size: release.manifest_bytes,
                files: release.files,
                bytes: release.bytes,
                deployed,
                serving: serving == Some(release.manifest),
            })
        };
        releases.iter().zip(deployed).rev().map(summary).collect::<Result<Vec<_>, Refusal>>()
    });
    Ok(v1::ListReleasesResponse { releases: releases.await? })
}

/// The receipt of the flip that began `epoch`; of 0, the newest.
pub(super) async fn receipt(
    shared: &Arc<Shared>,
    fleet: &FleetHandle,
    epoch: Epoch,
) -> Result<Vec<u8>, Refusal> {
    let receipts = shared.ledger.history(&fleet.name).receipts;
    let found = if epoch == Epoch(0) { receipts.values().next_back() } else { receipts.get(&epoch) };
    let Some(digest) = found.copied() else {
        let detail = match epoch {
            Epoch(0) => format!("no flip of {} has been completed", fleet.name),
            epoch => format!("there is no receipt of epoch {epoch} of {}", fleet.name),
        };
        return Err(Refusal::of(Code::ReleaseUnknown, detail));
    };
    let documents = shared.documents.clone();
    blocking(&shared.machine, move || documents.read(digest).map_err(|error| blob_refusal(&error))).await
}

/// How reports name a release.
pub(super) fn reference(release: &ReleaseEntry) -> ReleaseRef {
    ReleaseRef { version: release.version.clone(), manifest: release.manifest }
}

/// Sees that the manifest and every blob that it names are in the store, with the sizes that it states.
fn complete(documents: &Documents, release: &Release, envelope: Digest) -> Result<ReleaseEntry, Refusal> {
    let unreadable = |error| blob_refusal(&error);
    let bytes = documents.read_manifest(release.manifest).map_err(unreadable)?;
    let manifest = Manifest::parse(&bytes).map_err(|error| {
        Refusal::of(Code::SignatureInvalid, format!("the manifest is refused: {}", chain(&error)))
    })?;
    let mut files = 0;
    for (path, size, digest) in manifest.files() {
        files += 1;
        if !documents.blobs().contains(digest, Some(size)).map_err(unreadable)? {
            let detail = format!("{path} ({digest}, {size} bytes) was not uploaded");
            return Err(Refusal::of(Code::BlobMissing, detail));
        }
    }
    Ok(ReleaseEntry {
        fleet: release.fleet.clone(),
        version: release.version.clone(),
        manifest: release.manifest,
        envelope,
        manifest_bytes: bytes.len() as u64,
        files,
        bytes: manifest.total_bytes(),
    })
}

fn submitted(release: &ReleaseEntry, existed: bool) -> v1::SubmitReleaseResponse {
    v1::SubmitReleaseResponse { release: Some(reference(release).into()), existed }
}
