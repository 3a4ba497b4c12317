//! Settling what a host started without a coordinator. The host decides by the operators' signatures; here they are passed on.

use std::sync::Arc;

use muster_audit::Kind;
use muster_model::{Blocker, Code, Refusal, SigningRole};
use muster_proto::v1;
use muster_proto::v1::coordinator_frame::Body;

use super::{blocking, not_led};
use crate::coordinator::Shared;
use crate::status::{blob_refusal, chain};

/// Verifies a settlement, writes it down and passes it on to its host.
pub(super) async fn settle(
    shared: &Arc<Shared>,
    envelope: Vec<u8>,
    operator: &str,
) -> Result<v1::SettleGlassResponse, Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let (root, now) = (shared.root(), shared.machine.unix_time());
    let settlement = root.verify_glass_settlement(&envelope, now).map_err(invalid)?;
    let name = settlement.envelope_digest();
    let settlement = settlement.into_document().into_inner();
    let (fleet, host) = (&settlement.fleet, &settlement.host);
    let handle = shared.fleet(fleet).ok_or_else(|| not_led(shared, fleet))?;
    let outbox = handle.connected().borrow().get(host).cloned().ok_or_else(|| {
        let detail = "it is not connected, and only it can take note that this is settled";
        Refusal::because(Blocker::host(Code::HostMissing, host, detail))
    })?;
    let (documents, bytes) = (shared.documents.clone(), envelope.clone());
    blocking(&shared.machine, move || documents.put(name, &bytes).map_err(|error| blob_refusal(&error)))
        .await?;
    let is_solo = root.root().role(SigningRole::Operator).threshold < 2;
    let solo = if is_solo { "; solo mode: one operator alone could sign it" } else { "" };
    let entry = shared.audit.entry(Kind::SettleGlass, operator).of_fleet(fleet).of_hosts([host]);
    let said = format!("{}{solo}", settlement.reason);
    shared.audit(vec![entry.with("settlement", name).saying(said)]).await?;
    let frame = handle.frame(Body::GlassSettled(v1::GlassSettled { envelope }));
    outbox.frames.try_send(frame).map_err(|_| {
        let detail = "it does not take what it is sent at this moment; settle it again";
        Refusal::because(Blocker::host(Code::HostSilent, host, detail))
    })?;
    Ok(v1::SettleGlassResponse {})
}
