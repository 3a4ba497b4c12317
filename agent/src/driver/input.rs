//! What a driver is told, by the stream, by the guard and by what runs beside it.

use muster_audit::Offer;
use muster_model::{
    Attestation, Digest, GlassSettlement, Leadership, Mandate, Purpose, Roster, ToHost, Verified,
};
use muster_rollout::host::{Event, Measured};
use tokio::sync::oneshot;

use super::drift::Looked;
use super::work::Ticket;
use crate::guard_queue::Answer;
use crate::guard_watch::GuardChange;
use crate::pulse::Beat;
use crate::uplink::Uplink;

/// What reaches a driver.
#[derive(Debug)]
pub(crate) enum Input {
    /// There is a stream to the coordinator.
    Attached(Uplink),
    /// The stream is gone. Nothing that came over it follows.
    Detached,
    /// The coordinator said something over the present stream.
    Said(Leadership, ToHost),
    /// The coordinator showed its audit log.
    AuditShown(Box<Offer>),
    /// The coordinator relayed roots, and another one is in force.
    RootFollowed,
    /// There is something to tell of the host's certificate.
    CertificateChanged,
    /// Whether a new stream would disturb nothing at this moment.
    AskAtRest(oneshot::Sender<bool>),
    /// Does the driver still come round, and how does it stand?
    Beat(oneshot::Sender<Beat>),
    /// The coordinator showed a mandate, and it verifies.
    Mandated(Box<Verified<Mandate>>),
    /// The coordinator showed that operators have settled broken glass, and it verifies.
    GlassSettled(Box<Verified<GlassSettlement>>),
    /// The coordinator showed a roster, and it verifies.
    RosterShown(Box<Verified<Roster>>),
    /// The coordinator asks what this host has promised.
    Recall,
    /// The guard answered.
    Answered(Box<Answer>),
    /// The guard told something unasked.
    GuardChanged(GuardChange),
    /// Work that an effect asked for is done.
    Done(Ticket, Event),
    /// A check has measured a release, and needs the attestation of it.
    AttestCheck {
        purpose: Purpose,
        challenge: Digest,
        measured: Measured,
        reply: oneshot::Sender<Attestation>,
    },
    /// The time has come for what was put off.
    Due,
    /// The time has come to try anew how long a fence takes.
    DrillDue,
    /// The time has come to renew the lease.
    LeaseDue,
    /// Something has changed in the tree that is served, or may have.
    DriftHinted,
    /// The time has come to look whether it has.
    DriftDue,
    /// It was looked at.
    DriftLooked(Box<Looked>),
}
