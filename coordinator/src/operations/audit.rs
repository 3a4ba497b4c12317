//! The audit log, as operators see it.

use std::sync::Arc;

use muster_model::{Code, FleetName, Refusal};
use muster_proto::v1;
use muster_proto::v1::read_audit_response::Part;

use super::Sender;
use crate::audit::refusal_entry;
use crate::coordinator::Shared;
use crate::status::failed;

/// The longest reason for a reconciliation.
const REASON_BYTES_MAX: usize = 400;

/// Writes down a refusal before it is told. `place` is the override that was refused, if it was one.
pub(super) async fn settled<T>(
    shared: &Shared,
    who: &str,
    asked: &str,
    place: Option<u64>,
    result: Result<T, Refusal>,
) -> Result<T, Refusal> {
    if let Err(refusal) = &result {
        shared.audit(vec![refusal_entry(&shared.audit, who, asked, refusal, place)]).await?;
    }
    result
}

/// Sends the head and all entries that it covers.
pub(super) async fn send(shared: Arc<Shared>, parts: Sender<v1::ReadAuditResponse>) {
    let checkpoint = shared.audit.checkpoint();
    let size = checkpoint.checkpoint().size;
    let head = v1::AuditHead { checkpoint: checkpoint.to_bytes(), key: shared.audit.key().to_string() };
    let mut part = Part::Head(head);
    let mut from = 0;
    // Nobody may be listening any more.
    while parts.send(Ok(v1::ReadAuditResponse { part: Some(part) })).await.is_ok() && from < size {
        let read = match shared.audit.read(from).await {
            Ok(read) if read.is_empty() => return,
            Ok(read) => read,
            Err(error) => {
                let _ = parts.send(Err(failed("the audit log cannot be read", &error))).await;
                return;
            }
        };
        // The log may have grown since the checkpoint was signed.
        let covered = usize::try_from(size - from).unwrap_or(usize::MAX);
        let entries: Vec<Vec<u8>> = read.into_iter().take(covered).collect();
        from += entries.len() as u64;
        part = Part::Entries(v1::AuditEntries { entries });
    }
}

/// Closes an override that somebody has looked at.
pub(super) async fn reconcile(
    shared: &Shared,
    who: &str,
    request: v1::ReconcileAuditRequest,
) -> Result<v1::ReconcileAuditResponse, Refusal> {
    let reason = request.reason.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        let detail = format!("a reason of at most {REASON_BYTES_MAX} bytes is needed");
        return Err(Refusal::of(Code::Unsupported, detail));
    }
    let written = shared.audit.reconcile(request.entry, who, reason).await;
    match written.map_err(|error| shared.store_failed(error))? {
        Some(entry) => Ok(v1::ReconcileAuditResponse { entry }),
        None => {
            let detail = format!("entry {} of the audit log is no override that is open", request.entry);
            Err(Refusal::of(Code::NothingToReconcile, detail))
        }
    }
}

/// The overrides that stay in the status of a fleet.
pub(super) fn open_overrides(shared: &Shared, fleet: &FleetName) -> Vec<v1::OpenOverride> {
    const SHOWN_MAX: usize = 100;
    let open = shared.audit.overrides();
    let shown = open.of_fleet(fleet).take(SHOWN_MAX).map(|entry| {
        let hosts: Vec<&str> = entry.hosts.iter().map(|host| host.as_str()).collect();
        let detail = [hosts.join(", "), entry.detail.clone()];
        let detail: Vec<String> = detail.into_iter().filter(|text| !text.is_empty()).collect();
        v1::OpenOverride {
            entry: entry.entry,
            kind: entry.kind.as_str().to_owned(),
            at_unix_ms: entry.at_unix_ms.0,
            who: entry.who.clone(),
            detail: detail.join(": "),
        }
    });
    shown.collect()
}
