//! Rebuilding the state of a fleet from its hosts.

use std::sync::Arc;

use muster_audit::Kind;
use muster_model::{Code, FleetName, Refusal, SigningRole};
use muster_proto::v1;
use muster_rollout::fleet::roster_ref;
use muster_rollout::rebuild::Testimony;

use super::blocking;
use crate::coordinator::Shared;
use crate::rebuild::{Beginning, Signed, Surveyed};
use crate::status::{blob_refusal, chain};

/// What hosts tell of a fleet that is not led.
pub(super) async fn survey(
    shared: &Arc<Shared>,
    fleet: &FleetName,
) -> Result<v1::SurveyFleetResponse, Refusal> {
    let incarnation = shared.incarnation().0;
    let empty = v1::SurveyFleetResponse { incarnation, ..v1::SurveyFleetResponse::default() };
    if shared.fleet(fleet).is_some() {
        return Ok(v1::SurveyFleetResponse { leads: true, ..empty });
    }
    // Whoever may look makes no fleets.
    let Some(rebuild) = shared.rebuilding(fleet) else { return Ok(empty) };
    let survey = match rebuild.survey().await {
        Ok(survey) => survey,
        // It may have come to its end meanwhile.
        Err(_) if shared.fleet(fleet).is_some() => {
            return Ok(v1::SurveyFleetResponse { leads: true, ..empty });
        }
        Err(refusal) => return Err(refusal),
    };
    Ok(v1::SurveyFleetResponse {
        mandated: survey.mandated,
        roster_envelope: survey.roster,
        hosts: survey.hosts.into_iter().map(surveyed).collect(),
        blockers: survey.blockers.into_iter().map(v1::Blocker::from).collect(),
        ..empty
    })
}

/// Verifies a mandate and its roster, and begins to hear the hosts under it.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    request: v1::RebuildFleetRequest,
    operator: &str,
) -> Result<v1::RebuildFleetResponse, Refusal> {
    let signed = verified(shared, &request)?;
    let fleet = signed.mandate.fleet.clone();
    if shared.fleet(&fleet).is_some() {
        let detail = format!("this coordinator leads {fleet}: there is nothing to be rebuilt");
        return Err(Refusal::of(Code::WrongState, detail));
    }
    let rebuild = shared.rebuild(fleet.clone(), Beginning::default());
    let (documents, name) = (shared.documents.clone(), signed.roster_envelope);
    let mandate_name = muster_model::Digest::of(&request.mandate_envelope);
    blocking(&shared.machine, move || {
        let unreadable = |error| blob_refusal(&error);
        documents.put(mandate_name, &request.mandate_envelope).map_err(unreadable)?;
        documents.put(name, &request.roster_envelope).map_err(unreadable)
    })
    .await?;
    let is_solo = shared.root().root().role(SigningRole::Operator).threshold < 2;
    let solo = if is_solo { "; solo mode: one operator alone could sign it" } else { "" };
    let mandate = &signed.mandate;
    let entry = shared.audit.entry(Kind::Rebuild, operator).of_fleet(&fleet).of_hosts(&mandate.fenced);
    let entry = entry.with("mandate", mandate_name).with("roster", name);
    let off = if mandate.fenced.is_empty() { "" } else { "; the hosts named are stated to be off" };
    let said = format!("incarnation {}: {}{off}{solo}", mandate.incarnation, mandate.reason);
    shared.audit(vec![entry.saying(said)]).await?;
    rebuild.begin(signed).await?;
    Ok(v1::RebuildFleetResponse {})
}

fn verified(shared: &Shared, request: &v1::RebuildFleetRequest) -> Result<Signed, Refusal> {
    let invalid = |error| Refusal::of(Code::SignatureInvalid, chain(&error));
    let (root, now) = (shared.root(), shared.machine.unix_time());
    let mandate = root.verify_mandate(&request.mandate_envelope, now).map_err(invalid)?;
    let roster = root.verify_held_roster(&request.roster_envelope, now).map_err(invalid)?;
    let (roster_digest, roster_envelope) = (roster.payload_digest(), roster.envelope_digest());
    let (mandate, roster) = (mandate.into_document(), roster.into_document());
    if mandate.fleet != *roster.fleet() || mandate.roster != roster_ref(&roster, roster_digest) {
        return Err(Refusal::of(
            Code::RosterChanged,
            "the mandate is for another roster than the one it came with",
        ));
    }
    if mandate.incarnation != shared.incarnation() {
        let detail = format!(
            "the mandate is for the incarnation {}, and this coordinator is {}",
            mandate.incarnation,
            shared.incarnation()
        );
        return Err(Refusal::of(Code::Unmandated, detail));
    }
    let envelope = String::from_utf8(request.mandate_envelope.clone())
        .map_err(|_| Refusal::of(Code::SignatureInvalid, "the mandate is not JSON"))?;
    Ok(Signed { mandate, envelope, roster: Arc::new(roster), roster_digest, roster_envelope })
}

fn surveyed(host: Surveyed) -> v1::SurveyedHost {
    let of = |read: fn(&Testimony) -> u64| host.testimony.as_ref().map(read);
    v1::SurveyedHost {
        serving_epoch: host.testimony.as_ref().and_then(|it| it.serving).map(|serving| serving.epoch.0),
        last_k: of(|it| it.last_k.0),
        incarnation: of(|it| it.leadership.incarnation.0),
        roster_revision: of(|it| it.roster_revision.0),
        host: host.host.as_str().to_owned(),
        connected: host.connected,
        heard: host.heard,
    }
}
